//! Merges our own files into the archive of the distribution, and refuses what would let somebody in.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use anyhow::{Context as _, Result, ensure};
use tar::{Archive, Builder, EntryType, Header};

use super::super::cpio::Node;

/// Files by path, without a leading slash.
pub(super) type Nodes = BTreeMap<String, Node>;

/// What is left out with all below it: the kernel lies elsewhere, and the rest is of the installation, or of no use.
const WITHOUT: &[&str] = &[
    "boot",
    "dev",
    "etc/.resolv.conf.systemd-resolved.bak",
    "etc/machine-id",
    "etc/systemd/system/getty.target.wants",
    "etc/systemd/system/multi-user.target.wants/e2scrub_reap.service",
    "etc/systemd/system/timers.target.wants",
    "usr/lib/systemd/system/getty.target.wants",
    "usr/lib/udev/hwdb.d",
    "var/cache",
    "var/lib/apt",
    "var/lib/dbus/machine-id",
    "var/log",
];
/// Ways in that no image has.
const REFUSED: &[&str] = &["usr/sbin/sshd", "usr/sbin/dropbear", "usr/sbin/telnetd", "usr/sbin/in.telnetd"];

/// Writes `base` with `own` in it to `out`; what both have is ours.
///
/// # Errors
///
/// When an account has a password, when a server of logins is in it, and when reading or writing fails.
pub(super) fn merge(base: impl Read, own: &Nodes, epoch: u64, out: impl Write) -> Result<()> {
    let mut archive = Archive::new(base);
    let mut builder = Builder::new(out);
    let mut folders = BTreeSet::new();
    for entry in archive.entries().context("cannot read the archive of packages")? {
        let mut entry = entry.context("the archive of packages is cut off")?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
        let left_out = WITHOUT.iter().any(|out| path == *out || path.starts_with(&format!("{out}/")));
        if path.is_empty() || path == "." || left_out || own.contains_key(&path) {
            continue;
        }
        ensure!(
            !REFUSED.contains(&path.as_str()),
            "the packages bring /{path}, and nobody is to log in to a guest"
        );
        let mut header = entry.header().clone();
        header.set_mtime(epoch);
        // Nothing in a guest gives an ordinary user more rights.
        header.set_mode(header.mode()? & 0o1777);
        match header.entry_type() {
            EntryType::Symlink | EntryType::Link => {
                let target =
                    entry.link_name()?.with_context(|| format!("{path} is a link to nowhere"))?.into_owned();
                builder.append_link(&mut header, &path, target)
            }
            EntryType::Directory => {
                folders.insert(path.clone());
                builder.append_data(&mut header, &path, std::io::empty())
            }
            _ if path == "etc/shadow" => {
                let mut text = String::new();
                entry.read_to_string(&mut text)?;
                check_shadow(&text)?;
                builder.append_data(&mut header, &path, text.as_bytes())
            }
            _ => builder.append_data(&mut header, &path, &mut entry),
        }
        .with_context(|| path.clone())?;
    }
    for (path, node) in own {
        add(&mut builder, &mut folders, path, node, epoch).with_context(|| path.clone())?;
    }
    builder.into_inner()?.flush().context("cannot end the archive")
}

/// An account without a password has `*` or `!` where its hash would be, and nothing else is one.
fn check_shadow(text: &str) -> Result<()> {
    for line in text.lines() {
        let (name, rest) = line.split_once(':').unwrap_or((line, ""));
        let hash = rest.split(':').next().unwrap_or_default();
        ensure!(hash.starts_with(['*', '!']), "the account {name} can log in, which none in a guest can");
    }
    Ok(())
}

fn add(
    builder: &mut Builder<impl Write>,
    folders: &mut BTreeSet<String>,
    path: &str,
    node: &Node,
    epoch: u64,
) -> Result<()> {
    let header = |kind: EntryType, mode: u32, size: usize| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(epoch);
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header
    };
    let above = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
    let is_folder = *node == Node::Folder;
    for folder in above.chain(is_folder.then(|| path.to_owned())) {
        if folders.insert(folder.clone()) {
            builder.append_data(&mut header(EntryType::Directory, 0o755, 0), &folder, std::io::empty())?;
        }
    }
    match node {
        Node::Folder => {}
        Node::File(bytes, run) => {
            let mode = if *run { 0o755 } else { 0o644 };
            builder.append_data(
                &mut header(EntryType::Regular, mode, bytes.len()),
                path,
                bytes.as_slice(),
            )?;
        }
        Node::Link(target) => builder.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?,
        Node::Device(..) => anyhow::bail!("devices are made when the machine starts"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive as packages leave it: path, kind, mode, content or target.
    fn archive(entries: &[(&str, EntryType, u32, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, mode, text) in entries {
            let mut header = Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_mtime(1_700_000_000);
            if *kind == EntryType::Symlink {
                header.set_size(0);
                builder.append_link(&mut header, path, text).unwrap();
            } else {
                header.set_size(text.len() as u64);
                builder.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn base() -> Vec<u8> {
        archive(&[
            ("./etc/", EntryType::Directory, 0o755, ""),
            ("./etc/shadow", EntryType::Regular, 0o640, "root:*:1::::::\ndaemon:!*:1::::::\n"),
            ("./etc/machine-id", EntryType::Regular, 0o444, "0123"),
            ("./boot/vmlinuz-6.1", EntryType::Regular, 0o644, "kernel"),
            ("./usr/bin/su", EntryType::Regular, 0o4755, "su"),
            ("./usr/sbin/init", EntryType::Symlink, 0o777, "/lib/systemd/systemd"),
            ("./var/log/dpkg.log", EntryType::Regular, 0o644, "today"),
        ])
    }

    fn merged(own: &Nodes) -> Vec<u8> {
        let mut out = Vec::new();
        merge(base().as_slice(), own, 7, &mut out).unwrap();
        out
    }

    #[test]
    fn ours_wins_and_what_is_of_the_installation_is_left_out() {
        let file = |text: &str| Node::File(text.as_bytes().to_vec(), false);
        let own = Nodes::from([
            ("etc/machine-id".to_owned(), file("")),
            ("etc/systemd/network/10.network".to_owned(), file("[Match]\n")),
            ("etc/localtime".to_owned(), Node::Link("/usr/share/zoneinfo/UTC".to_owned())),
        ]);
        let out = merged(&own);
        assert_eq!(out, merged(&own), "the same inputs give the same bytes");
        let mut archive = Archive::new(out.as_slice());
        let found: Vec<(String, u32, u64, u64)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let path = entry.path().unwrap().to_string_lossy().into_owned();
                (path, header.mode().unwrap(), header.mtime().unwrap(), header.size().unwrap())
            })
            .collect();
        let names: Vec<&str> = found.iter().map(|(path, ..)| path.trim_end_matches('/')).collect();
        let expected = [
            "etc",
            "etc/shadow",
            "usr/bin/su",
            "usr/sbin/init",
            "etc/localtime",
            "etc/machine-id",
            "etc/systemd",
            "etc/systemd/network",
            "etc/systemd/network/10.network",
        ];
        assert_eq!(names, expected);
        assert!(found.iter().all(|(_, _, time, _)| *time == 7), "{found:?}");
        assert_eq!(found[2].1, 0o755, "nothing runs as somebody else");
        assert_eq!(found[5].3, 0, "the id of a machine is made when it starts");
    }

    #[test]
    fn an_account_that_can_log_in_is_refused() {
        for line in ["root::1::::::", "root:$y$j9T$abc:1::::::", "root"] {
            let error = check_shadow(line).unwrap_err().to_string();
            assert!(error.contains("root"), "{error}");
        }
        check_shadow("root:*:1::::::\nx:!:::::::\n").unwrap();
    }

    #[test]
    fn a_server_of_logins_is_refused() {
        let base = archive(&[("./usr/sbin/sshd", EntryType::Regular, 0o755, "x")]);
        let error = merge(base.as_slice(), &Nodes::new(), 0, Vec::new()).unwrap_err().to_string();
        assert!(error.contains("sshd"), "{error}");
    }

    #[test]
    fn an_archive_that_is_cut_off_is_no_image() {
        let whole = base();
        let found = merge(&whole[..700], &Nodes::new(), 0, Vec::new());
        assert!(found.is_err());
    }
}

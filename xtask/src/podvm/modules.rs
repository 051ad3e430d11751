//! Chooses the kernel modules of an image, with what they need, and writes the lists that loading goes by.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::elf::Elf;

/// Modules of a guest by name. Dashes and underscores mean the same.
pub(crate) const NAMES: &[&str] = &[
    // The machine: bus, disks, cards, random numbers, memory, socket to the host, power button.
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "sd_mod",
    "sr_mod",
    "ata_piix",
    "nvme",
    // Network cards of Amazon; the disks there are NVMe.
    "ena",
    "button",
    "evdev",
    "pvpanic_pci",
    "pvpanic_mmio",
    // File systems; ext4 is part of the kernel.
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
    "overlay",
    "loop",
    "squashfs",
    "erofs",
    // Networks of pods.
    "vxlan",
    "veth",
    "bridge",
    "br_netfilter",
    "macvlan",
    "ipvlan",
    "dummy",
    "ifb",
    "tun",
    "8021q",
    // Firewall rules.
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_limit",
    "nft_log",
    "nft_reject_inet",
    "nft_chain_nat",
    "nft_fib_inet",
    "nft_compat",
    "x_tables",
    "xt_conntrack",
    "xt_comment",
    "xt_mark",
    "xt_nat",
    "xt_MASQUERADE",
    "xt_CT",
    "xt_tcpudp",
    "xt_multiport",
    "xt_addrtype",
    "ip_tables",
    "iptable_filter",
    "iptable_nat",
    "iptable_mangle",
    "iptable_raw",
];

/// Folders of which every module is taken: traffic control.
pub(crate) const FOLDERS: &[&str] = &["kernel/net/sched"];

/// A module as its file describes it.
#[derive(Clone, Debug, Default)]
struct Module {
    /// Its file below the folder of modules.
    file: String,
    /// Names of the modules that must be there first.
    needs: Vec<String>,
    /// Names by which devices and the kernel ask for it.
    aliases: Vec<String>,
}

/// The modules chosen from a kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    /// Files below the folder of modules, sorted.
    pub(crate) files: Vec<PathBuf>,
    /// Text of `modules.dep`.
    pub(crate) dependencies: String,
    /// Text of `modules.alias`.
    pub(crate) aliases: String,
}

/// Chooses modules by name, and all of some folders, from those below `folder` (`/lib/modules/<release>` of a kernel package).
///
/// # Errors
///
/// When a module that is asked for is neither there nor part of the kernel, or needs one that is not there.
pub(crate) fn choose(folder: &Path, names: &[&str], folders: &[&str]) -> Result<Modules> {
    let builtin = std::fs::read_to_string(folder.join("modules.builtin"))
        .with_context(|| format!("cannot read modules.builtin in {}", folder.display()))?;
    let builtin: BTreeSet<String> = builtin.lines().map(|file| name_of(Path::new(file))).collect();
    let mut files = BTreeMap::new();
    collect(folder, &folder.join("kernel"), &mut files)?;
    let whole = |file: &Path| folders.iter().any(|folder| file.starts_with(folder));
    let mut open: Vec<String> = names.iter().map(|name| normal(name)).collect();
    open.extend(files.iter().filter(|(_, file)| whole(file)).map(|(name, _)| name.clone()));
    let mut chosen: BTreeMap<String, Module> = BTreeMap::new();
    while let Some(name) = open.pop() {
        if chosen.contains_key(&name) || builtin.contains(&name) {
            continue;
        }
        let file = files.get(&name);
        let file =
            file.with_context(|| format!("the kernel in {} has no module {name}", folder.display()))?;
        let path = folder.join(file);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let module = describe(file, &bytes).with_context(|| path.display().to_string())?;
        open.extend(module.needs.iter().cloned());
        chosen.insert(name, module);
    }
    Ok(lists(&chosen, &builtin))
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
            continue;
        }
        ensure!(
            path.extension().is_some_and(|extension| extension == "ko"),
            "{} is no plain module; compressed ones are not supported",
            path.display()
        );
        files.insert(name_of(&path), path.strip_prefix(root).expect("it lies below the root").to_owned());
    }
    Ok(())
}

/// Reads what a module says of itself: texts of the form `key=value`, one after another.
fn describe(file: &Path, bytes: &[u8]) -> Result<Module> {
    let section = Elf::parse(bytes)?.section(".modinfo")?.context("the module says nothing of itself")?;
    let mut module = Module { file: file.to_string_lossy().into_owned(), ..Module::default() };
    for text in section.split(|byte| *byte == 0) {
        let text = String::from_utf8_lossy(text);
        match text.split_once('=') {
            Some(("depends", names)) => {
                module.needs.extend(names.split(',').filter(|name| !name.is_empty()).map(normal));
            }
            Some(("alias", alias)) => module.aliases.push(alias.to_owned()),
            _ => {}
        }
    }
    Ok(module)
}

fn lists(chosen: &BTreeMap<String, Module>, builtin: &BTreeSet<String>) -> Modules {
    let (mut dependencies, mut aliases) = (String::new(), String::new());
    for (name, module) in chosen {
        let order = order(chosen, builtin, name);
        let needs: Vec<&str> = order.iter().map(|need| chosen[need].file.as_str()).collect();
        let _ = writeln!(dependencies, "{}: {}", module.file, needs.join(" "));
        for alias in &module.aliases {
            let _ = writeln!(aliases, "alias {alias} {name}");
        }
    }
    let mut files: Vec<PathBuf> = chosen.values().map(|module| PathBuf::from(&module.file)).collect();
    files.sort();
    Modules { files, dependencies, aliases }
}

/// What a module needs, directly or not, each before what it needs itself.
fn order(chosen: &BTreeMap<String, Module>, builtin: &BTreeSet<String>, name: &str) -> Vec<String> {
    fn visit(
        chosen: &BTreeMap<String, Module>,
        builtin: &BTreeSet<String>,
        name: &str,
        done: &mut Vec<String>,
    ) {
        for need in &chosen[name].needs {
            if !builtin.contains(need) && !done.contains(need) {
                visit(chosen, builtin, need, done);
                done.push(need.clone());
            }
        }
    }
    let mut done = Vec::new();
    visit(chosen, builtin, name, &mut done);
    done.reverse();
    done
}

fn name_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    normal(name.split('.').next().unwrap_or_default())
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(file: &str, needs: &[&str], aliases: &[&str]) -> Module {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Module { file: file.to_owned(), needs: owned(needs), aliases: owned(aliases) }
    }

    #[test]
    fn dependencies_are_listed_with_the_most_basic_last() {
        let chosen = BTreeMap::from([
            ("a".to_owned(), module("k/a.ko", &["b", "c"], &["fs-a"])),
            ("b".to_owned(), module("k/b.ko", &["c", "inside"], &[])),
            ("c".to_owned(), module("k/c.ko", &[], &["pci:v*", "pci:w*"])),
        ]);
        let lists = lists(&chosen, &BTreeSet::from(["inside".to_owned()]));
        assert_eq!(lists.dependencies, "k/a.ko: k/b.ko k/c.ko\nk/b.ko: k/c.ko\nk/c.ko: \n");
        assert_eq!(lists.aliases, "alias fs-a a\nalias pci:v* c\nalias pci:w* c\n");
        assert_eq!(lists.files, ["k/a.ko", "k/b.ko", "k/c.ko"].map(PathBuf::from));
    }

    #[test]
    fn a_module_that_the_kernel_lacks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("kernel")).unwrap();
        let builtin: String = NAMES.iter().skip(1).map(|name| format!("kernel/{name}.ko\n")).collect();
        std::fs::write(dir.path().join("modules.builtin"), &builtin).unwrap();
        let error = choose(dir.path(), NAMES, FOLDERS).unwrap_err().to_string();
        assert!(error.contains(&format!("no module {}", NAMES[0])), "{error}");
        // Modules that are part of the kernel need no file.
        std::fs::write(dir.path().join("modules.builtin"), format!("{builtin}kernel/virtio-pci.ko\n"))
            .unwrap();
        assert_eq!(choose(dir.path(), NAMES, FOLDERS).unwrap().files.len(), 0);
    }

    #[test]
    fn a_compressed_module_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("kernel")).unwrap();
        std::fs::write(dir.path().join("modules.builtin"), "").unwrap();
        std::fs::write(dir.path().join("kernel/vxlan.ko.xz"), "").unwrap();
        let error = choose(dir.path(), NAMES, FOLDERS).unwrap_err().to_string();
        assert!(error.contains("vxlan.ko.xz"), "{error}");
    }
}

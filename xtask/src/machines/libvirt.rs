//! Virtual machines of a real libvirtd: one that runs in the namespace of the stand-in node, or one of this host.

mod existing;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use test_support::{Libvirtd, Netns, run};

use self::existing::Existing;
use super::{GuestSystem, Machines};
use crate::context::Context;
use crate::podvm;

/// Where the guest's programs are in the image.
const PROGRAMS: &str = "/usr/libexec/peerpod";
/// The volume with the image in a pool of our own: what the daemon takes unless it is told another one.
const BASE: &str = "podvm-base.qcow2";
/// The folder for second disks, beside those of libvirtd.
const DISKS: &str = "disks";

/// Builds the image, with the agent when it is not ours.
pub(super) fn build_image(context: &Context, agent: Option<&Path>) -> Result<GuestSystem> {
    let options = podvm::Options { agent: agent.map(Path::to_owned), ..podvm::Options::default() };
    Ok(GuestSystem::Image(podvm::build(context, &options)?.path))
}

/// Who answers.
#[derive(Debug)]
enum Server {
    /// One of our own, with its network in the node's namespace.
    Own(Libvirtd),
    /// One that was there before us.
    Existing(Existing),
    /// One of our own that has ended.
    Ended,
}

/// A libvirtd with the image in its pool.
#[derive(Debug)]
pub(super) struct Libvirt {
    dir: PathBuf,
    uri: String,
    server: Server,
}

impl Libvirt {
    pub(super) fn new(node: &Netns, dir: &Path, guest: &GuestSystem, uri: Option<&str>) -> Result<Self> {
        let GuestSystem::Image(image) = guest else {
            bail!("the provider libvirt boots an image");
        };
        let dir = dir.join("libvirt");
        std::fs::create_dir(&dir)?;
        if let Some(uri) = uri {
            let existing = Existing::join(node, uri, image)?;
            return Ok(Self { dir, uri: uri.to_owned(), server: Server::Existing(existing) });
        }
        let libvirtd = Libvirtd::start_in(node, &dir)?;
        libvirtd.add_volume(BASE, image)?;
        std::fs::create_dir(dir.join(DISKS))?;
        Ok(Self { dir, uri: libvirtd.uri(), server: Server::Own(libvirtd) })
    }

    fn virsh(&self, args: &[&str]) -> Result<String> {
        virsh(&self.uri, args)
    }

    /// Names what an own libvirtd has of instances.
    fn left_in(&self, libvirtd: &Libvirtd) -> Result<Vec<String>> {
        let mut found: Vec<String> =
            libvirtd.domains()?.into_iter().map(|name| format!("domain: {name}")).collect();
        let volumes = libvirtd.volumes()?.into_iter().filter(|name| name != BASE);
        found.extend(volumes.map(|name| volume(&name)));
        let running = libvirtd.qemu_processes().into_iter();
        found.extend(running.map(|process| format!("QEMU: {} {}", process.pid, process.command)));
        found.extend(files_beside(&self.dir.join("pool"), &[BASE], "file in the pool"));
        found.extend(files_beside(&self.dir.join("lib/qemu"), &QEMU_FOLDERS, "file of a domain"));
        // libvirt's own account of each domain stays in its folder of logs: it is no console and holds no secret.
        let consoles = std::fs::read_dir(self.dir.join("log/qemu")).into_iter().flatten();
        let consoles = consoles.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        found.extend(
            consoles.filter(|name| !name.ends_with(".log")).map(|name| format!("console file: {name}")),
        );
        Ok(found)
    }

    /// The leases as the DHCP server writes them: reading a file is cheap, and independent of libvirtd.
    fn leases(&self) -> Result<Vec<serde_json::Value>> {
        let text = match std::fs::read_to_string(self.dir.join("lib/dnsmasq/virbr0.status")) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot read the leases of libvirt's network"),
        };
        // The file is empty until there is a lease.
        Ok(if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text)? })
    }
}

impl Machines for Libvirt {
    fn flags(&self) -> Vec<OsString> {
        let base = match &self.server {
            Server::Existing(existing) => existing.base.as_str(),
            _ => BASE,
        };
        // A BIOS comes up two seconds earlier than UEFI, and proves as much.
        let flags = ["-uri", &self.uri, "-vol-name", base, "-firmware=", "-cpu", "1", "-memory", "512"];
        let limits = ["-root-disk-size", "1", "-proxy-timeout", "3m"];
        flags.iter().chain(&limits).map(OsString::from).collect()
    }

    fn programs(&self) -> &'static str {
        PROGRAMS
    }

    fn mounts_programs(&self) -> bool {
        // Containers have the root of the image.
        false
    }

    fn instances(&self) -> Result<Vec<String>> {
        let list = self.virsh(&["list", "--all", "--uuid"])?;
        let mut ids: Vec<String> = list.split_whitespace().map(str::to_owned).collect();
        if let Server::Existing(existing) = &self.server {
            ids.retain(|id| !existing.domains.contains(id));
        }
        Ok(ids)
    }

    fn address(&self, id: &str) -> Result<Ipv4Addr> {
        // Name, MAC address, protocol, address with prefix length.
        let text = self.virsh(&["domifaddr", id, "--source", "lease"])?;
        let address = text.split_whitespace().find_map(|word| word.split_once('/')?.0.parse().ok());
        address.with_context(|| format!("domain {id} has no lease:\n{text}"))
    }

    fn running(&self) -> Option<Ipv4Addr> {
        if matches!(self.server, Server::Existing(_)) {
            return self.instances().ok()?.iter().find_map(|id| self.address(id).ok());
        }
        // Leases outlive domains that are destroyed: the newest is that of the one that runs.
        let leases = self.leases().ok()?;
        let newest = leases.iter().max_by_key(|lease| lease["expiry-time"].as_u64())?;
        newest["ip-address"].as_str()?.parse().ok()
    }

    fn logs(&self) -> Vec<PathBuf> {
        let domains = std::fs::read_dir(self.dir.join("log/qemu")).into_iter().flatten();
        let mut files = vec![self.dir.join("libvirtd.log")];
        files.extend(domains.filter_map(|entry| Some(entry.ok()?.path())));
        files
    }

    fn leftovers(&self) -> Result<Vec<String>> {
        match &self.server {
            Server::Own(libvirtd) => self.left_in(libvirtd),
            Server::Existing(existing) => {
                let mut found: Vec<String> =
                    self.instances()?.into_iter().map(|id| format!("domain: {id}")).collect();
                found.extend(existing.new_volumes()?.iter().map(|name| volume(name)));
                Ok(found)
            }
            Server::Ended => bail!("libvirtd has ended"),
        }
    }

    fn end(&mut self) -> Result<Vec<String>> {
        match std::mem::replace(&mut self.server, Server::Ended) {
            Server::Own(libvirtd) => libvirtd.shut_down()?,
            Server::Existing(existing) => return existing.leave().map(|()| Vec::new()),
            Server::Ended => {}
        }
        // A DHCP server is not told of the end of a domain: a lease is gone when its time is over, or its network.
        let leases = self.leases()?;
        Ok(leases.iter().map(|lease| format!("lease: {lease}")).collect())
    }

    fn keep(mut self: Box<Self>) -> Result<()> {
        match std::mem::replace(&mut self.server, Server::Ended) {
            Server::Own(libvirtd) => libvirtd.keep(),
            Server::Existing(_) => bail!("machines of a libvirtd of this host are not kept"),
            Server::Ended => Ok(()),
        }
    }

    fn how_to_look(&self, instance: &str) -> Vec<(&'static str, String)> {
        let uri = &self.uri;
        vec![
            ("domain", format!("virsh -c '{uri}' dominfo {instance}")),
            ("console", format!("virsh -c '{uri}' console {instance}")),
            ("libvirtd log", self.dir.join("libvirtd.log").display().to_string()),
        ]
    }

    fn disks(&self) -> Option<PathBuf> {
        Some(match &self.server {
            Server::Existing(existing) => existing.pool.clone(),
            _ => self.dir.join(DISKS),
        })
    }
}

fn virsh(uri: &str, args: &[&str]) -> Result<String> {
    let mut all = vec!["-q", "-c", uri];
    all.extend_from_slice(args);
    run("virsh", &all)
}

/// Names a volume that was left. Seeds are volumes as well: they are named apart because they hold keys.
fn volume(name: &str) -> String {
    let kind = if name.ends_with(".iso") { "seed" } else { "volume" };
    format!("{kind}: {name}")
}

/// What libvirt's QEMU driver makes in its folder when it starts.
const QEMU_FOLDERS: [&str; 8] =
    ["channel", "checkpoint", "dump", "nvram", "ram", "save", "snapshot", "master-key.aes"];

/// Names what a folder has beside what belongs there; in folders that belong there, everything.
fn files_beside(dir: &Path, known: &[&str], what: &str) -> Vec<String> {
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut found = Vec::new();
    for path in list(dir) {
        let known = path.file_name().is_some_and(|name| known.iter().any(|known| name == *known));
        if !known {
            found.push(format!("{what}: {}", path.display()));
        } else if path.is_dir() {
            // Folders of domains lie in some of them.
            let deeper = list(&path).into_iter().flat_map(|path| {
                if path.is_dir() && path.ends_with("target") { list(&path) } else { vec![path] }
            });
            found.extend(deeper.map(|path| format!("{what}: {}", path.display())));
        }
    }
    found
}

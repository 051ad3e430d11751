//! Virtual machines of a real libvirtd, which runs in the namespace of the stand-in node.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use test_support::{Libvirtd, Netns};

use super::{GuestSystem, Machines};
use crate::context::Context;
use crate::podvm;

/// Where the guest's programs are in the image.
const PROGRAMS: &str = "/usr/libexec/peerpod";
/// The volume that the daemon takes unless it is told another one.
const BASE: &str = "podvm-base.qcow2";
/// The folder for second disks, beside those of libvirtd.
const DISKS: &str = "disks";

/// Builds the image, with the agent when it is not ours.
pub(super) fn build_image(context: &Context, agent: Option<&Path>) -> Result<GuestSystem> {
    let options = podvm::Options { agent: agent.map(Path::to_owned), ..podvm::Options::default() };
    Ok(GuestSystem::Image(podvm::build(context, &options)?.path))
}

/// A libvirtd with its network in the node's namespace, and the image in its pool.
#[derive(Debug)]
pub(super) struct Libvirt {
    dir: PathBuf,
    libvirtd: Option<Libvirtd>,
}

impl Libvirt {
    pub(super) fn new(node: &Netns, dir: &Path, guest: &GuestSystem) -> Result<Self> {
        let GuestSystem::Image(image) = guest else {
            bail!("the provider libvirt boots an image");
        };
        let dir = dir.join("libvirt");
        std::fs::create_dir(&dir)?;
        let libvirtd = Libvirtd::start_in(node, &dir)?;
        libvirtd.add_volume(BASE, image)?;
        std::fs::create_dir(dir.join(DISKS))?;
        Ok(Self { dir, libvirtd: Some(libvirtd) })
    }

    fn libvirtd(&self) -> Result<&Libvirtd> {
        self.libvirtd.as_ref().context("libvirtd has ended")
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
        let uri = self.libvirtd.as_ref().map(Libvirtd::uri).unwrap_or_default();
        // A BIOS comes up two seconds earlier than UEFI, and proves as much.
        let flags = ["-uri", &uri, "-vol-name", BASE, "-firmware=", "-cpu", "1", "-memory", "512"];
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
        let list = self.libvirtd()?.virsh(&["list", "--all", "--uuid"])?;
        Ok(list.split_whitespace().map(str::to_owned).collect())
    }

    fn address(&self, id: &str) -> Result<Ipv4Addr> {
        // Name, MAC address, protocol, address with prefix length.
        let text = self.libvirtd()?.virsh(&["domifaddr", id, "--source", "lease"])?;
        let address = text.split_whitespace().find_map(|word| word.split_once('/')?.0.parse().ok());
        address.with_context(|| format!("domain {id} has no lease:\n{text}"))
    }

    fn running(&self) -> Option<Ipv4Addr> {
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
        let libvirtd = self.libvirtd()?;
        let mut found: Vec<String> =
            libvirtd.domains()?.into_iter().map(|name| format!("domain: {name}")).collect();
        let volumes = libvirtd.volumes()?.into_iter().filter(|name| name != BASE);
        // Seeds are volumes as well: they are named apart because they hold keys.
        found.extend(volumes.map(|name| {
            let kind = if name.ends_with(".iso") { "seed" } else { "volume" };
            format!("{kind}: {name}")
        }));
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

    fn end(&mut self) -> Result<Vec<String>> {
        if let Some(libvirtd) = self.libvirtd.take() {
            libvirtd.shut_down()?;
        }
        // A DHCP server is not told of the end of a domain: a lease is gone when its time is over, or its network.
        let leases = self.leases()?;
        Ok(leases.iter().map(|lease| format!("lease: {lease}")).collect())
    }

    fn keep(mut self: Box<Self>) -> Result<()> {
        self.libvirtd.take().map_or(Ok(()), Libvirtd::keep)
    }

    fn how_to_look(&self, instance: &str) -> Vec<(&'static str, String)> {
        let uri = self.libvirtd.as_ref().map(Libvirtd::uri).unwrap_or_default();
        vec![
            ("domain", format!("virsh -c '{uri}' dominfo {instance}")),
            ("console", format!("virsh -c '{uri}' console {instance}")),
            ("libvirtd log", self.dir.join("libvirtd.log").display().to_string()),
        ]
    }

    fn disks(&self) -> Option<PathBuf> {
        Some(self.dir.join(DISKS))
    }
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

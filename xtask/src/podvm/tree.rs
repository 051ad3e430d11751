//! The files of an image, put together from packages, guest programs and an agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::Flavour;
use super::cpio::{Node, Writer};
use super::elf::Elf;
use super::modules::Modules;
use super::packages::Package;
use crate::command::Run;
use crate::programs::Guest;

/// Folder of the guest programs, the one `podvm-init` looks in.
const GUEST_DIR: &str = "usr/libexec/peerpod";
/// Runs for each event of DHCP.
const DHCP_EVENT: &str = include_str!("dhcp-event.sh");
/// Folders below `usr` that have a link of their name at the top.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];
/// Where libraries lie, below a package or the host.
const LIBRARIES: &[&str] =
    &["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib"];
/// The accounts. The server of SSH gives up its rights to that of its name.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\nnobody:x:65534:65534::/:/bin/false\n";
/// Programs from packages, beside busybox.
const PROGRAMS: &[&str] = &["sbin/mke2fs", "sbin/blkid", "sbin/tc", "bin/ip"];

/// The files of an image by path, without a leading slash.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Puts everything together.
    ///
    /// # Errors
    ///
    /// When a program or library is missing.
    pub(crate) fn assemble(
        packages: &[Package],
        modules: &Modules,
        guest: &Guest,
        flavour: Flavour,
        program: &Path,
    ) -> Result<Self> {
        let mut tree = Self::default();
        for name in MERGED {
            tree.add(&format!("usr/{name}"), Node::Folder);
            tree.add(name, Node::Link(format!("usr/{name}")));
        }
        for folder in ["dev", "proc", "sys", "run", "tmp", "root", "mnt", "var/log", "var/lib", "etc"] {
            tree.add(folder, Node::Folder);
        }
        // The kernel opens it for its first process before anything is mounted.
        tree.add("dev/console", Node::Device(5, 1));
        tree.system_files();
        tree.init(guest)?;
        match flavour {
            Flavour::Tiny => tree.guest_programs(guest, program)?,
            Flavour::Machine => tree.login_programs(program, packages)?,
            Flavour::Debian => bail!("its root is no first file system"),
        }
        for program in PROGRAMS {
            let (_, bytes) = find(packages, &[program])?;
            tree.add(&format!("usr/{program}"), Node::File(bytes, true));
        }
        tree.busybox(packages)?;
        tree.add("usr/sbin/mkfs.ext4", Node::Link("mke2fs".to_owned()));
        tree.add("usr/sbin/mkfs.ext3", Node::Link("mke2fs".to_owned()));
        // Says which features each kind of file system has.
        let (_, settings) = find(packages, &["etc/mke2fs.conf"])?;
        tree.add("etc/mke2fs.conf", Node::File(settings, false));
        tree.modules(&packages[0], modules)?;
        tree.libraries(packages)?;
        Ok(tree)
    }

    /// Puts the first file system of a whole system together: a shell, drivers, and a script that finds the root.
    ///
    /// # Errors
    ///
    /// When a program or module is missing.
    pub(crate) fn first(root: &Package, modules: &Modules, init: &str, load: &[&str]) -> Result<Self> {
        let mut tree = Self::default();
        for name in MERGED {
            tree.add(&format!("usr/{name}"), Node::Folder);
            tree.add(name, Node::Link(format!("usr/{name}")));
        }
        for folder in ["dev", "proc", "sys"] {
            tree.add(folder, Node::Folder);
        }
        tree.add("dev/console", Node::Device(5, 1));
        tree.add("dev/null", Node::Device(1, 3));
        tree.busybox(std::slice::from_ref(root))?;
        tree.modules(root, modules)?;
        tree.add("modules.load", Node::File(format!("{}\n", load.join("\n")).into_bytes(), false));
        tree.add("init", Node::File(init.as_bytes().to_vec(), true));
        Ok(tree)
    }

    /// Writes the archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        for (path, node) in &self.nodes {
            writer.add(path, node);
        }
        writer.finish()
    }

    /// Adds a node and the folders above it.
    fn add(&mut self, path: &str, node: Node) {
        let mut at = 0;
        while let Some(next) = path[at..].find('/') {
            at += next;
            self.nodes.entry(path[..at].to_owned()).or_insert(Node::Folder);
            at += 1;
        }
        self.nodes.insert(path.to_owned(), node);
    }

    fn system_files(&mut self) {
        let text = |text: &str| Node::File(text.as_bytes().to_vec(), false);
        self.add("etc/passwd", text(PASSWD));
        self.add("etc/group", text("root:x:0:\nnogroup:x:65534:\n"));
        self.add("etc/hosts", text("127.0.0.1 localhost\n::1 localhost\n"));
        self.add("etc/hostname", text("podvm\n"));
        self.add("etc/resolv.conf", text(""));
        self.add("etc/os-release", text("ID=podvm-tiny\nNAME=\"tiny pod VM\"\n"));
        self.add("etc/mtab", Node::Link("/proc/mounts".to_owned()));
    }

    fn guest_programs(&mut self, guest: &Guest, agent: &Path) -> Result<()> {
        for name in ["process-user-data", "agent-protocol-forwarder"] {
            self.add(&format!("{GUEST_DIR}/{name}"), Node::File(read(&guest.folder.join(name))?, true));
        }
        self.add(&format!("{GUEST_DIR}/kata-agent"), Node::File(read(agent)?, true));
        // The demo runs its web server in a container, whatever the agent is.
        let own = guest.folder.join("test-agent");
        let web =
            if own == agent { Node::Link("kata-agent".to_owned()) } else { Node::File(read(&own)?, true) };
        self.add(&format!("{GUEST_DIR}/test-agent"), web);
        Ok(())
    }

    /// The program that makes accounts out of the user data, and the server of SSH that it starts.
    fn login_programs(&mut self, program: &Path, packages: &[Package]) -> Result<()> {
        self.add(&format!("{GUEST_DIR}/machine"), Node::File(read(program)?, true));
        for program in ["usr/sbin/sshd", "usr/lib/openssh/sftp-server"] {
            let (_, bytes) = find(packages, &[program])?;
            self.add(program, Node::File(bytes, true));
        }
        Ok(())
    }

    fn init(&mut self, guest: &Guest) -> Result<()> {
        let init = read(&guest.folder.join("podvm-init"))?;
        self.add(&format!("{GUEST_DIR}/podvm-init"), Node::File(init, true));
        self.add(&format!("{GUEST_DIR}/dhcp-event"), Node::File(DHCP_EVENT.as_bytes().to_vec(), true));
        self.add("init", Node::Link(format!("/{GUEST_DIR}/podvm-init")));
        // The kernel asks for modules by this name, and tc and ip load none themselves.
        self.add("usr/sbin/modprobe", Node::Link(format!("/{GUEST_DIR}/podvm-init")));
        Ok(())
    }

    fn busybox(&mut self, packages: &[Package]) -> Result<()> {
        let (path, bytes) = find(packages, &["bin/busybox", "usr/bin/busybox"])?;
        let tools = Run::new(&path).arg("--list-full").stdout()?;
        for tool in tools.lines() {
            let (folder, name) = tool.rsplit_once('/').unwrap_or(("bin", tool));
            let folder = if folder.ends_with("sbin") { "usr/sbin" } else { "usr/bin" };
            // What is there already is more than busybox's, in whichever of the two folders.
            let is_there =
                ["usr/bin", "usr/sbin"].iter().any(|at| self.nodes.contains_key(&format!("{at}/{name}")));
            if !is_there {
                self.add(&format!("{folder}/{name}"), Node::Link("/bin/busybox".to_owned()));
            }
        }
        self.add("usr/bin/busybox", Node::File(bytes, true));
        Ok(())
    }

    fn modules(&mut self, kernel: &Package, modules: &Modules) -> Result<()> {
        let folder = modules_folder(kernel)?;
        let release = folder.file_name().and_then(|name| name.to_str()).context("a kernel has a name")?;
        let place = format!("usr/lib/modules/{release}");
        for file in &modules.files {
            let bytes = read(&folder.join(file))?;
            self.add(&format!("{place}/{}", file.display()), Node::File(bytes, false));
        }
        let lists = [("modules.dep", &modules.dependencies), ("modules.alias", &modules.aliases)];
        for (name, text) in lists {
            self.add(&format!("{place}/{name}"), Node::File(text.clone().into_bytes(), false));
        }
        Ok(())
    }

    /// Adds the libraries of all programs, and the libraries of these.
    fn libraries(&mut self, packages: &[Package]) -> Result<()> {
        let mut open: Vec<(String, Vec<u8>)> = self
            .nodes
            .iter()
            .filter_map(|(path, node)| match node {
                Node::File(bytes, true) if bytes.starts_with(b"\x7fELF") => {
                    Some((path.clone(), bytes.clone()))
                }
                _ => None,
            })
            .collect();
        let kind = Elf::parse(&read(&std::env::current_exe()?)?)?.machine()?;
        while let Some((path, bytes)) = open.pop() {
            let elf = Elf::parse(&bytes).with_context(|| path.clone())?;
            ensure!(elf.machine()? == kind, "{path} is built for another architecture than this machine's");
            let needs = elf.needs().with_context(|| path.clone())?;
            if let Some(loader) = &needs.loader {
                let place = place_of_loader(loader);
                if !self.nodes.contains_key(&place) {
                    let names = [loader.trim_start_matches('/'), &place];
                    let (_, bytes) = find(packages, &names).with_context(|| {
                        format!("{path} needs the loader {loader}: link it with glibc of this distribution, or static")
                    })?;
                    self.add(&place, Node::File(bytes, true));
                }
            }
            for name in needs.libraries {
                // The loader counts as a library of the C library, and lies elsewhere.
                let there = |folder: &str| self.nodes.contains_key(&format!("usr/{folder}/{name}"));
                if there("lib/x86_64-linux-gnu") || there("lib64") || there("lib") {
                    continue;
                }
                let bytes =
                    library(packages, &name).with_context(|| format!("{path} needs the library {name}"))?;
                let place = format!("usr/lib/x86_64-linux-gnu/{name}");
                open.push((place.clone(), bytes.clone()));
                self.add(&place, Node::File(bytes, false));
            }
        }
        Ok(())
    }
}

/// Where a loader lies: the folders at the top are links into `usr`.
fn place_of_loader(loader: &str) -> String {
    let path = loader.trim_start_matches('/');
    if path.starts_with("usr/") { path.to_owned() } else { format!("usr/{path}") }
}

/// Finds a library in the packages; those that only an agent needs are taken from this machine.
fn library(packages: &[Package], name: &str) -> Result<Vec<u8>> {
    let places: Vec<String> = LIBRARIES.iter().map(|folder| format!("{folder}/{name}")).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    if let Ok((_, bytes)) = find(packages, &places) {
        return Ok(bytes);
    }
    let on_host = places.iter().map(|place| Path::new("/").join(place)).find(|path| path.is_file());
    match on_host {
        Some(path) => read(&path),
        None => bail!("neither the packages of the image nor this machine have it; link the program static"),
    }
}

/// Finds a file in the packages by one of its places.
fn find(packages: &[Package], places: &[&str]) -> Result<(PathBuf, Vec<u8>)> {
    let mut paths = packages.iter().flat_map(|package| places.iter().map(|place| package.folder.join(place)));
    // Newer packages have these folders below usr.
    match paths.find_map(|path| std::fs::canonicalize(path).ok()) {
        Some(path) => Ok((path.clone(), read(&path)?)),
        None => bail!("no package has {}", places.join(" or ")),
    }
}

/// The folder of a kernel's modules, which is named by its release.
pub(crate) fn modules_folder(kernel: &Package) -> Result<PathBuf> {
    let parent = ["lib/modules", "usr/lib/modules"].map(|place| kernel.folder.join(place));
    let parent = parent.iter().find(|folder| folder.is_dir());
    let parent = parent.with_context(|| format!("{} has no modules", kernel.file))?;
    let first = std::fs::read_dir(parent)?.next();
    Ok(first.with_context(|| format!("{} has no modules", kernel.file))??.path())
}

/// Reads a file of the kernel's package by the beginning of its name.
pub(crate) fn kernel_image(kernel: &Package) -> Result<Vec<u8>> {
    let boot = kernel.folder.join("boot");
    let entries = std::fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    let file = files.find(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("vmlinuz-"))
    });
    read(&file.with_context(|| format!("{} has no kernel", kernel.file))?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_lies_in_them() {
        let mut tree = Tree::default();
        tree.add("usr/sbin/modprobe", Node::Link("x".to_owned()));
        tree.add("usr", Node::Folder);
        let paths: Vec<&str> = tree.nodes.keys().map(String::as_str).collect();
        assert_eq!(paths, ["usr", "usr/sbin", "usr/sbin/modprobe"]);
        assert_eq!(tree.nodes["usr/sbin"], Node::Folder);
    }

    #[test]
    fn a_dynamic_program_brings_its_libraries_from_this_machine_when_no_package_has_them() {
        let mut tree = Tree::default();
        let program = read(&std::env::current_exe().unwrap()).unwrap();
        let loader = Elf::parse(&program).unwrap().needs().unwrap().loader.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let package = Package { file: "libc6_1_amd64.deb".to_owned(), folder: dir.path().to_owned() };
        tree.add("agent", Node::File(program, true));
        let error = tree.libraries(std::slice::from_ref(&package)).unwrap_err();
        assert!(format!("{error:#}").contains(&loader), "{error:#}");

        let place = dir.path().join(loader.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::copy(&loader, &place).unwrap();
        tree.libraries(&[package]).unwrap();
        assert!(tree.nodes.contains_key(&place_of_loader(&loader)));
        assert!(tree.nodes.keys().any(|path| path.contains("/libc.so")), "{:?}", tree.nodes.keys());
    }

    #[test]
    fn a_program_with_an_unknown_library_names_it() {
        let error = library(&[], "libno-such.so.1").unwrap_err();
        assert!(error.to_string().contains("link the program static"), "{error}");
    }
}

//! Builds the programs that the demo runs: those of the node, and the static ones of the guest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::bundle::{self, Set};
use crate::command::Run;
use crate::context::Context;
use crate::dist::build::Builder;
use crate::machines::Provider;

const LIMIT: Duration = Duration::from_secs(30 * 60);

/// The programs that every guest needs.
pub(crate) const GUEST: [&str; 4] =
    ["podvm-init", "process-user-data", "agent-protocol-forwarder", "test-agent"];

/// The program that gives an ordinary user namespaces.
pub(crate) const ROOTLESS: &str = "local-rootless";

/// The programs of the node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The daemon.
    pub(crate) daemon: PathBuf,
    /// The tool that talks to it, where somebody may want to.
    pub(crate) caactl: Option<PathBuf>,
    /// The process that owns the agent sockets.
    pub(crate) gateway: PathBuf,
}

/// The programs of the guest.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// The folder that has all of [`GUEST`].
    pub(crate) folder: PathBuf,
    /// What they were built for.
    pub(crate) triple: String,
}

impl Guest {
    /// Says what was built, with sizes.
    pub(crate) fn summary(&self) -> String {
        let size = |name: &str| std::fs::metadata(self.folder.join(name)).map_or(0, |meta| meta.len());
        let sizes: Vec<String> =
            GUEST.iter().map(|name| format!("{name} {:.1} MB", size(name) as f64 / 1e6)).collect();
        format!("static, {}: {}", self.triple, sizes.join(", "))
    }
}

/// Builds the programs of the node in the development profile, which compiles fastest.
///
/// # Errors
///
/// When cargo fails.
pub(crate) fn build_node(context: &Context, provider: Provider) -> Result<Node> {
    let args = ["build", "--quiet", "--locked", "-p", "caa", "-p", "peerpod-gateway", "--bins"];
    let mut cargo = context.cargo().args(args);
    // No default features: one links to a library of the system, the other compiles the SDK of a vendor.
    match provider {
        Provider::Local => cargo = cargo.args(["-p", "cloud-providers-local"]),
        Provider::Libvirt => cargo = cargo.args(["--features", "caa/libvirt"]),
        Provider::Aws => cargo = cargo.args(["--features", "caa/aws"]),
    }
    timed(context, "the programs of the node", cargo)?;
    node_in(&context.target.join("debug"))
}

/// Builds the programs of the node as they ship, but for the tool: nobody measures it, and it takes long to link.
///
/// # Errors
///
/// When cargo fails.
pub(crate) fn build_node_shipped(context: &Context, provider: Provider) -> Result<Node> {
    let metadata = context.metadata()?;
    let builder = Builder::new(context, &metadata)?;
    let features = BTreeSet::from([provider.name().to_owned()]);
    let set = Set { name: String::new(), features, heavy: false };
    let listed = bundle::providers(&metadata)?;
    let is_static = set.is_static(&listed);
    let daemon = builder.build(context, "caa", "cloud-api-adaptor", &set.args(), is_static)?.path;
    let gateway = builder.build(context, "peerpod-gateway", "peerpod-gateway", &[], true)?.path;
    Ok(Node { daemon, caactl: None, gateway })
}

/// Builds the program that gives an ordinary user namespaces, and returns where it is.
///
/// # Errors
///
/// When cargo fails.
pub(crate) fn build_rootless(context: &Context) -> Result<PathBuf> {
    // It is one of those.
    build_node(context, Provider::Local)?;
    let program = context.target.join("debug").join(ROOTLESS);
    ensure!(program.is_file(), "cargo built no {}", program.display());
    Ok(program)
}

/// Finds the programs of the node in a folder.
///
/// # Errors
///
/// When one is missing.
pub(crate) fn node_in(folder: &Path) -> Result<Node> {
    let find = |name: &str| {
        let program = folder.join(name);
        ensure!(program.is_file(), "there is no {}", program.display());
        Ok(program)
    };
    Ok(Node {
        daemon: find("cloud-api-adaptor")?,
        caactl: Some(find("caactl")?),
        gateway: find("peerpod-gateway")?,
    })
}

/// Finds the programs of the guest in a folder.
///
/// # Errors
///
/// When one is missing.
pub(crate) fn guest_in(folder: &Path) -> Result<Guest> {
    for name in GUEST {
        ensure!(folder.join(name).is_file(), "there is no {}", folder.join(name).display());
    }
    Ok(Guest { folder: folder.to_owned(), triple: "nobody built here".to_owned() })
}

/// Builds the controller in the development profile.
///
/// # Errors
///
/// When cargo fails.
pub(crate) fn build_controller(context: &Context) -> Result<PathBuf> {
    let args = ["build", "--quiet", "--locked", "-p", "peerpod-ctrl", "--bins"];
    timed(context, "the controller", context.cargo().args(args))?;
    let program = context.target.join("debug/peerpod-ctrl");
    ensure!(program.is_file(), "cargo built no {}", program.display());
    Ok(program)
}

/// Builds the program of testbeds in the development profile, with a provider beside that of this host, and returns where it
/// is.
///
/// # Errors
///
/// When cargo fails.
pub(crate) fn build_testbed(context: &Context, provider: Provider) -> Result<PathBuf> {
    let args = ["build", "--quiet", "--locked", "-p", "testbed-cli", "--bins"];
    let features = match provider {
        Provider::Local => [].as_slice(),
        Provider::Libvirt => &["--features", "libvirt"],
        Provider::Aws => &["--features", "aws"],
    };
    timed(context, "the program of testbeds", context.cargo().args(args).args(features))?;
    let program = context.target.join("debug/testbed");
    ensure!(program.is_file(), "cargo built no {}", program.display());
    Ok(program)
}

/// Copies a program without what only debuggers read, most of its size.
///
/// # Errors
///
/// When `strip` fails.
pub(crate) fn strip(program: &Path, to: &Path) -> Result<()> {
    Run::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(program).stdout().map(drop)
}

/// Builds the programs of the guest: for musl where it can be built, else static with the C library of the host.
///
/// # Errors
///
/// When cargo fails, or a program turns out to need a dynamic loader.
pub(crate) fn build_guest(context: &Context) -> Result<Guest> {
    let triple = static_triple(context)?;
    context.say(format!("guest programs: static, for {triple}"));
    let args =
        ["build", "--quiet", "--locked", "--profile", "guest", "-p", "podvm", "-p", "test-agent", "--bins"];
    let run = context.cargo().args(args).args(["--target", &triple]);
    // The flag is given with an explicit target, so that build scripts and macros stay dynamic.
    timed(context, "the programs of the guest", run.shown_env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let folder = context.target.join(&triple).join("guest");
    for name in GUEST {
        let program = folder.join(name);
        ensure!(program.is_file(), "cargo built no {}", program.display());
        if needs_loader(&program)? {
            bail!("{} is not static: a guest without its libraries cannot run it", program.display());
        }
    }
    Ok(Guest { folder, triple })
}

fn timed(context: &Context, what: &str, run: Run) -> Result<()> {
    context.say(format!("building {what}"));
    let start = Instant::now();
    run.visible(LIMIT)?;
    context.say(format!("built {what} in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}

/// What static programs are built for: musl when both its standard library and a C compiler for it are here, else this machine.
///
/// # Errors
///
/// When rustc does not name the machine.
pub(crate) fn static_triple(context: &Context) -> Result<String> {
    let host = context.host()?;
    let arch = host.split('-').next().unwrap_or(&host);
    let musl = format!("{arch}-unknown-linux-musl");
    let print =
        Run::new("rustc").current_dir(&context.root).args(["--print", "target-libdir", "--target", &musl]);
    let has_std = print.stdout().is_ok_and(|folder| Path::new(folder.trim()).is_dir());
    // The cryptography library is partly C.
    let has_cc =
        ["musl-gcc", &format!("{arch}-linux-musl-gcc")].iter().any(|cc| context.find_program(cc).is_some());
    Ok(if has_std && has_cc { musl } else { host })
}

/// Whether an ELF file has a PT_INTERP program header, the path of its dynamic loader.
fn needs_loader(program: &Path) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let bytes = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let number = |at: usize, len: usize| -> Result<u64> {
        let part = bytes.get(at..at + len).with_context(|| format!("{} is cut off", program.display()))?;
        // All supported targets but s390x are little-endian; byte 5 of the header says which.
        let fold = |acc: u64, byte: &u8| (acc << 8) | u64::from(*byte);
        Ok(if bytes.get(5) == Some(&2) { part.iter().fold(0, fold) } else { part.iter().rev().fold(0, fold) })
    };
    ensure!(bytes.starts_with(b"\x7fELF\x02"), "{} is no 64-bit ELF file", program.display());
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let at = usize::try_from(table + index * size)?;
        if number(at, 4)? == u64::from(PT_INTERP) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_other_files() {
        assert!(needs_loader(Path::new("/bin/sh")).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("text");
        std::fs::write(&file, "#!/bin/sh").unwrap();
        assert!(needs_loader(&file).is_err());
    }

    #[test]
    fn the_guest_is_built_for_an_architecture_of_this_host() {
        let context = Context::from_process().unwrap();
        let triple = static_triple(&context).unwrap();
        assert!(triple.starts_with(std::env::consts::ARCH), "{triple}");
        assert!(triple.contains("linux"), "{triple}");
    }
}

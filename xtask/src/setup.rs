//! Installs what a task needs and says so; elsewhere prints the one line to run.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::command::Run;
use crate::context::Context;

/// What the programs are needed for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Need {
    /// The demo and the benchmark.
    Demo,
    /// The tests, which include the demo.
    Tests,
}

/// A program, the Debian package that has it, and what it is for.
struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
    tests_only: bool,
}

const TOOLS: &[Tool] = &[
    tool("ip", "iproute2", "makes the stand-in node and pod namespaces", false),
    tool("tc", "iproute2", "looks for traffic rules that were left behind", false),
    tool("nft", "nftables", "looks for firewall rules that were left behind", false),
    tool("nsenter", "util-linux", "starts programs in a namespace", false),
    tool("git", "git", "tells which files changed", false),
    tool("cc", "gcc", "compiles the cryptography library and links", false),
    tool("genisoimage", "genisoimage", "makes ISO seed disks for tests", true),
    tool("mkfs.vfat", "dosfstools", "makes FAT seed disks for tests", true),
    tool("mcopy", "mtools", "fills FAT seed disks for tests", true),
    tool("curl", "curl", "asks the daemon for probe and metrics as others do", true),
    tool("openssl", "openssl", "checks certificates independently", true),
    tool("python3", "python3", "runs PyYAML, the reader of user data that counts", true),
];

const fn tool(program: &'static str, package: &'static str, why: &'static str, tests_only: bool) -> Tool {
    Tool { program, package, why, tests_only }
}

/// Something that only the reader can mend: the one line to run.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Installs what is missing for `need`.
///
/// # Errors
///
/// [`Missing`] with the line to run, where this is no Debian or Ubuntu or we are not root.
pub(crate) fn install(context: &Context, need: Need) -> Result<()> {
    let missing = missing(context, need);
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    let apt = context.find_program("apt-get");
    if apt.is_none() || !nix::unistd::geteuid().is_root() {
        return Err(Missing(advice(apt.is_some(), &packages)).into());
    }
    context.say("installing with apt-get:");
    for (package, why) in &missing {
        context.say(format!("  {package:<14} {why}"));
    }
    // A machine that was just made has no package lists; a stale list is noticed by the failure.
    if !has_package_lists(Path::new("/var/lib/apt/lists")) {
        apt_get(context, &["update", "-q"])?;
    }
    let mut args = vec!["install", "-q", "-y", "--no-install-recommends"];
    args.extend(&packages);
    if apt_get(context, &args).is_err() {
        apt_get(context, &["update", "-q"])?;
        apt_get(context, &args).context("mend the package sources of this machine and run again")?;
    }
    let left = self::missing(context, need);
    if left.is_empty() {
        return Ok(());
    }
    let left: Vec<&str> = left.iter().map(|(package, _)| *package).collect();
    Err(Missing(format!("apt-get installed {} but its programs are not found on PATH", left.join(" ")))
        .into())
}

/// Fails with one clear line unless we are root.
///
/// # Errors
///
/// [`Missing`] naming `task`.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let text =
        format!("{task} makes network namespaces and mounts and needs root: run it with sudo, or as root");
    Err(Missing(text).into())
}

fn missing(context: &Context, need: Need) -> Vec<(&'static str, &'static str)> {
    let mut missing: Vec<_> = TOOLS
        .iter()
        .filter(|tool| need == Need::Tests || !tool.tests_only)
        .filter(|tool| context.find_program(tool.program).is_none())
        .map(|tool| (tool.package, tool.why))
        .collect();
    if need == Need::Tests && !imports_yaml(context) {
        missing.push(("python3-yaml", "reads generated user data as cloud-init does"));
    }
    missing
}

/// Whether one of the interpreters that the tests try has PyYAML.
fn imports_yaml(context: &Context) -> bool {
    let candidates = context.find_program("python3").into_iter().chain(["/usr/bin/python3".into()]);
    candidates
        .filter(|python| python.exists())
        .any(|python| Run::new(python).args(["-c", "import yaml"]).stdout().is_ok())
}

fn advice(has_apt: bool, packages: &[&str]) -> String {
    let list = packages.join(" ");
    if has_apt {
        format!("programs are missing and only root can install them; run: sudo apt-get install -y {list}")
    } else {
        format!("programs are missing; install what your distribution calls (Debian names): {list}")
    }
}

fn has_package_lists(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(Result::ok).any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn apt_get(context: &Context, args: &[&str]) -> Result<()> {
    let run = context.program("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args);
    run.visible(std::time::Duration::from_secs(900)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_apt_the_advice_is_one_line_with_every_package() {
        let text = advice(false, &["iproute2", "nftables"]);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("iproute2 nftables"), "{text}");
        assert!(advice(true, &["git"]).contains("sudo apt-get install -y git"));
    }

    #[test]
    fn package_lists_are_told_from_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_package_lists(dir.path()));
        assert!(!has_package_lists(&dir.path().join("nosuch")));
        std::fs::write(dir.path().join("deb.example_main_binary-amd64_Packages.lz4"), "").unwrap();
        assert!(has_package_lists(dir.path()));
    }

    #[test]
    fn every_tool_says_why() {
        for tool in TOOLS {
            assert!(!tool.why.is_empty() && !tool.package.is_empty(), "{}", tool.program);
        }
    }
}

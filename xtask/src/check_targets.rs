//! `cargo xtask check-targets`: the light programs for other architectures, and tests of what is read and written as
//! bytes on an emulated one; see docs/development/targets.md.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::command::Run;
use crate::context::Context;
use crate::setup::{self, Need};
use crate::test::count;

const LIMIT: Duration = Duration::from_secs(90 * 60);

/// One architecture that machines of clouds have beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    /// What people call it.
    name: &'static str,
    /// What rustc calls it.
    triple: &'static str,
    /// What the C compiler and its folder are called.
    gnu: &'static str,
    /// What runs its programs here.
    emulator: &'static str,
}

const TARGETS: [Target; 2] = [
    Target {
        name: "aarch64",
        triple: "aarch64-unknown-linux-gnu",
        gnu: "aarch64-linux-gnu",
        emulator: "qemu-aarch64-static",
    },
    Target {
        name: "s390x",
        triple: "s390x-unknown-linux-gnu",
        gnu: "s390x-linux-gnu",
        emulator: "qemu-s390x-static",
    },
];

/// Packages whose programs are built, by what one does with them.
const PROGRAMS: [&str; 5] = ["peerpod-gateway", "podvm", "caa", "peerpod-ctrl", "testbed-cli"];

/// Packages whose unit tests run: codecs, names and texts, which must not depend on the order of bytes.
const TESTED: [(&str, &[&str]); 3] = [
    ("peerpod-proto", &["frame", "envelope", "wire", "status", "fuzz"]),
    ("cloud-providers", &["names", "tags", "initdata", "cloud_config", "options", "fuzz"]),
    ("peerpod-net", &["model", "mac", "fuzz"]),
];

/// The command line.
pub(crate) fn command() -> Command {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    Command::new("check-targets")
        .about(
            "Builds the light programs for other architectures, and tests codecs and names under emulation",
        )
        .arg(
            Arg::new("target")
                .long("target")
                .value_name("NAME")
                .value_parser(names)
                .action(ArgAction::Append)
                .help("This architecture only; may be given more than once"),
        )
        .arg(Arg::new("tests-only").long("tests-only").action(ArgAction::SetTrue).help("Build no program"))
}

/// Checks what was asked for.
///
/// # Errors
///
/// When something is missing, does not compile, or a test fails.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let wanted: Vec<&String> = matches.get_many::<String>("target").into_iter().flatten().collect();
    let chosen =
        TARGETS.iter().filter(|target| wanted.is_empty() || wanted.iter().any(|name| *name == target.name));
    let chosen: Vec<Target> = chosen.copied().collect();
    println!("{}", check(context, &chosen, matches.get_flag("tests-only"))?);
    Ok(ExitCode::SUCCESS)
}

/// Runs as a stage of the test: every architecture.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn stage(context: &Context) -> Result<String> {
    check(context, &TARGETS, false)
}

fn check(context: &Context, targets: &[Target], tests_only: bool) -> Result<String> {
    setup::install(context, Need::Targets)?;
    let mut said = Vec::new();
    for target in targets {
        have_std(context, *target)?;
        let tests = tested(context, *target)?;
        if !tests_only {
            let packages = PROGRAMS.iter().flat_map(|package| ["--package", package]);
            let cargo = cargo(context, *target).args(["build", "--locked", "--bins"]).args(packages);
            cargo.args(["--target", target.triple]).visible(LIMIT)?;
        }
        let built =
            if tests_only { String::new() } else { format!(", {} packages of programs", PROGRAMS.len()) };
        said.push(format!("{}: {tests}{built}", target.name));
    }
    Ok(said.join("; "))
}

/// Makes sure that the standard library of a target is there.
fn have_std(context: &Context, target: Target) -> Result<()> {
    let is_there = || {
        let libraries =
            context.program("rustc").args(["--print", "target-libdir", "--target", target.triple]);
        libraries.stdout().is_ok_and(|folder| std::path::Path::new(folder.trim()).is_dir())
    };
    if is_there() {
        return Ok(());
    }
    let add = ["target", "add", target.triple];
    let asked = context.program("rustup").args(add).stdout();
    if is_there() {
        return Ok(());
    }
    let why = asked.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
    Err(setup::Missing(format!(
        "the standard library of Rust for {} is missing: run `rustup {}`{why}",
        target.triple,
        add.join(" ")
    ))
    .into())
}

/// Runs the unit tests under the emulator, and returns how many there were.
fn tested(context: &Context, target: Target) -> Result<String> {
    let mut lines = Vec::new();
    for (package, modules) in TESTED {
        let run = cargo(context, target).args(["test", "--locked", "--lib", "--package", package]);
        let run = run.args(["--target", target.triple, "--"]).args(modules);
        lines.extend(run.visible(LIMIT).with_context(|| format!("{package} on {}", target.name))?);
    }
    let summary = count::summary(&lines)?;
    ensure!(!lines.is_empty(), "no test ran on {}", target.name);
    Ok(summary)
}

/// A cargo that compiles, links and runs for a target.
fn cargo(context: &Context, target: Target) -> Run {
    let upper = target.triple.replace('-', "_").to_uppercase();
    let lower = target.triple.replace('-', "_");
    let (compiler, folder) = (format!("{}-gcc", target.gnu), format!("/usr/{}", target.gnu));
    context
        .cargo()
        .env(&format!("CARGO_TARGET_{upper}_LINKER"), &compiler)
        .env(&format!("CARGO_TARGET_{upper}_RUNNER"), format!("{} -L {folder}", target.emulator))
        .env(&format!("CC_{lower}"), &compiler)
        .env(&format!("CXX_{lower}"), format!("{}-g++", target.gnu))
        .env(&format!("AR_{lower}"), format!("{}-ar", target.gnu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_of_bytes_and_all_light_programs_are_covered() {
        assert!(TARGETS.iter().any(|target| target.name == "s390x"), "the one with the other order of bytes");
        let metadata = Context::from_process().unwrap().metadata().unwrap();
        let packages: Vec<String> =
            metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();
        for package in PROGRAMS.iter().chain(TESTED.iter().map(|(package, _)| package)) {
            assert!(packages.iter().any(|found| found == package), "{package}");
        }
    }

    #[test]
    fn the_tools_of_a_target_are_named_to_cargo() {
        let run = cargo(&Context::from_process().unwrap(), TARGETS[1]);
        for (name, part) in [
            ("CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_LINKER", "s390x-linux-gnu-gcc"),
            ("CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_RUNNER", "qemu-s390x-static -L /usr/s390x-linux-gnu"),
            ("CC_s390x_unknown_linux_gnu", "s390x-linux-gnu-gcc"),
        ] {
            let value = run.variable(name);
            assert!(value.as_ref().is_some_and(|value| value.contains(part)), "{name}: {value:?}");
        }
    }
}

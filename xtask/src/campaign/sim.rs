//! `cargo xtask campaign sim`: the life of sandboxes under simulated faults, in virtual time.
//!
//! The simulation is a program of the daemon's package, `crates/caa/tests/sim`; this builds and runs it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::context::Context;

/// What every run of CI does, and what one with `--all` does.
const SEEDS: u64 = 2_000;
const MANY_SEEDS: u64 = 10_000;
/// A million seeds take some hours.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The command line.
pub(crate) fn command() -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .default_value(default)
            .value_parser(value_parser!(u64))
            .help(help)
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("sim")
        .about("Runs whole nodes in virtual time, with faults at every point, from seeds that replay")
        .arg(number("seeds", "2000", "How many seeds"))
        .arg(number("from", "0", "The first seed"))
        .arg(flag("trace", "Print what happens; with --seeds 1 --from SEED a run is looked at"))
        .arg(
            Arg::new("without")
                .long("without")
                .value_name("PROTECTION")
                .help("Take this protection of the daemon away"),
        )
        .arg(flag(
            "protections",
            "Take each protection away in turn: every one must be missed within the seeds",
        ))
        .arg(flag("release", "Build with optimisations first: worth it from some ten thousand seeds"))
}

/// Runs it by hand.
///
/// # Errors
///
/// When it does not build.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let mut cargo = context.cargo().args(["test", "--quiet", "--locked", "--package", "caa"]);
    cargo = cargo.args(["--features", "testing", "--test", "sim"]);
    if matches.get_flag("release") {
        cargo = cargo.arg("--release");
    }
    cargo = cargo.arg("--");
    for name in ["seeds", "from"] {
        let value = matches.get_one::<u64>(name).copied().unwrap_or_default();
        cargo = cargo.args([format!("--{name}"), value.to_string()]);
    }
    for name in ["trace", "protections"] {
        if matches.get_flag(name) {
            cargo = cargo.arg(format!("--{name}"));
        }
    }
    if let Some(protection) = matches.get_one::<String>("without") {
        cargo = cargo.args(["--without", protection]);
    }
    Ok(if cargo.visible(LIMIT).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs as a stage of every test: the seeds, and each protection taken away.
///
/// # Errors
///
/// When an invariant is broken, or a protection is not missed.
pub(crate) fn stage(context: &Context) -> Result<String> {
    of_workspace(context, &["--seeds", &SEEDS.to_string()])?;
    of_workspace(context, &["--seeds", &SEEDS.to_string(), "--protections"])?;
    Ok(format!("{SEEDS} seeds, and each protection is missed"))
}

/// Runs as a stage of the test with `--all`.
///
/// # Errors
///
/// When an invariant is broken.
pub(crate) fn stage_all(context: &Context) -> Result<String> {
    of_workspace(context, &["--seeds", &MANY_SEEDS.to_string()])?;
    Ok(format!("{MANY_SEEDS} seeds"))
}

/// With the packages and features of all stages, so that nothing is compiled once more.
fn of_workspace(context: &Context, arguments: &[&str]) -> Result<()> {
    let cargo = context.cargo().args(["test", "--quiet", "--locked", "--workspace", "--all-features"]);
    cargo.args(["--test", "sim", "--"]).args(arguments).visible(LIMIT)?;
    Ok(())
}

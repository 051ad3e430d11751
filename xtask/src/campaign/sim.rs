//! `cargo xtask campaign sim` and `campaign cluster`: simulated faults in virtual time.
//!
//! The simulations are programs of the packages whose code they run: `crates/caa/tests/sim` for the life of sandboxes,
//! `crates/peerpod-ctrl/tests/sim` for controllers and daemons of a cluster. This builds and runs them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::context::Context;
use crate::light;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Simulation {
    /// Name of the command.
    pub(crate) name: &'static str,
    about: &'static str,
    /// The package, and the target there.
    package: &'static str,
    target: &'static str,
    /// The features of the package, where its defaults would bring more than it needs.
    features: &'static [&'static str],
}

/// The life of sandboxes on one node.
pub(crate) const NODE: Simulation = Simulation {
    name: "sim",
    about: "Runs whole nodes in virtual time, with faults at every point, from seeds that replay",
    package: "caa",
    target: "sim",
    features: &["--features", "testing"],
};

/// Controllers and daemons of one cluster.
pub(crate) const CLUSTER: Simulation = Simulation {
    name: "cluster",
    about: "Runs controllers and daemons of a cluster in virtual time, with faults at every point, from seeds that replay",
    package: "peerpod-ctrl",
    target: "cluster-sim",
    features: &["--no-default-features", "--features", "testing"],
};

/// What every run of CI does, and what one with `--all` does.
const SEEDS: u64 = 2_000;
const MANY_SEEDS: u64 = 10_000;
/// A million seeds take some hours.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The command line.
pub(crate) fn command(simulation: Simulation) -> Command {
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
    Command::new(simulation.name)
        .about(simulation.about)
        .arg(number("seeds", "2000", "How many seeds"))
        .arg(number("from", "0", "The first seed"))
        .arg(flag("trace", "Print what happens; with --seeds 1 --from SEED a run is looked at"))
        .arg(
            Arg::new("without")
                .long("without")
                .value_name("PROTECTION")
                .help("Take this protection away; an unknown one names them all"),
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
pub(crate) fn run(context: &Context, simulation: Simulation, matches: &ArgMatches) -> Result<ExitCode> {
    let mut cargo = context.cargo().args(["test", "--quiet", "--locked", "--package", simulation.package]);
    cargo = cargo.args(simulation.features).args(["--test", simulation.target]);
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
pub(crate) fn stage(context: &Context, simulation: Simulation) -> Result<String> {
    of_workspace(context, simulation, &["--seeds", &SEEDS.to_string()])?;
    of_workspace(context, simulation, &["--seeds", &SEEDS.to_string(), "--protections"])?;
    Ok(format!("{SEEDS} seeds, and each protection is missed"))
}

/// Runs as a stage of the test with `--all`.
///
/// # Errors
///
/// When an invariant is broken.
pub(crate) fn stage_all(context: &Context, simulation: Simulation) -> Result<String> {
    of_workspace(context, simulation, &["--seeds", &MANY_SEEDS.to_string()])?;
    Ok(format!("{MANY_SEEDS} seeds"))
}

/// With the packages and features of all stages, so that nothing is compiled once more.
fn of_workspace(context: &Context, simulation: Simulation, arguments: &[&str]) -> Result<()> {
    let cargo = light::command(context, "test")?.arg("--quiet");
    cargo.args(["--test", simulation.target, "--"]).args(arguments).visible(LIMIT)?;
    Ok(())
}

//! `cargo xtask bench path`: the way of a byte between a shim and its agent, through chains that are compared in one run.
//!
//! Every chain has the same agent at its end and the same client at its beginning, and each message is one write. The
//! floor is a relay that copies bytes over the same two hops with mutual TLS and knows no frames. Chains take turns within
//! each row of each run, so that what else the machine does meets all of them; what the host disturbs is measured again.

mod chain;
mod extra;
mod goals;
pub(super) mod place;
pub(super) mod print;
mod rows;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;

use self::chain::Chain;
use self::extra::Extra;
use self::place::{Place, Programs};
use self::rows::Table;
use crate::bench::goals::{Goal, table};
use crate::bench::host::Undisturbed;
use crate::context::Context;
use crate::setup;
use crate::signals::Ends;

/// What was asked for on the command line.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    chains: Vec<Chain>,
    runs: usize,
    json: bool,
    quick: bool,
    /// What is measured.
    parts: Vec<Part>,
    /// Where the programs are, when they are not to be built.
    programs: Option<PathBuf>,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    Rows,
    Stalls,
    Memory,
    Neighbours,
    Dialling,
}

impl Part {
    const ALL: [Self; 5] = [Self::Rows, Self::Stalls, Self::Memory, Self::Neighbours, Self::Dialling];

    fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Stalls => "stalls",
            Self::Memory => "memory",
            Self::Neighbours => "neighbours",
            Self::Dialling => "dialling",
        }
    }
}

/// The command line.
pub(crate) fn command() -> Command {
    Command::new("path")
        .about("Measures the way between a shim and its agent, and says which goals are met")
        .after_help(chain::HELP)
        .arg(
            Arg::new("chain")
                .long("chain")
                .value_name("CHAIN")
                .action(ArgAction::Append)
                .value_parser(Chain::parse)
                .help(
                    "Compare this one too, in place of the further ones of ours; may be given more than once",
                ),
        )
        .arg(crate::number("runs", "How many runs; figures are medians [default: 3]"))
        .arg(
            Arg::new("programs")
                .long("programs")
                .value_name("FOLDER")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Run the programs in this folder in place of building them"),
        )
        .arg(crate::flag("quick", "One short run, to see that it works; its figures say little"))
        .arg(super::only(Part::ALL.map(Part::name)))
        .arg(crate::flag("rows-only", "The same as --only rows").conflicts_with("only"))
        .arg(crate::flag("json", "Print one JSON object; everything else goes to standard error"))
}

impl Options {
    /// Reads the flags of `bench path`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let given: Vec<Chain> =
            matches.get_many::<Chain>("chain").map(|chains| chains.cloned().collect()).unwrap_or_default();
        let quick = matches.get_flag("quick");
        let only: Vec<&String> = matches.get_many("only").map(Iterator::collect).unwrap_or_default();
        let is_asked_for = |part: &Part| match matches.get_flag("rows-only") {
            true => *part == Part::Rows,
            false => only.is_empty() || only.iter().any(|name| *name == part.name()),
        };
        Self {
            chains: Chain::with_floor(given),
            runs: matches.get_one::<usize>("runs").copied().unwrap_or(Self::default_runs(quick)),
            json: matches.get_flag("json"),
            quick,
            parts: Part::ALL.into_iter().filter(is_asked_for).collect(),
            programs: matches.get_one::<PathBuf>("programs").cloned(),
        }
    }

    /// Everything that goals are about, and nothing else.
    pub(super) fn judged(runs: usize, quick: bool) -> Self {
        let chains = Chain::judged();
        Self { chains, runs, json: false, quick, parts: Part::ALL.to_vec(), programs: None }
    }

    /// How many runs are judged unless somebody says so. Ratios of small calls change by a fifth from run to run, and with
    /// three of them the median does still.
    pub(super) fn judged_runs(quick: bool) -> usize {
        if quick { 1 } else { 7 }
    }

    /// How many runs there are unless somebody says so.
    fn default_runs(quick: bool) -> usize {
        if quick { 1 } else { 3 }
    }

    /// Whether standard output is for one JSON object alone.
    pub(crate) fn json(&self) -> bool {
        self.json
    }
}

/// All that was measured.
pub(super) struct Measured {
    rows: Option<Table>,
    extra: Extra,
    undisturbed: Undisturbed,
}

impl Measured {
    /// Judges the goals of what was measured.
    pub(super) fn goals(&self) -> Vec<Goal> {
        goals::judge(self.rows.as_ref(), &self.extra)
    }
}

/// Runs the benchmark. The code is that of a failure when a goal is missed.
///
/// # Errors
///
/// When a program cannot be built or started, or a call fails.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let measured = build_and_measure(context, options)?;
    let goals = measured.goals();
    if options.json {
        println!("{}", print::json(options, &measured, &goals));
    } else {
        print::tables(options, &measured);
        println!("\n{}", table(&[&goals]));
    }
    Ok(if goals.iter().all(|goal| goal.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a short benchmark as a stage of the test. Its figures are for information and decide nothing.
///
/// # Errors
///
/// As for [`run`].
pub(crate) fn stage(context: &Context) -> Result<String> {
    let chains = Chain::with_floor(Vec::new());
    let options = Options { chains, ..Options::judged(Options::default_runs(true), true) };
    let measured = build_and_measure(context, &options)?;
    let goals = measured.goals();
    print::tables(&options, &measured);
    println!("\n{}", table(&[&goals]));
    ensure!(!goals.is_empty(), "nothing was judged");
    Ok("figures are for information".to_owned())
}

fn build_and_measure(context: &Context, options: &Options) -> Result<Measured> {
    setup::require_root("cargo xtask bench path")?;
    let programs = match &options.programs {
        Some(folder) => Programs::find(folder)?,
        None => Programs::build(context)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut ends = Ends::watch(&runtime)?;
    measure(context, options, programs, &runtime, &mut ends)
}

/// Measures these programs, unless somebody asks us to end.
///
/// # Errors
///
/// When a program cannot be started, or a call fails.
pub(super) fn measure(
    context: &Context,
    options: &Options,
    programs: Programs,
    runtime: &Runtime,
    ends: &mut Ends,
) -> Result<Measured> {
    let stop = Arc::new(AtomicBool::new(false));
    let place = Place::new(context, programs, Arc::clone(&stop))?;
    let options = options.clone();
    let quiet = context.quiet_stdout;
    runtime.block_on(async {
        let mut work = spawn_blocking(move || {
            let measured = all(&place, &options, quiet);
            if measured.is_err() && !place.is_interrupted() {
                eprintln!("{}", place.logs());
            }
            measured
        });
        tokio::select! {
            biased;
            told = ends.told() => {
                // The work ends what it started before it returns.
                stop.store(true, Ordering::Relaxed);
                let _ = work.await;
                Err(told)
            }
            measured = &mut work => measured.context("the measurement panicked")?,
        }
    })
}

fn all(place: &Place, options: &Options, quiet: bool) -> Result<Measured> {
    let say = |text: &str| if quiet { eprintln!("{text}") } else { println!("{text}") };
    let mut undisturbed = Undisturbed::new(options.quick);
    let rows = options.parts.contains(&Part::Rows);
    let rows = rows.then(|| rows::measure(place, options, &mut undisturbed, &say)).transpose()?;
    let extra = extra::measure(place, options, &mut undisturbed, &say)?;
    Ok(Measured { rows, extra, undisturbed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(args: &[&str]) -> Result<Vec<Part>, clap::Error> {
        let matches = command().try_get_matches_from([&["path"], args].concat())?;
        Ok(Options::from_matches(&matches).parts)
    }

    #[test]
    fn all_is_measured_unless_parts_are_named() {
        assert_eq!(parts(&[]).unwrap(), Part::ALL);
        assert_eq!(parts(&["--only", "memory,stalls"]).unwrap(), [Part::Stalls, Part::Memory]);
        assert_eq!(parts(&["--rows-only"]).unwrap(), [Part::Rows]);
        assert!(parts(&["--only", "memroy"]).unwrap_err().to_string().contains("neighbours"));
    }
}

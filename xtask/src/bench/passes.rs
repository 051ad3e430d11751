//! `cargo xtask bench goals`: everything that goals are about, and one table that says which of them are met.
//!
//! All programs are built before anything is measured, so that no compiler runs beside a measurement or between two.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{ArgMatches, Command};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::goals::{Goal, judged, table};
use super::host::Ticks;
use super::path::place;
use super::{footprint, path, start};
use crate::context::Context;
use crate::machines::Provider;
use crate::signals::Ends;

const HELP: &str = "\
Parts:
  path       what `bench path` measures, with all of its parts
  start      what `bench start` measures with the provider local: times of starts, and memory of the daemon
  footprint  sizes of programs as they ship, against `at_most` of xtask/limits.toml; how soon each of them prints its
             version; memory of the daemon, for which it makes the same starts as start

The programs are those that ship, and are built before anything is measured, which takes minutes the first time. A pass
takes some minutes, in which the machine should have nothing else to do. It needs root, `ip` and `nft`.
The exit code is 0 when every pass meets every goal, and 1 when one is missed.
Examples:
  cargo xtask bench goals --repeat 3
  cargo xtask bench goals --only start,footprint --json";

/// The one whose machines are there at once: the boot of a virtual one would hide what our programs take.
const PROVIDER: Provider = Provider::Local;
/// How often each program is asked for its version.
const VERSIONS: usize = 21;
const VERSIONS_QUICK: usize = 3;

/// A part of a pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Path,
    Start,
    Footprint,
}

impl Part {
    const ALL: [Self; 3] = [Self::Path, Self::Start, Self::Footprint];

    fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Start => "start",
            Self::Footprint => "footprint",
        }
    }
}

/// The command line.
pub(super) fn command() -> Command {
    Command::new("goals")
        .about("Measures everything that goals are about, and says of each whether it is met")
        .after_help(HELP)
        .arg(crate::number(
            "runs",
            "How many runs of path there are in a pass; figures are medians [default: 7]",
        ))
        .arg(crate::number("repeat", "How many passes there are, one after another [default: 1]"))
        .arg(super::only(Part::ALL.map(Part::name)))
        .arg(crate::flag("quick", "Short ones, to see that it works; their figures say little"))
        .arg(crate::flag("json", "Print one JSON object; everything else goes to standard error"))
}

/// What was asked for on the command line.
#[derive(Debug)]
pub(super) struct Options {
    parts: Vec<Part>,
    runs: usize,
    repeat: usize,
    quick: bool,
    json: bool,
}

impl Options {
    /// Reads the flags of `bench goals`.
    ///
    /// # Errors
    ///
    /// When runs are counted of what is not measured.
    pub(super) fn from_matches(matches: &ArgMatches) -> Result<Self> {
        let only: Vec<&String> = matches.get_many("only").map(Iterator::collect).unwrap_or_default();
        let is_asked_for = |part: &Part| only.is_empty() || only.iter().any(|name| *name == part.name());
        let parts: Vec<Part> = Part::ALL.into_iter().filter(is_asked_for).collect();
        let number = |name: &str| matches.get_one::<usize>(name).copied();
        let quick = matches.get_flag("quick");
        let runs = number("runs");
        ensure!(
            runs.is_none() || parts.contains(&Part::Path),
            "--runs counts runs of path, which --only leaves out: add path to it, or take --runs away"
        );
        Ok(Self {
            parts,
            runs: runs.unwrap_or(path::Options::judged_runs(quick)),
            repeat: number("repeat").unwrap_or(1),
            quick,
            json: matches.get_flag("json"),
        })
    }

    /// Whether standard output is for one JSON object alone.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn path(&self) -> path::Options {
        path::Options::judged(self.runs, self.quick)
    }

    fn start(&self) -> start::Options {
        if self.quick { start::Options::quick(PROVIDER) } else { start::Options::usual(PROVIDER) }
    }
}

/// What is measured.
struct Programs {
    path: Option<place::Programs>,
    start: Option<start::Programs>,
    footprint: Vec<footprint::Program>,
}

impl Programs {
    fn build(context: &Context, options: &Options) -> Result<Self> {
        let footprint = options.has(Part::Footprint).then(|| footprint::build(context)).transpose()?;
        let path = options.has(Part::Path).then(|| place::Programs::build(context)).transpose()?;
        let start = options.has(Part::Start) || options.has(Part::Footprint);
        let start = start.then(|| start::Programs::build(context, PROVIDER)).transpose()?;
        Ok(Self { path, start, footprint: footprint.unwrap_or_default() })
    }
}

/// What one pass found.
struct Pass {
    goals: Vec<Goal>,
    /// The figures of each part.
    json: Map<String, Value>,
}

/// Runs everything. The code is that of a failure when a goal is missed.
///
/// # Errors
///
/// When a program cannot be built or started, or does not do what is measured.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    start::prepare(context, PROVIDER)?;
    let programs = Programs::build(context, options)?;
    // From here on signals are told to whoever measures. Before, they end compilers and us.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut ends = Ends::watch(&runtime)?;
    let mut passes: Vec<Pass> = Vec::new();
    for number in 1..=options.repeat {
        if options.repeat > 1 {
            context.say(format!("\npass {number} of {}", options.repeat));
        }
        let pass = measure(context, options, &programs, &runtime, &mut ends)?;
        if options.repeat > 1 {
            context.say(format!("\n{}", table(&[&pass.goals])));
        }
        passes.push(pass);
    }
    let goals: Vec<&[Goal]> = passes.iter().map(|pass| pass.goals.as_slice()).collect();
    let all_met = judged(&goals).iter().all(|goal| goal.met);
    if options.json {
        println!("{}", to_json(context, options, &passes));
    } else {
        println!("\n{}", table(&goals));
    }
    Ok(if all_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures every part once, and prints what has no verdict.
fn measure(
    context: &Context,
    options: &Options,
    programs: &Programs,
    runtime: &Runtime,
    ends: &mut Ends,
) -> Result<Pass> {
    let mut pass = Pass { goals: Vec::new(), json: Map::new() };
    let begin = Ticks::now()?;
    if let Some(programs) = &programs.path {
        let options = options.path();
        let measured = path::measure(context, &options, programs.clone(), runtime, ends)?;
        let goals = measured.goals();
        if !context.quiet_stdout {
            path::print::tables(&options, &measured);
        }
        pass.json.insert("path".into(), path::print::json(&options, &measured, &goals));
        pass.goals.extend(goals);
    }
    if let Some(programs) = &programs.start {
        let how = options.start();
        let measured = start::measure(context, &how, programs, runtime, ends)?;
        // The footprint has its memory from here: after as many starts, so that it is the same figure.
        let has_times = options.has(Part::Start);
        let goals = if has_times { measured.goals(&how) } else { measured.memory(&how) };
        if !context.quiet_stdout {
            start::print::tables(&how, &measured);
        }
        pass.json.insert("start".into(), start::print::json(&how, &measured, &goals));
        pass.goals.extend(goals);
    }
    if options.has(Part::Footprint) {
        let versions = if options.quick { VERSIONS_QUICK } else { VERSIONS };
        let rows = footprint::measure(&programs.footprint, versions, runtime, ends)?;
        let goals = footprint::goals(&rows);
        if !context.quiet_stdout {
            footprint::tables(&rows);
        }
        pass.json.insert("footprint".into(), footprint::json(&rows, &goals));
        pass.goals.extend(goals);
    }
    let percent = begin.stolen_since()? * 100.0;
    context.say(format!("\nthe host gave {percent:.1} % of the processors' time to others"));
    pass.json.insert("host_gave_to_others_percent".into(), percent.into());
    Ok(pass)
}

fn to_json(context: &Context, options: &Options, passes: &[Pass]) -> Value {
    let goals: Vec<&[Goal]> = passes.iter().map(|pass| pass.goals.as_slice()).collect();
    let goals = judged(&goals);
    json!({
        "commit": context.commit(),
        "quick": options.quick,
        "passes": passes.iter().map(|pass| &pass.json).collect::<Vec<_>>(),
        "goals": goals,
        "all_met": goals.iter().all(|goal| goal.met),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options> {
        let words = std::iter::once("goals").chain(line.split_whitespace());
        Options::from_matches(&command().try_get_matches_from(words)?)
    }

    #[test]
    fn everything_is_measured_once_unless_parts_are_named() {
        let all = options("").unwrap();
        assert_eq!((all.parts.as_slice(), all.runs, all.repeat), (&Part::ALL[..], 7, 1));
        let some = options("--only footprint,path --runs 5 --repeat 3").unwrap();
        assert_eq!((some.parts, some.runs, some.repeat), (vec![Part::Path, Part::Footprint], 5, 3));
        assert_eq!(options("--quick").unwrap().runs, 1);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        let error = |line: &str| options(line).unwrap_err().to_string();
        assert!(error("--only footprnit").contains("[possible values: path, start, footprint]"));
        assert!(error("--repeat 0").contains("--repeat"));
        assert!(error("--runs x").contains("--runs"));
        assert!(error("--only start --runs 3").contains("add path"));
    }

    #[test]
    fn one_missed_goal_of_one_pass_misses_all_in_json_too() {
        let context = Context::from_process().unwrap();
        let pass = |figure| Pass { goals: vec![Goal::at_most("time", figure, 1.0)], json: Map::new() };
        let json = |passes: &[Pass]| to_json(&context, &options("").unwrap(), passes);
        assert_eq!(json(&[pass(1.0), pass(0.5)])["all_met"], true);
        let missed = json(&[pass(1.0), pass(1.5)]);
        assert_eq!(missed["all_met"], false);
        assert_eq!(missed["goals"][0]["figures"], json!([1.0, 1.5]));
        assert_eq!(missed["passes"].as_array().unwrap().len(), 2);
    }
}

//! `cargo xtask test`: stages, fast to slow.

pub(crate) mod count;
mod stages;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ArgMatches;

use self::stages::Stage;
use crate::command::Beside;
use crate::context::Context;
use crate::inputs::{GreenRuns, Inputs};
use crate::{kubernetes, setup};

/// A target directory that has grown beyond this is built anew.
const TARGET_LIMIT: u64 = 24_000_000_000;

/// What all stages of a run from nothing write, in bytes: 12 GB of artefacts, and folders of tests that go with them.
const TARGET_SPACE: u64 = 15_000_000_000;

/// What was asked for on the command line.
#[derive(Debug, Default)]
pub(crate) struct Options {
    all: bool,
    list: bool,
    only: Vec<String>,
}

impl Options {
    /// Reads the flags of `test`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        Self {
            all: matches.get_flag("all"),
            list: matches.get_flag("list"),
            only: matches.get_many::<String>("stage").into_iter().flatten().cloned().collect(),
        }
    }
}

/// How a stage ended.
enum Outcome {
    Ok(String),
    /// The commit at which it was green, and what it said then.
    Unchanged(String, String),
    /// Why it was not run.
    LeftOut(&'static str),
    Failed(anyhow::Error),
}

/// Runs all light stages, then the heavy ones up to the first that fails.
///
/// # Errors
///
/// Fails when a program is missing that cannot be installed, or a stage is not known. A failing stage is an exit code.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let metadata = context.metadata()?;
    let stages = stages::all(&metadata);
    if options.list {
        for stage in &stages {
            let kind = match (stage.heavy, stage.on_demand) {
                (_, Some(_)) => "--all",
                (true, None) => "heavy",
                (false, None) => "light",
            };
            println!("{:<40} {kind:<6} {}", stage.name, stage.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let known: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    for name in &options.only {
        let known_name = known.iter().any(|stage| matches(stage, name));
        ensure!(known_name, "there is no stage {name}: the stages are {}", known.join(", "));
    }
    let chosen: Vec<&Stage> = stages
        .iter()
        .filter(|stage| options.only.is_empty() || options.only.iter().any(|name| matches(&stage.name, name)))
        .collect();
    ensure!(!chosen.is_empty(), "no stage was chosen");

    if chosen.iter().any(|stage| stage.root) {
        setup::require_root("cargo xtask test")?;
    }
    setup::install(context, setup::Need::Tests)?;
    std::fs::create_dir_all(&context.cache)
        .with_context(|| format!("cannot make the cache {}", context.cache.display()))?;
    context.bound_target(TARGET_LIMIT)?;
    if options.only.is_empty() {
        context.require_space(TARGET_SPACE)?;
    }
    println!("cache: {}   target: {}", context.cache.display(), context.target.display());

    let inputs = Inputs::new(context, &metadata)?;
    let green = GreenRuns::new(context);
    let commit = context.commit();
    let whole = Instant::now();
    let mut rows = Vec::new();
    let mut failed = None;
    // It takes as long as the light stages, which have a core to spare most of the time.
    let wants_cluster = |stage: &&&Stage| {
        stage.extra.iter().any(|input| input == kubernetes::FILE)
            && (options.all || !options.only.is_empty() || stage.on_demand.is_none())
            && !stage.hash(&inputs).is_ok_and(|hash| green.find(&stage.name, &hash).is_some())
    };
    let _beside = match chosen.iter().find(wants_cluster) {
        Some(_) => kubernetes::begin(context)?,
        None => None,
    };
    let mut begun = None;
    let forced = options.all || !options.only.is_empty();
    for stage in &chosen {
        // The light stages all run, so that one run tells all that they find.
        if stage.heavy && failed.is_some() {
            break;
        }
        if stage.heavy && begun.is_none() {
            begun = Some(begin(context, &chosen, &inputs, &green, forced)?);
        }
        if let Some(why) = stage.on_demand.filter(|_| !forced) {
            rows.push((stage.name.clone(), Duration::ZERO, Outcome::LeftOut(why)));
            continue;
        }
        println!("\n=== {} ({}) ===", stage.name, stage.about);
        let start = Instant::now();
        let beside = begun.as_mut().and_then(|begun| begun.remove(&stage.name));
        let outcome = run_stage(context, stage, &inputs, &green, &commit, forced, beside);
        let took = start.elapsed();
        println!("--- {}: {} in {:.1} s", stage.name, outcome.word(), took.as_secs_f64());
        if let Outcome::Failed(error) = &outcome {
            println!("{error:#}");
            failed.get_or_insert((stage.name.clone(), format!("{error:#}")));
        }
        rows.push((stage.name.clone(), took, outcome));
    }
    print_table(&rows, known.len(), whole.elapsed());
    if let Some((name, error)) = failed {
        println!("\nfailed: {name}: {error}\nrepeat it with: cargo xtask test --stage {name}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Begins the stages that run beside others, where they are to run at all.
fn begin(
    context: &Context,
    chosen: &[&Stage],
    inputs: &Inputs<'_>,
    green: &GreenRuns,
    forced: bool,
) -> Result<BTreeMap<String, Beside>> {
    let mut begun = BTreeMap::new();
    for stage in chosen {
        let Some(begin) = stage.begin.filter(|_| forced || stage.on_demand.is_none()) else { continue };
        if forced || green.find(&stage.name, &stage.hash(inputs)?).is_none() {
            begun.insert(stage.name.clone(), begin(context)?);
        }
    }
    Ok(begun)
}

/// Whether `wanted` names the stage, or the group before its colon.
fn matches(stage: &str, wanted: &str) -> bool {
    stage == wanted || stage.split_once(':').is_some_and(|(group, _)| group == wanted)
}

fn run_stage(
    context: &Context,
    stage: &Stage,
    inputs: &Inputs<'_>,
    green: &GreenRuns,
    commit: &str,
    forced: bool,
    beside: Option<Beside>,
) -> Outcome {
    let hash = if stage.heavy {
        match stage.hash(inputs) {
            Ok(hash) => Some(hash),
            Err(error) => return Outcome::Failed(error),
        }
    } else {
        None
    };
    if let Some(since) = hash.as_ref().filter(|_| !forced).and_then(|hash| green.find(&stage.name, hash)) {
        return Outcome::Unchanged(since.0, since.1);
    }
    let done = match beside {
        Some(beside) => stages::ended(beside),
        None => (stage.work)(context),
    };
    let done = done.and_then(|summary| {
        if let Some(hash) = &hash {
            green.record(&stage.name, hash, commit, &summary)?;
        }
        Ok(summary)
    });
    done.map_or_else(Outcome::Failed, Outcome::Ok)
}

impl Outcome {
    fn word(&self) -> String {
        match self {
            Self::Ok(summary) if summary.is_empty() => "ok".to_owned(),
            Self::Ok(summary) => format!("ok, {summary}"),
            Self::Unchanged(commit, summary) if summary.is_empty() => format!("unchanged since {commit}"),
            Self::Unchanged(commit, summary) => format!("unchanged since {commit}: {summary}"),
            Self::LeftOut(why) => format!("only with --all: {why}"),
            Self::Failed(_) => "FAILED".to_owned(),
        }
    }
}

fn print_table(rows: &[(String, Duration, Outcome)], of: usize, whole: Duration) {
    println!("\n{:<40} {:>9}  outcome", "stage", "seconds");
    for (name, took, outcome) in rows {
        println!("{name:<40} {:>9.1}  {}", took.as_secs_f64(), outcome.word());
    }
    let ran = rows.iter().filter(|(_, _, outcome)| !matches!(outcome, Outcome::LeftOut(_))).count();
    println!("{:<40} {:>9.1}  {} of {of} stages", "together", whole.as_secs_f64(), ran);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_names_all_its_stages() {
        assert!(matches("integration:caa", "integration"));
        assert!(matches("integration:caa", "integration:caa"));
        assert!(!matches("integration:caa", "integration:podvm"));
        assert!(!matches("integration", "integ"));
    }
}

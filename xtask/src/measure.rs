//! `cargo xtask measure`: what each choice of providers costs: time and memory to compile it, size, and idle memory.
//! Run by hand: every row is a build from nothing.

mod idle;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

use self::watch::Watch;
use crate::bundle::{self, Chooser, Set};
use crate::context::Context;

const LIMIT: Duration = Duration::from_secs(60 * 60);

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Options {
    all: bool,
    sets: Vec<String>,
    packages: Vec<String>,
    profile: String,
    json: bool,
}

/// What one build cost.
#[derive(Debug)]
struct Row {
    package: String,
    set: String,
    packages: usize,
    wall: Duration,
    cpu: Duration,
    /// The most memory of one compiler, in KiB.
    compiler: u64,
    /// The most memory of all compilers at one moment, in KiB.
    compilers: u64,
    /// Sizes of the programs, in bytes.
    sizes: Vec<(String, u64)>,
    /// Memory of the program that serves a provider and has nothing to do, in KiB, or why there is none.
    idle: Result<u64, String>,
}

impl Options {
    /// Reads the flags of `measure`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        Self {
            all: matches.get_flag("all"),
            sets: matches.get_many("set").into_iter().flatten().cloned().collect(),
            packages: matches.get_many("package").into_iter().flatten().cloned().collect(),
            profile: matches.get_one::<String>("profile").cloned().unwrap_or_default(),
            json: matches.get_flag("json"),
        }
    }

    /// Whether standard output is for one JSON object alone.
    pub(crate) fn json(&self) -> bool {
        self.json
    }
}

/// The command line of `measure`.
pub(crate) fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("measure")
        .about("Builds each choice of providers from nothing and tells time, memory and sizes")
        .arg(flag("all", "Also with providers that contain the SDK of a vendor"))
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Only this set: none, a provider, light or all; may be given more than once"),
        )
        .arg(
            Arg::new("package")
                .long("package")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Only the programs of this package; may be given more than once"),
        )
        .arg(
            Arg::new("profile")
                .long("profile")
                .value_name("NAME")
                .default_value("release")
                .help("The profile of cargo"),
        )
        .arg(flag("json", "Print one JSON object; everything else goes to standard error"))
}

/// Runs the task.
///
/// # Errors
///
/// When something does not build.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let metadata = context.metadata()?;
    let providers = bundle::providers(&metadata)?;
    let mut sets = bundle::sets(&providers, options.all || !options.sets.is_empty());
    for name in &options.sets {
        let known: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
        ensure!(known.contains(&name.as_str()), "there is no set {name}: the sets are {}", known.join(", "));
    }
    sets.retain(|set| options.sets.is_empty() || options.sets.contains(&set.name));
    let mut choosers = bundle::choosers(&metadata, &providers)?;
    for name in &options.packages {
        let known: Vec<&str> = choosers.iter().map(|chooser| chooser.package.as_str()).collect();
        ensure!(
            known.contains(&name.as_str()),
            "{name} has no choice: the packages are {}",
            known.join(", ")
        );
    }
    choosers.retain(|chooser| options.packages.is_empty() || options.packages.contains(&chooser.package));
    let mut rows = Vec::new();
    for chooser in choosers {
        for set in &sets {
            let start = idle::how_to_start(&metadata, &providers, set)?;
            rows.push(measure(context, options, &chooser, set, &start)?);
        }
    }
    if options.json {
        println!("{:#}", to_json(context, options, &rows));
    } else {
        println!("\n{}", table(&rows));
        println!(
            "profile {}, {}, {} jobs; `packages` are those linked, `compiler` is the largest one and, after the \
             slash, all at one moment",
            options.profile,
            context.rustc.lines().next().unwrap_or_default(),
            std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds one set in an empty target folder.
fn measure(
    context: &Context,
    options: &Options,
    chooser: &Chooser,
    set: &Set,
    start: &Result<idle::Start, String>,
) -> Result<Row> {
    std::fs::create_dir_all(&context.target)?;
    let target = tempfile::Builder::new().prefix("measure-").tempdir_in(&context.target)?;
    let packages = bundle::linked(context, &chooser.package, set, &context.host()?)?.len();
    // What is still to be downloaded is no part of the cost.
    context.cargo().args(["fetch", "--quiet", "--locked"]).visible(LIMIT)?;
    let (cpu, clock) = (children_cpu()?, Instant::now());
    let watch = Watch::start();
    let args = ["build", "--quiet", "--locked", "--bins", "--package", &chooser.package];
    let run = context.cargo().args(args).args(["--profile", &options.profile]).args(set.args());
    run.env("CARGO_TARGET_DIR", target.path()).visible(LIMIT)?;
    let (wall, cpu) = (clock.elapsed(), children_cpu()?.saturating_sub(cpu));
    let (compiler, compilers) = watch.end();
    ensure!(compiler > 0, "no compiler was seen: /proc must be readable");
    // Cargo's name of the profile of development is not that of its folder.
    let folder = target.path().join(if options.profile == "dev" { "debug" } else { &options.profile });
    let mut sizes = Vec::new();
    for bin in &chooser.bins {
        let path = folder.join(bin);
        let meta = path.metadata().with_context(|| format!("cargo built no {}", path.display()))?;
        sizes.push((bin.clone(), meta.len()));
    }
    let idle = match start {
        Err(why) => Err(why.clone()),
        Ok(start) => idle::measure(&folder, &chooser.bins, start),
    };
    Ok(Row {
        package: chooser.package.clone(),
        set: set.name.clone(),
        packages,
        wall,
        cpu,
        compiler,
        compilers,
        sizes,
        idle,
    })
}

/// The processor time of all children that ended, and of theirs.
fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("the kernel tells no usage of children")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![format!(
        "{:<20} {:>8} {:>8} {:>8} {:>16}  {:<44} {}",
        "build", "packages", "wall s", "CPU s", "compiler MiB", "sizes", "idle"
    )];
    for row in rows {
        let sizes: Vec<String> =
            row.sizes.iter().map(|(bin, bytes)| format!("{bin} {:.1} MB", *bytes as f64 / 1e6)).collect();
        let idle = match &row.idle {
            Ok(kib) => format!("{:.1} MiB", *kib as f64 / 1024.0),
            Err(why) => format!("none: {why}"),
        };
        lines.push(format!(
            "{:<20} {:>8} {:>8.1} {:>8.1} {:>16}  {:<44} {idle}",
            format!("{} with {}", row.package, row.set),
            row.packages,
            row.wall.as_secs_f64(),
            row.cpu.as_secs_f64(),
            format!("{} / {}", row.compiler / 1024, row.compilers / 1024),
            sizes.join(", "),
        ));
    }
    lines.join("\n")
}

fn to_json(context: &Context, options: &Options, rows: &[Row]) -> Value {
    let row = |row: &Row| {
        json!({
            "package": row.package,
            "set": row.set,
            "linked_packages": row.packages,
            "wall_seconds": row.wall.as_secs_f64(),
            "cpu_seconds": row.cpu.as_secs_f64(),
            "largest_compiler_kib": row.compiler,
            "all_compilers_kib": row.compilers,
            "bytes": row.sizes.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "idle_kib": row.idle.as_ref().ok(),
            "no_idle_because": row.idle.as_ref().err(),
        })
    };
    json!({
        "commit": context.commit(),
        "rustc": context.rustc.lines().next(),
        "profile": options.profile,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_costs_and_why_there_is_no_idle_memory() {
        let row = Row {
            package: "caa".into(),
            set: "none".into(),
            packages: 154,
            wall: Duration::from_secs(300),
            cpu: Duration::from_secs(360),
            compiler: 1_048_576,
            compilers: 2_097_152,
            sizes: vec![("caactl".into(), 4_200_000)],
            idle: Err("there is no provider to serve".into()),
        };
        let text = table(&[row]);
        for part in ["caa with none", "300.0", "1024 / 2048", "caactl 4.2 MB", "none: there is no provider"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn processor_time_of_children_grows_with_their_work() {
        let before = children_cpu().unwrap();
        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        crate::command::Run::new("sh").args(["-c", work]).stdout().unwrap();
        assert!(children_cpu().unwrap() > before);
    }
}

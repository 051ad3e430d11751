//! `cargo xtask fuzz`: hostile input for a while; see docs/development/fuzzing.md.

mod targets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::{Metadata, Package};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use self::targets::Target;
use crate::command::Beside;
use crate::context::Context;
use crate::light;

/// How long each target runs unless told otherwise.
const SECONDS: u64 = 60;

/// Where the random choices of the stage begin. What keeps a change from landing must not be chance: a run on a faster
/// machine goes on from where a slower one ends, and looking elsewhere is a run by hand.
const STAGE_SEED: u64 = 1;

/// Targets that run at the same time: machines of continuous integration have two cores.
const BESIDE: usize = 2;

/// What a target may take beyond its time: its seeds, and making what it found shorter.
const GRACE: Duration = Duration::from_secs(300);

/// The package that targets are made with.
const SUPPORT: &str = "fuzz-support";

// Its variables.
const VAR_SECONDS: &str = "PEERPOD_FUZZ_SECONDS";
const VAR_SEED: &str = "PEERPOD_FUZZ_SEED";
const VAR_REPEAT: &str = "PEERPOD_FUZZ_REPEAT";
const VAR_FOLDER: &str = "PEERPOD_FUZZ_FOLDER";

/// The command line.
pub(crate) fn command() -> Command {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("NUMBER").value_parser(clap::value_parser!(u64)).help(help)
    };
    Command::new("fuzz")
        .about("Gives hostile input to what reads it, and keeps what breaks")
        .arg(number("seconds", "How long each target runs [default: 60]"))
        .arg(
            Arg::new("target")
                .long("target")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Run this target only; may be given more than once"),
        )
        .arg(number("seed", "Where the random choices begin [default: the commit's number]"))
        .arg(
            Arg::new("repeat")
                .long("repeat")
                .value_name("FILE")
                .requires("target")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Run this input alone"),
        )
        .arg(Arg::new("list").long("list").action(ArgAction::SetTrue).help("List the targets and end"))
}

/// How the targets run.
struct Plan {
    seconds: u64,
    seed: u64,
    repeat: Option<PathBuf>,
    folder: PathBuf,
}

/// Runs the targets that were asked for.
///
/// # Errors
///
/// When a target is not known, does not compile, or found something.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let all = targets::find(context)?;
    if matches.get_flag("list") {
        for target in &all {
            println!("{:<20} {}", target.name, target.package);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let wanted: Vec<&String> = matches.get_many::<String>("target").into_iter().flatten().collect();
    for name in &wanted {
        let known: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
        ensure!(
            known.contains(&name.as_str()),
            "there is no target {name}: the targets are {}",
            known.join(", ")
        );
    }
    let chosen: Vec<Target> =
        all.into_iter().filter(|target| wanted.is_empty() || wanted.contains(&&target.name)).collect();
    let repeat = matches.get_one::<PathBuf>("repeat").map(|file| {
        file.canonicalize().with_context(|| format!("the input {} cannot be read", file.display()))
    });
    let plan = Plan {
        seconds: matches.get_one("seconds").copied().unwrap_or(SECONDS),
        seed: matches.get_one("seed").copied().unwrap_or_else(|| seed(&context.commit())),
        repeat: repeat.transpose()?,
        folder: context.target.join("fuzz"),
    };
    ensure!(plan.repeat.is_none() || chosen.len() == 1, "--repeat is for one target: give one --target");
    println!("{}", run_all(context, &chosen, &plan)?);
    Ok(ExitCode::SUCCESS)
}

/// Begins the stage of the test, every target for a minute, beside the stages before it. Its priority is the lowest:
/// it gets what they leave while they wait.
///
/// # Errors
///
/// When it cannot be started.
pub(crate) fn begin(context: &Context) -> Result<Beside> {
    let log = context.cache.join("fuzz.log");
    context.say(format!("hostile input runs beside the next stages; it tells of it in {}", log.display()));
    let program = std::env::current_exe().context("this program does not know where it lies")?;
    context
        .program("nice")
        .args(["-n", "19"])
        .arg(program)
        .args(["fuzz", "--seed", &STAGE_SEED.to_string()])
        .beside(&log)
}

/// The packages with targets, and those that run them.
pub(crate) fn packages(metadata: &Metadata) -> Vec<String> {
    let has = |package: &&Package| package.dependencies.iter().any(|dependency| dependency.name == SUPPORT);
    let packages =
        metadata.workspace_packages().into_iter().filter(has).map(|package| package.name.to_string());
    packages.chain([SUPPORT, "xtask"].map(str::to_owned)).collect()
}

/// Two runs of one commit look at the same inputs, and the next commit looks elsewhere.
fn seed(commit: &str) -> u64 {
    commit.get(..8).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(1)
}

fn run_all(context: &Context, targets: &[Target], plan: &Plan) -> Result<String> {
    let programs = build(context)?;
    context.say(format!("seed {}; findings go to {}", plan.seed, plan.folder.display()));
    let queue = Mutex::new(targets.iter());
    let (done, failed) = (Mutex::new(0u64), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..BESIDE {
            scope.spawn(|| {
                loop {
                    let Some(target) = queue.lock().expect("no thread panics with it").next() else { break };
                    match run_one(context, target, plan, &programs) {
                        Ok((line, executions)) => {
                            context.say(line);
                            *done.lock().expect("no thread panics with it") += executions;
                        }
                        Err(error) => {
                            context.say(format!("{error:#}"));
                            failed.lock().expect("no thread panics with it").push(target.name.clone());
                        }
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("no thread panics with it");
    failed.sort();
    ensure!(failed.is_empty(), "something was found in: {}", failed.join(", "));
    let done = done.into_inner().expect("no thread panics with it");
    Ok(format!("{} targets, {done} executions, seed {}", targets.len(), plan.seed))
}

/// Runs one target, and returns what it says with the number of its executions.
fn run_one(
    context: &Context,
    target: &Target,
    plan: &Plan,
    programs: &BTreeMap<String, PathBuf>,
) -> Result<(String, u64)> {
    let name = &target.name;
    let program =
        programs.get(&target.package).with_context(|| format!("{} has no unit tests", target.package))?;
    let mut run = context
        .program(program)
        .args(["--exact", &target.test, "--nocapture", "--test-threads=1"])
        .env(VAR_SECONDS, plan.seconds.to_string())
        .env(VAR_SEED, plan.seed.to_string())
        .env(VAR_FOLDER, &plan.folder)
        .env("RUST_BACKTRACE", "0");
    if let Some(file) = &plan.repeat {
        run = run.env(VAR_REPEAT, file);
    }
    let (code, stdout, stderr) = run.answer(Duration::from_secs(plan.seconds) + GRACE)?;
    if code != Some(0) {
        let mut text = format!("{}\n{}", stdout.trim(), stderr.trim());
        if code.is_none_or(|code| code != 101) {
            // Nobody was left to tell which input it was.
            let kept = keep_current(&plan.folder, name)?;
            text.push_str(&format!(
                "\nthe target {name} ended its process\nrepeat it with: cargo xtask fuzz --target {name} --repeat {}",
                kept.display()
            ));
        }
        bail!("{text}");
    }
    let line = stdout.lines().find_map(|line| line.find(&format!("fuzz {name}: ")).map(|at| &line[at..]));
    let line = line.with_context(|| format!("the target {name} did not run: {stdout}"))?;
    let executions = executions(line).with_context(|| format!("the target {name} says `{line}`"))?;
    ensure!(executions > 0, "the target {name} had no executions in {} s", plan.seconds);
    Ok((line.to_owned(), executions))
}

/// The number in `fuzz <name>: <number> executions in …`.
fn executions(line: &str) -> Option<u64> {
    line.split_once(": ")?.1.split_once(" executions")?.0.parse().ok()
}

/// Copies the input in hand of a target that ended its process to a file of its own.
fn keep_current(folder: &Path, name: &str) -> Result<PathBuf> {
    let current = folder.join(format!("{name}.current"));
    let bytes = std::fs::read(&current).with_context(|| format!("read {}", current.display()))?;
    let (length, rest) = bytes.split_first_chunk::<8>().context("the target had no input in hand")?;
    let length = usize::try_from(u64::from_be_bytes(*length))?;
    let kept = folder.join(name).join("ended");
    std::fs::create_dir_all(kept.parent().context("it lies in a folder")?)?;
    std::fs::write(&kept, &rest[..length.min(rest.len())])?;
    Ok(kept)
}

/// Compiles the unit tests as every stage does, and returns them by package.
fn build(context: &Context) -> Result<BTreeMap<String, PathBuf>> {
    context.say("the targets are compiled");
    let cargo = light::command(context, "test")?;
    let told = cargo.args(["--no-run", "--lib", "--message-format=json-render-diagnostics"]).stdout()?;
    let packages = context.metadata()?;
    let mut programs = BTreeMap::new();
    for message in told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(program), Some(id)) = (message["executable"].as_str(), message["package_id"].as_str())
        else {
            continue;
        };
        let package = packages.packages.iter().find(|package| package.id.repr == id);
        if let Some(package) = package.filter(|_| message["profile"]["test"] == true) {
            programs.insert(package.name.to_string(), PathBuf::from(program));
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_gives_a_seed_and_no_commit_gives_one_too() {
        assert_eq!(seed("00000010abcd"), 16);
        assert_eq!(seed("no commit"), 1);
    }

    #[test]
    fn the_line_of_a_target_has_its_executions() {
        let line = "fuzz frames: 20000 executions in 1.5 s, 13333 per second, 8 inputs in the corpus";
        assert_eq!(executions(line), Some(20_000));
        assert_eq!(executions("fuzz frames: ok"), None);
    }

    #[test]
    fn the_input_in_hand_is_kept_without_what_an_older_one_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.current"), b"\0\0\0\0\0\0\0\x03abcdef").unwrap();
        let kept = keep_current(folder.path(), "x").unwrap();
        assert_eq!(std::fs::read(kept).unwrap(), b"abc");
        assert!(keep_current(folder.path(), "y").is_err());
    }

    #[test]
    fn a_program_that_runs_no_target_is_no_success() {
        let context = Context::from_process().unwrap();
        let target = Target { name: "x".into(), package: "p".into(), test: "fuzz::x".into() };
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan { seconds: 0, seed: 1, repeat: None, folder: folder.path().to_owned() };
        let script = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            BTreeMap::from([("p".to_owned(), file)])
        };
        let run =
            |programs| run_one(&context, &target, &plan, &programs).map_err(|error| format!("{error:#}"));
        let said = "fuzz x: 3 executions in 0.0 s";
        assert_eq!(run(script("good", &format!("echo {said}"))), Ok((said.to_owned(), 3)));
        let error = run(script("silent", "echo running 0 tests")).unwrap_err();
        assert!(error.contains("did not run"), "{error}");
        let error = run(script("none", "echo fuzz x: 0 executions in 60 s")).unwrap_err();
        assert!(error.contains("no executions"), "{error}");
        let error = run(script("found", "echo it panicked; exit 101")).unwrap_err();
        assert!(error.contains("it panicked"), "{error}");
        std::fs::write(folder.path().join("x.current"), b"\0\0\0\0\0\0\0\x01a").unwrap();
        let error = run(script("killed", "kill -SEGV $$")).unwrap_err();
        assert!(error.contains("ended its process") && error.contains("--repeat"), "{error}");
    }
}

//! Gets the worker machine, has the assessments run on it, and gives it back.

mod emulation;

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::assess::ASSESSMENTS;
use crate::report::Outcome;
use crate::setup::Setup;
use crate::signals::Told;

/// The role of the worker machine in every reservation of `tests/setups`.
pub const WORKER: &str = "worker";
/// Where the programs are put on the worker machine.
pub const REMOTE: &str = "/opt/peerpod";
/// What a worker machine needs: the programs of the node, those of its pods' guests, and the one that assesses.
pub const PROGRAMS: &[&str] = &[
    "cloud-api-adaptor",
    "peerpod-gateway",
    "podvm-init",
    "process-user-data",
    "agent-protocol-forwarder",
    "test-agent",
    "e2e-worker",
];

/// What a run works with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program `testbed`.
    pub testbed: PathBuf,
    /// The document.
    pub reservation: PathBuf,
    /// The folder that has all of [`PROGRAMS`].
    pub programs: PathBuf,
    /// A folder for the environment.
    pub dir: PathBuf,
}

/// Runs everything, prints a line for each step, and gives the machine back whatever happened, also once `told` to end.
///
/// # Errors
///
/// What failed, or what is left.
pub fn run(plan: &Plan, setup: &dyn Setup, told: &Told) -> Result<Vec<Outcome>> {
    let done = through(plan, setup, told);
    if let Err(error) = &done {
        println!("failed: {error:#}\n{}", logs(setup));
    }
    let gone = step("testbed destroy", || plan.call(setup, &["destroy"]))
        // The second one finds nothing and says so without an error.
        .and_then(|()| step("testbed destroy, again", || plan.call(setup, &["destroy"])))
        .and_then(|()| {
            let left = setup.leftovers()?;
            ensure!(left.is_empty(), "left after `testbed destroy`: {}", left.join(", "));
            Ok(())
        });
    let outcomes = done?;
    gone?;
    Ok(outcomes)
}

fn through(plan: &Plan, setup: &dyn Setup, told: &Told) -> Result<Vec<Outcome>> {
    let file = plan.reservation.display().to_string();
    told.check()?;
    step("testbed up", || plan.call(setup, &["up", "--file", &file]))?;
    told.check()?;
    step("install the programs over SSH", || install(plan, setup))?;
    told.check()?;
    let start = Instant::now();
    let seen = emulation::assess(plan, setup).context("testbed emulate")?;
    println!("{:<32} {:6.2} s  {seen}", "testbed emulate", start.elapsed().as_secs_f64());
    told.check()?;
    let outcomes = assess(plan, setup)?;
    let names: Vec<&str> = outcomes.iter().map(|outcome| outcome.assessment.as_str()).collect();
    ensure!(names == ASSESSMENTS, "the worker machine told of {names:?}, expected {ASSESSMENTS:?}");
    let failed = outcomes.iter().filter(|outcome| outcome.error.is_some());
    let failed: Vec<&str> = failed.map(|outcome| outcome.assessment.as_str()).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(outcomes)
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    work().with_context(|| name.to_owned())?;
    println!("{name:<32} {:6.2} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// One stream of files: what every machine with a shell can take.
fn install(plan: &Plan, setup: &dyn Setup) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&plan.programs).arg("-c").args(PROGRAMS).stdout(Stdio::piped());
    let mut tar = tar.spawn().context("cannot start tar")?;
    let stream = tar.stdout.take().context("tar has an output")?;
    let take = format!("mkdir -p {REMOTE} && tar -C {REMOTE} -xf -");
    let status = plan.testbed(setup, &["ssh", WORKER, &take]).stdin(stream).status();
    let status = status.context("cannot start testbed")?;
    let packed = tar.wait()?;
    ensure!(status.success() && packed.success(), "testbed ssh ended with {status}, tar with {packed}");
    Ok(())
}

fn assess(plan: &Plan, setup: &dyn Setup) -> Result<Vec<Outcome>> {
    let work = format!("{REMOTE}/e2e-worker --programs {REMOTE} -- -bridge ppbr9 -subnet 10.99.0.0/16");
    let mut ssh = plan.testbed(setup, &["ssh", WORKER, &work]);
    let mut ssh = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start testbed")?;
    let mut outcomes = Vec::new();
    for line in BufReader::new(ssh.stdout.take().context("testbed has an output")?).lines() {
        let line = line?;
        let Some(outcome) = Outcome::parse(&line) else {
            println!("{line}");
            continue;
        };
        let seen = outcome.error.as_ref().map_or(outcome.seen.clone(), |error| format!("FAILED: {error}"));
        println!("  {:<30} {:6.2} s  {seen}", outcome.assessment, outcome.seconds);
        outcomes.push(outcome);
    }
    let status = ssh.wait()?;
    ensure!(status.success() || !outcomes.is_empty(), "e2e-worker ended with {status}");
    Ok(outcomes)
}

fn logs(setup: &dyn Setup) -> String {
    let mut text = String::new();
    for file in setup.logs() {
        let all = std::fs::read(&file).unwrap_or_default();
        let all = String::from_utf8_lossy(&all).into_owned();
        let lines: Vec<&str> = all.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        // Writing to a String never fails.
        let _ = writeln!(text, "--- {} ---\n{last}", file.display());
    }
    text
}

impl Plan {
    fn testbed(&self, setup: &dyn Setup, args: &[&str]) -> Command {
        let mut command = setup.command(&self.testbed);
        command.arg("--env").arg(self.environment()).args(args).current_dir(&self.dir);
        command
    }

    fn environment(&self) -> PathBuf {
        self.dir.join("environment")
    }

    fn call(&self, setup: &dyn Setup, args: &[&str]) -> Result<()> {
        let mut command = self.testbed(setup, args);
        let status = command.stdin(Stdio::null()).status().context("cannot start testbed")?;
        if !status.success() {
            bail!("`testbed {}` ended with {status}", args.join(" "));
        }
        Ok(())
    }

    /// Checks that all that is needed is there.
    ///
    /// # Errors
    ///
    /// Names everything that is missing.
    pub fn check(&self) -> Result<()> {
        let programs = PROGRAMS.iter().map(|name| self.programs.join(name));
        let files = [self.testbed.clone(), self.reservation.clone()].into_iter().chain(programs);
        let missing: Vec<String> =
            files.filter(|file| !file.is_file()).map(|file| file.display().to_string()).collect();
        ensure!(missing.is_empty(), "missing: {}", missing.join(", "));
        ensure!(Path::new("/run").is_dir(), "this is no Linux machine");
        Ok(())
    }
}

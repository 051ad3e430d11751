//! What programs take before they do anything: their sizes as they ship, and the time until they print their version.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::goals::Goal;
use super::quantile;
use crate::command::Run;
use crate::context::Context;
use crate::dist::programs::shipped;
use crate::limits::{self, Promised};
use crate::signals::Ends;

/// How long a program may take to print its version before nobody waits for it any more.
const LIMIT: Duration = Duration::from_secs(10);

/// A program as it ships.
#[derive(Debug)]
pub(super) struct Program {
    promised: Promised,
    /// The argument with which it prints its version.
    version: &'static str,
}

/// What was found of a program.
#[derive(Debug)]
pub(super) struct Row<'a> {
    program: &'a Program,
    /// From its start to its end when asked for its version, in milliseconds.
    times: Vec<f64>,
}

/// Builds the programs of which users were promised a size, and keeps them in the target folder.
///
/// # Errors
///
/// When one does not build, or does not ship.
pub(super) fn build(context: &Context) -> Result<Vec<Program>> {
    let shipped = shipped(&context.metadata()?)?;
    let program = |promised: Promised| {
        let found = shipped.iter().find(|program| program.name == promised.name);
        let version = found.with_context(|| format!("{} does not ship", promised.name))?.version;
        Ok(Program { promised, version })
    };
    let folder = context.target.join("footprint");
    limits::build_promised(context, &folder)?.into_iter().map(program).collect()
}

/// Asks each program for its version so many times. They take turns, so that what else the machine does meets all.
///
/// # Errors
///
/// When one cannot be started, prints none or does not end, or when somebody asks us to end.
pub(super) fn measure<'a>(
    programs: &'a [Program],
    runs: usize,
    runtime: &Runtime,
    ends: &mut Ends,
) -> Result<Vec<Row<'a>>> {
    let mut rows: Vec<Row<'_>> = programs.iter().map(|program| Row { program, times: Vec::new() }).collect();
    for row in &rows {
        // Its file is in memory from here on.
        row.program.check()?;
    }
    for _ in 0..runs {
        for row in &mut rows {
            let timed = runtime.block_on(async {
                tokio::select! {
                    biased;
                    told = ends.told() => Err(told),
                    timed = row.program.time() => timed,
                }
            });
            row.times.push(timed?);
        }
    }
    Ok(rows)
}

impl Program {
    fn path(&self) -> &PathBuf {
        &self.promised.path
    }

    /// Sees that it prints its version.
    fn check(&self) -> Result<()> {
        let (code, said, error) = Run::new(self.path()).arg(self.version).env_clear().answer(LIMIT)?;
        ensure!(
            code == Some(0) && !said.trim().is_empty(),
            "{} prints no version: {}",
            self.promised.title,
            error.trim()
        );
        Ok(())
    }

    /// The milliseconds from its start to its end. One that is no longer waited for is killed.
    async fn time(&self) -> Result<f64> {
        let title = &self.promised.title;
        let mut command = Command::new(self.path());
        command
            .arg(self.version)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {title}"))?;
        let status = timeout(LIMIT, child.wait()).await;
        let time = start.elapsed();
        let status =
            status.with_context(|| format!("{title} was still running after {} s", LIMIT.as_secs()))??;
        ensure!(status.success(), "{title} ended with {status}");
        Ok(time.as_secs_f64() * 1e3)
    }
}

/// Judges the goals of what was measured.
pub(super) fn goals(rows: &[Row<'_>]) -> Vec<Goal> {
    let sizes = rows.iter().map(|row| row.program.promised.goal());
    let version = |row: &Row<'_>| {
        let what = format!("{} prints its version, ms p50", row.program.promised.title);
        Goal::at_most(what, quantile(&row.times, 0.5), 10.0)
    };
    sizes.chain(rows.iter().map(version)).collect()
}

/// The table for people.
pub(super) fn tables(rows: &[Row<'_>]) {
    let runs = rows.first().map_or(0, |row| row.times.len());
    println!(
        "\n{:<40} {:>10} {:>10} {:>10}   ms over {runs} starts for the version",
        "program", "bytes", "median", "max"
    );
    for row in rows {
        let Promised { title, bytes, .. } = &row.program.promised;
        println!(
            "{title:<40} {bytes:>10} {:>10.1} {:>10.1}",
            quantile(&row.times, 0.5),
            quantile(&row.times, 1.0)
        );
    }
}

/// Everything as one object.
pub(super) fn json(rows: &[Row<'_>], goals: &[Goal]) -> Value {
    let row = |row: &Row<'_>| {
        let Promised { title, bytes, at_most, .. } = &row.program.promised;
        json!({ "program": title, "bytes": bytes, "at_most": at_most, "version_ms": row.times })
    };
    json!({ "programs": rows.iter().map(row).collect::<Vec<_>>(), "goals": goals })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &str, version: &'static str, bytes: u64) -> Program {
        let promised = Promised {
            title: "a program".into(),
            name: "program".into(),
            path: path.into(),
            bytes,
            at_most: 1000,
        };
        Program { promised, version }
    }

    fn measured(programs: &[Program], runs: usize) -> Result<Vec<Row<'_>>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut ends = Ends::watch(&runtime)?;
        measure(programs, runs, &runtime, &mut ends)
    }

    #[test]
    fn a_program_that_prints_its_version_at_once_is_timed_so_many_times() {
        let programs = [program("/bin/ls", "--version", 1000), program("/bin/ls", "--version", 1001)];
        let rows = measured(&programs, 3).unwrap();
        assert!(rows.iter().all(|row| row.times.len() == 3 && row.times.iter().all(|time| *time > 0.0)));
        let sizes: Vec<bool> = goals(&rows).iter().take(2).map(|goal| goal.met).collect();
        assert_eq!(sizes, [true, false]);
    }

    #[test]
    fn a_slow_one_misses_by_its_median() {
        let programs = [program("/bin/ls", "--version", 1)];
        let met = |times: &[f64]| goals(&[Row { program: &programs[0], times: times.to_vec() }])[1].met;
        assert!(met(&[9.0, 10.0, 99.0]) && !met(&[9.0, 10.1, 10.2]) && !met(&[]));
    }

    #[test]
    fn one_that_fails_or_prints_nothing_is_no_measurement() {
        for (path, said) in [
            ("/bin/false", "prints no version"),
            ("/bin/true", "prints no version"),
            ("/no/such", "cannot start"),
        ] {
            let error = format!("{:#}", measured(&[program(path, "version", 1)], 1).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }
}

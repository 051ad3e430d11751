//! The rows: one kind of call each, over every chain in turn.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Options;
use super::chain::{Running, Time};
use super::place::Place;
use crate::bench::host::Undisturbed;
use crate::bench::quantile;

/// Beyond the time that a load is given.
const SLACK: Duration = Duration::from_secs(60);

/// One kind of call, so many at the same time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) payload: usize,
    pub(super) outstanding: usize,
}

const MIB: usize = 1 << 20;
const CHUNK: usize = 32 << 10;

const fn row(kind: &'static str, payload: usize, outstanding: usize) -> Row {
    Row { kind, payload, outstanding }
}

/// All rows.
pub(super) const ROWS: [Row; 10] = [
    row("check", 0, 1),
    row("check", 0, 8),
    row("check", 0, 64),
    row("copy-file", MIB, 1),
    row("copy-file", MIB, 4),
    row("read-stdout", CHUNK, 1),
    row("read-stdout", CHUNK, 8),
    row("write-stdin", CHUNK, 1),
    row("write-stdin", CHUNK, 8),
    row("create-container", 0, 1),
];

impl Row {
    /// What it is called in tables.
    pub(super) fn name(&self) -> String {
        match self.payload {
            0 => format!("{} at {}", self.kind, self.outstanding),
            MIB => format!("{} 1 MiB at {}", self.kind, self.outstanding),
            bytes => format!("{} {} KiB at {}", self.kind, bytes >> 10, self.outstanding),
        }
    }

    /// How many loads there are in a run, and how long each lasts.
    ///
    /// How small calls fall together differs from connection to connection by a tenth of what they cost, and stays so
    /// while one lasts: many short loads, each with connections of its own, tell more than a long one.
    fn loads(&self, quick: bool) -> (usize, Time) {
        let (loads, millis) = match self.kind {
            _ if quick => (1, 150),
            "check" => (6, 500),
            _ => (1, 1500),
        };
        (loads, Time(Duration::from_millis(millis)))
    }

    /// Whether it moves enough bytes to be counted in them.
    pub(super) fn is_bulk(&self) -> bool {
        self.payload > 0
    }
}

/// What one load found.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) per_second: f64,
    pub(super) mb_per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    /// CPU seconds of each program for 100,000 calls.
    pub(super) cpu: Vec<(&'static str, f64)>,
}

/// The samples of all rows and chains.
#[derive(Debug, Default)]
pub(super) struct Table {
    cells: Vec<(Row, String, Vec<Sample>)>,
}

/// One figure of a sample.
pub(super) type Figure = fn(&Sample) -> f64;

impl Table {
    /// The chains, in order.
    pub(super) fn chains(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (_, name, _) in &self.cells {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// All samples of a row and chain.
    pub(super) fn samples(&self, row: &Row, chain: &str) -> &[Sample] {
        let found = self.cells.iter().find(|(there, name, _)| there == row && name == chain);
        found.map_or(&[], |(_, _, samples)| samples)
    }

    /// A figure of each load, as a part of that of another chain right before or after it: the median. No number where it
    /// is missing.
    pub(super) fn ratio(&self, row: &Row, chain: &str, floor: &str, figure: Figure) -> f64 {
        let pairs = self.samples(row, chain).iter().zip(self.samples(row, floor));
        let ratios: Vec<f64> = pairs.map(|(ours, floor)| figure(ours) / figure(floor)).collect();
        Some(quantile(&ratios, 0.5)).filter(|ratio| ratio.is_finite()).unwrap_or(f64::NAN)
    }

    /// The median of a figure and how far its loads lie apart, as a part of it.
    pub(super) fn figure(&self, row: &Row, chain: &str, figure: Figure) -> Option<(f64, f64)> {
        let mut values: Vec<f64> = self.samples(row, chain).iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len() / 2)?;
        let spread = values.last()? - values.first()?;
        Some((median, if median > 0.0 { spread / median } else { 0.0 }))
    }

    pub(super) fn push(&mut self, row: Row, chain: &str, sample: Sample) {
        match self.cells.iter_mut().find(|(there, name, _)| *there == row && name == chain) {
            Some((_, _, samples)) => samples.push(sample),
            None => self.cells.push((row, chain.to_owned(), vec![sample])),
        }
    }
}

/// All of a chain's CPU seconds for 100,000 calls.
pub(super) fn cpu(sample: &Sample) -> f64 {
    sample.cpu.iter().map(|(_, seconds)| seconds).sum()
}

/// Measures all rows over all chains.
pub(super) fn measure(
    place: &Place,
    options: &Options,
    undisturbed: &mut Undisturbed,
    say: &dyn Fn(&str),
) -> Result<Table> {
    let mut chains = Vec::new();
    for (number, chain) in options.chains.iter().enumerate() {
        chains.push(chain.start(place, u16::try_from(number)?)?);
    }
    let mut table = Table::default();
    for run in 0..options.runs {
        for row in ROWS {
            let (loads, time) = row.loads(options.quick);
            for number in 0..loads {
                // Who comes first changes from load to load.
                let mut turn: Vec<&Running> = chains.iter().collect();
                turn.rotate_left((run + number) % chains.len());
                let one = |chain: &Running| {
                    let sample = load(place, chain, row, time);
                    sample.with_context(|| format!("{} over {}", row.name(), chain.name))
                };
                for (chain, sample) in turn.iter().zip(undisturbed.turn(&turn, one)?) {
                    table.push(row, &chain.name, sample);
                }
            }
        }
        say(&format!("run {} of {} is measured", run + 1, options.runs));
    }
    table.cells.sort_by_key(|(_, name, _)| options.chains.iter().position(|chain| chain.name == *name));
    Ok(table)
}

fn load(place: &Place, chain: &Running, row: Row, time: Time) -> Result<Sample> {
    let socket = chain.socket.to_string_lossy();
    let (payload, outstanding) = (row.payload.to_string(), row.outstanding.to_string());
    let (millis, recorded) = (time.millis(), place.recorded.to_string_lossy());
    let words = [
        &["load", "--socket", &socket, "--kind", row.kind, "--payload", &payload][..],
        &["--outstanding", &outstanding, "--millis", &millis, "--recorded", &recorded],
        &["--warm-up", if row.is_bulk() { "20" } else { "200" }],
    ];
    let before = cpu_of(chain)?;
    let answer = place.begin(&words.concat(), false)?.end(time.0 + SLACK)?;
    let after = cpu_of(chain)?;
    let number = |name: &str| number(&answer, name);
    // What the warm-up took is counted with what it did.
    let warm_up = if row.is_bulk() { 20.0 } else { 200.0 };
    let scale = 100_000.0 / (number("requests")? + warm_up);
    let programs = chain.programs.iter().zip(before.iter().zip(&after));
    let cpu = programs
        .map(|((what, _), (before, after))| (*what, after.saturating_sub(*before).as_secs_f64() * scale));
    Ok(Sample {
        per_second: number("per_second")?,
        mb_per_s: number("mb_per_s")?,
        p50_us: number("p50_us")?,
        p90_us: number("p90_us")?,
        p99_us: number("p99_us")?,
        cpu: cpu.collect(),
    })
}

/// A number in what a measurement printed.
pub(super) fn number(answer: &Value, name: &str) -> Result<f64> {
    answer
        .get(name)
        .and_then(Value::as_f64)
        .with_context(|| format!("the measurement told no {name}: {answer}"))
}

fn cpu_of(chain: &Running) -> Result<Vec<Duration>> {
    chain.programs.iter().map(|(_, program)| program.cpu()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_medians_with_their_spread() {
        let mut table = Table::default();
        for per_second in [100.0, 130.0, 110.0] {
            table.push(ROWS[0], "ours", Sample { per_second, ..Sample::default() });
        }
        let (median, spread) = table.figure(&ROWS[0], "ours", |sample| sample.per_second).unwrap();
        assert_eq!(median, 110.0);
        assert!((spread - 30.0 / 110.0).abs() < 1e-9);
        assert!(table.figure(&ROWS[1], "ours", |sample| sample.per_second).is_none());
        assert_eq!(table.chains(), ["ours"]);
    }

    #[test]
    fn a_ratio_is_that_of_two_loads_one_right_after_the_other() {
        let mut table = Table::default();
        // The machine was twice as fast in the second load, and our chain slow in the third.
        for (ours, floor) in [(90.0, 100.0), (180.0, 200.0), (20.0, 100.0)] {
            table.push(ROWS[0], "ours", Sample { per_second: ours, ..Sample::default() });
            table.push(ROWS[0], "floor", Sample { per_second: floor, ..Sample::default() });
        }
        let ratio = |floor| table.ratio(&ROWS[0], "ours", floor, |sample| sample.per_second);
        assert_eq!(ratio("floor"), 0.9);
        assert!(ratio("none").is_nan());
        assert!(
            table.ratio(&ROWS[0], "ours", "floor", |sample| sample.p50_us).is_nan(),
            "nothing of nothing"
        );
    }

    #[test]
    fn rows_have_names_that_differ() {
        let mut names: Vec<_> = ROWS.iter().map(Row::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
        assert!(names.contains(&"copy-file 1 MiB at 4".to_owned()), "{names:?}");
    }
}

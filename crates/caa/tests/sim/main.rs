//! The life of sandboxes under simulated faults: one process, virtual time, the daemon's own state machine, journal and
//! rules over a scripted cloud and a disk that loses what was not synced.
//!
//! `cargo xtask campaign sim` runs it. A seed draws everything, so a seed is a run that can be repeated.

mod disk;
mod parts;
mod pod;
mod run;
mod sim;

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use caa::hooks::Protection;
use clap::{Arg, ArgAction, Command, value_parser};

use crate::sim::{Point, all_points};

fn main() -> ExitCode {
    let arg = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .default_value(default)
            .value_parser(value_parser!(u64))
            .help(help)
    };
    let matches = Command::new("sim")
        .about("Simulates daemons, pods and faults")
        .arg(arg("seeds", "2000", "How many seeds"))
        .arg(arg("from", "0", "The first seed"))
        .arg(
            Arg::new("without")
                .long("without")
                .value_name("PROTECTION")
                .help("Take this protection away, as JournalBeforeCall"),
        )
        .arg(
            Arg::new("protections")
                .long("protections")
                .action(ArgAction::SetTrue)
                .help("Take each protection away in turn: every one must be missed within the seeds"),
        )
        .arg(Arg::new("trace").long("trace").action(ArgAction::SetTrue).help("Print what happens"))
        .get_matches();
    let number = |name: &str| *matches.get_one::<u64>(name).expect("it has a default");
    let (seeds, from) = (number("seeds"), number("from"));
    let off = match matches.get_one::<String>("without") {
        None => None,
        Some(name) => match Protection::ALL.into_iter().find(|p| format!("{p:?}") == *name) {
            Some(protection) => Some(protection),
            None => {
                let known = Protection::ALL.map(|p| format!("{p:?}")).join(", ");
                eprintln!("there is no protection {name:?}: {known}");
                return ExitCode::from(2);
            }
        },
    };
    let good = match matches.get_flag("protections") {
        true => protections(from, seeds),
        false => campaign(from, seeds, off, matches.get_flag("trace")),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How many of the first seeds are run twice, to see that a seed is a run that can be repeated.
const TWICE: u64 = 25;

/// Runs all seeds. Returns whether nothing was violated and every point was reached.
fn campaign(from: u64, seeds: u64, off: Option<Protection>, trace: bool) -> bool {
    let begun = Instant::now();
    let mut hits: BTreeMap<Point, u64> = all_points().into_iter().map(|p| (p, 0)).collect();
    let (mut bad, mut pods, mut daemons) = (Vec::new(), 0, 0);
    for (seed, outcome) in each(from, seeds, |seed| run::run(seed, off, trace || seed < from + TWICE)) {
        if trace {
            outcome.trace.iter().for_each(|line| println!("{line}"));
        }
        if seed < from + TWICE {
            let again = run::run(seed, off, true).trace;
            let lines = outcome.trace.iter().zip(&again);
            if let Some((one, other)) = lines.into_iter().find(|(one, other)| one != other) {
                bad.push((seed, vec![format!("the same seed ran in another way: {one:?} or {other:?}")]));
            }
        }
        for (point, count) in outcome.hits {
            // What is not listed is a mistake of the list.
            *hits.entry(point).or_insert_with(|| panic!("{point} is not among the points")) += count;
        }
        pods += outcome.pods;
        daemons += outcome.daemons;
        if !outcome.violations.is_empty() {
            bad.push((seed, outcome.violations));
        }
    }
    bad.sort();
    for (seed, violations) in bad.iter().take(20) {
        println!("seed {seed}: {}", violations.join("\n          "));
    }
    let missed: Vec<String> = hits.iter().filter(|(_, n)| **n == 0).map(|(p, _)| p.to_string()).collect();
    let total: u64 = hits.values().sum();
    println!(
        "{seeds} seeds from {from}: {pods} pods, {daemons} changes of daemons, {} points passed {total} times, {} seeds with violations, {:.1} s",
        hits.len(),
        bad.len(),
        begun.elapsed().as_secs_f64()
    );
    // A single seed is run to look at it.
    let all_reached = missed.is_empty() || seeds < 500;
    if !all_reached {
        println!("never reached: {}", missed.join(", "));
    }
    bad.is_empty() && all_reached
}

/// Takes away each protection. Returns whether every one was missed.
fn protections(from: u64, seeds: u64) -> bool {
    let all = Protection::ALL;
    let found = each(0, all.len() as u64, |index| {
        let off = all[usize::try_from(index).expect("there are few")];
        (from..from + seeds).find_map(|seed| {
            let outcome = run::run(seed, Some(off), false);
            outcome.violations.first().map(|first| (seed, first.clone()))
        })
    });
    for ((_, found), off) in found.iter().zip(all) {
        let name = format!("{off:?}");
        match found {
            Some((seed, first)) => println!("without {name:<18} seed {seed:>5}: {first}"),
            None => println!("without {name:<18} NOT MISSED in {seeds} seeds"),
        }
    }
    found.iter().all(|(_, found)| found.is_some())
}

/// Runs seeds on all processors and hands over the outcomes as they come.
fn each<T: Send>(from: u64, seeds: u64, run: impl Fn(u64) -> T + Sync) -> Vec<(u64, T)> {
    let next = AtomicU64::new(from);
    let done = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        return;
                    }
                    let outcome = run(seed);
                    done.lock().unwrap().push((seed, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(seed, _)| *seed);
    done
}

//! Controllers and daemons of a cluster under simulated faults: one process, virtual time, the controller's own code over
//! a simulated API server and scripted clouds.
//!
//! `cargo xtask campaign cluster` runs it. A seed draws everything, so a seed is a run that can be repeated.

mod client;
mod cloud;
mod node;
mod pods;
mod run;
mod server;
mod sim;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use clap::{Arg, ArgAction, Command, value_parser};
use peerpod_ctrl::hooks::SafetyKey;

use crate::sim::{Counts, Point};

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
        .about("Simulates controllers, daemons, pods and faults")
        .arg(arg("seeds", "2000", "How many seeds"))
        .arg(arg("from", "0", "The first seed"))
        .arg(
            Arg::new("without")
                .long("without")
                .value_name("PROTECTION")
                .help("Take this safety key away, as FreshPod"),
        )
        .arg(
            Arg::new("protections")
                .long("protections")
                .action(ArgAction::SetTrue)
                .help("Take each safety key away in turn: every one must be missed within the seeds"),
        )
        .arg(Arg::new("trace").long("trace").action(ArgAction::SetTrue).help("Print what happens"))
        .get_matches();
    let number = |name: &str| *matches.get_one::<u64>(name).expect("it has a default");
    let (seeds, from) = (number("seeds"), number("from"));
    let off = match matches.get_one::<String>("without") {
        None => None,
        Some(name) => match SafetyKey::ALL.into_iter().find(|key| format!("{key:?}") == *name) {
            Some(key) => Some(key),
            None => {
                let known = SafetyKey::ALL.map(|key| format!("{key:?}")).join(", ");
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

/// Every point. A run of many seeds in which one was never reached has tested less than it says.
fn all_points() -> BTreeSet<Point> {
    let both = |part: &'static str, operations: &[&'static str]| {
        let each = operations.iter().flat_map(|o| [Point(part, o, "before"), Point(part, o, "after")]);
        each.collect::<Vec<_>>()
    };
    let mut points: BTreeSet<Point> = both("cloud", &cloud::REMOTE).into_iter().collect();
    points.extend(both("provider", &["delete", "release", "list"]));
    points.insert(Point("provider", "create", "before"));
    let reads = ["watch", "get", "get_pod", "daemons", "view", "read_lease", "write_lease"];
    points.extend(both("controller", &reads));
    points.extend(both("controller", &["release", "supersede", "remove", "condition", "event"]));
    points.insert(Point("controller", "change", "at"));
    points.extend(both("daemon", &["create", "get", "bind", "release", "remove", "heartbeat", "get_pod"]));
    points
}

/// Runs all seeds. Returns whether nothing was violated and every point was reached.
fn campaign(from: u64, seeds: u64, off: Option<SafetyKey>, trace: bool) -> bool {
    let begun = Instant::now();
    let mut hits: BTreeMap<Point, u64> = all_points().into_iter().map(|p| (p, 0)).collect();
    let (mut bad, mut counts) = (Vec::new(), Counts::default());
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
        counts.add(&outcome.counts);
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
        "{seeds} seeds from {from}: {counts}; {} points passed {total} times, {} seeds with violations, {:.1} s",
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

/// Takes away each safety key. Returns whether every one was missed.
fn protections(from: u64, seeds: u64) -> bool {
    let all = SafetyKey::ALL;
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

//! What is printed.

use serde_json::{Value, json};

use super::extra::{Beside, Extra};
use super::rows::{Figure, ROWS, Sample, Table, cpu};
use super::{Measured, Options};
use crate::bench::goals::{Goal, short};

/// The tables for people.
pub(in crate::bench) fn tables(options: &Options, measured: &Measured) {
    if let Some(rows) = &measured.rows {
        of_rows(rows);
    }
    beside(&measured.extra);
    if measured.rows.is_some() {
        println!("\n{} runs", options.runs);
    }
    if let Some(text) = measured.undisturbed.text() {
        println!("{text}");
    }
}

/// The rows, by chain.
fn of_rows(rows: &Table) {
    let chains = rows.chains();
    let heading = |what: &str| {
        print!("\n{what:<32}");
        for chain in &chains {
            print!(" {chain:>18}");
        }
        println!();
    };
    let line = |name: &str, figures: &dyn Fn(&str) -> Option<(f64, f64)>| {
        print!("{name:<32}");
        for chain in &chains {
            match figures(chain) {
                Some((median, spread)) => {
                    print!(" {:>18}", format!("{} ±{:.0}%", short(median), spread * 50.0))
                }
                None => print!(" {:>18}", "-"),
            }
        }
        println!();
    };
    let parts: [(&str, Figure); 3] = [("p50", |s| s.p50_us), ("p90", |s| s.p90_us), ("p99", |s| s.p99_us)];
    heading("µs");
    for row in ROWS.iter().filter(|row| row.outstanding == 1) {
        for (name, figure) in parts {
            line(&format!("{} {name}", row.name()), &|chain| rows.figure(row, chain, figure));
        }
    }
    heading("calls per second");
    for row in ROWS.iter().filter(|row| !row.is_bulk()) {
        line(&row.name(), &|chain| rows.figure(row, chain, |s| s.per_second));
    }
    heading("MB/s");
    for row in ROWS.iter().filter(|row| row.is_bulk()) {
        line(&row.name(), &|chain| rows.figure(row, chain, |s| s.mb_per_s));
    }
    heading("CPU seconds of 100,000 calls");
    let parts: [(&str, Figure); 3] =
        [("both", cpu), ("gateway", |s| cpu_of(s, "gateway")), ("forwarder", |s| cpu_of(s, "forwarder"))];
    for row in &ROWS {
        for (name, figure) in parts {
            let there = |chain: &str| {
                let mut programs = rows.samples(row, chain).iter().flat_map(|sample| &sample.cpu);
                programs.any(|(what, _)| name == "both" || *what == name)
            };
            line(&format!("{} {name}", row.name()), &|chain| {
                rows.figure(row, chain, figure).filter(|_| there(chain))
            });
        }
    }
}

/// What is no row.
fn beside(extra: &Extra) {
    if let Some((idle, loaded)) = extra.forwarder_kib {
        println!("\n{:<52} {:>10} {:>12}", "KiB resident", "idle", "after load");
        for (count, idle, loaded) in &extra.gateway_kib {
            println!("{:<52} {idle:>10} {loaded:>12}", format!("gateway, {count} sandboxes"));
        }
        println!("{:<52} {idle:>10} {loaded:>12}", "forwarder");
    }
    if !extra.stalls.is_empty() {
        println!("\n{:<52} {:>10} {:>12}", "KiB more when a peer stops reading", "gateway", "forwarder");
    }
    for stall in &extra.stalls {
        let closed = stall.closed.as_ref().map(|reason| format!("  closed: {reason}")).unwrap_or_default();
        println!("{:<52} {:>10} {:>12}{closed}", stall.what, stall.gateway_kib, stall.forwarder_kib);
    }
    if let Some((refused, dropped)) = &extra.dialling {
        println!("\n{:<40} {:>8} {:>8} {:>8} {:>8} {:>8}", "ms lost", "samples", "mean", "p50", "p99", "max");
        for (what, dial) in
            [("refused, then the guest listens", refused), ("dropped, then packets pass", dropped)]
        {
            println!(
                "{what:<40} {:>8} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
                dial.samples, dial.mean_ms, dial.p50_ms, dial.p99_ms, dial.max_ms
            );
        }
    }
    let Some(neighbours) = &extra.neighbours else { return };
    let title = format!("one of {} sandboxes, check", neighbours.sandboxes);
    println!("\n{title:<52} {:>10} {:>22}   p99 µs", "", "gateway of its own");
    println!("{:<52} {:>10.0}", "all idle", neighbours.quiet_p99_us);
    let saturated = neighbours.saturated.iter().map(|beside| ("saturated", beside));
    for (how, beside) in saturated.chain([("guests stalled", &neighbours.stalled)]) {
        let Beside { what, p99_us, apart_p99_us } = beside;
        println!("{:<52} {p99_us:>10.0} {apart_p99_us:>22.0}", format!("{how}: {what}"));
    }
}

/// Everything as one object.
pub(in crate::bench) fn json(options: &Options, measured: &Measured, goals: &[Goal]) -> Value {
    let cell = |sample: &Sample| {
        json!({
            "per_second": sample.per_second,
            "mb_per_s": sample.mb_per_s,
            "p50_us": sample.p50_us,
            "p90_us": sample.p90_us,
            "p99_us": sample.p99_us,
            "cpu_seconds_of_100000": sample.cpu.iter().map(|(what, cpu)| ((*what).to_owned(), *cpu))
                .collect::<std::collections::BTreeMap<_, _>>(),
        })
    };
    let mut all = Vec::new();
    if let Some(rows) = &measured.rows {
        for row in &ROWS {
            for chain in rows.chains() {
                let samples: Vec<_> = rows.samples(row, chain).iter().map(cell).collect();
                all.push(json!({ "row": row.name(), "chain": chain, "loads": samples }));
            }
        }
    }
    json!({
        "runs": options.runs,
        "quick": options.quick,
        "rows": all,
        "extra": measured.extra,
        "measurements": measured.undisturbed.turns,
        "repetitions": measured.undisturbed.again,
        "goals": goals,
        "all_met": goals.iter().all(|goal| goal.met),
    })
}

fn cpu_of(sample: &Sample, program: &str) -> f64 {
    sample.cpu.iter().filter(|(what, _)| *what == program).map(|(_, seconds)| seconds).sum()
}

//! The goals of the data path.

use super::extra::{Beside, Extra};
use super::rows::{Figure, ROWS, Row, Table, cpu};
use crate::bench::goals::Goal;

/// Judges all goals of what was measured.
pub(super) fn judge(rows: Option<&Table>, extra: &Extra) -> Vec<Goal> {
    let mut goals = rows.map(of_rows).unwrap_or_default();
    goals.extend(beside(extra));
    goals
}

fn of_rows(rows: &Table) -> Vec<Goal> {
    let mut goals = Vec::new();
    // A figure that is not there is one that misses its goal.
    let ratio = |row: &Row, figure: Figure| rows.ratio(row, "ours", "splice-tls", figure);
    let check = &ROWS[0];
    goals.push(Goal::at_most("p50 of check at 1, of the floor's", ratio(check, |s| s.p50_us), 1.25));
    goals.push(Goal::at_most("p99 of check at 1, of the floor's", ratio(check, |s| s.p99_us), 1.4));
    for row in ROWS.iter().filter(|row| row.kind != "create-container") {
        let what = format!("{}: calls per second, of the floor's", row.name());
        goals.push(Goal::at_least(what, ratio(row, |s| s.per_second), 0.8));
    }
    for row in ROWS.iter().filter(|row| row.kind == "check") {
        let what = format!("{}: CPU of both programs, of the floor's", row.name());
        goals.push(Goal::at_most(what, ratio(row, cpu), 1.3));
    }
    let create = &ROWS[ROWS.len() - 1];
    let of = |chain| rows.figure(create, chain, |s| s.p50_us).map_or(f64::NAN, |(median, _)| median);
    goals.push(Goal::at_most("create-container: added, ms", (of("ours") - of("direct")) / 1e3, 1.0));
    goals
}

fn beside(extra: &Extra) -> Vec<Goal> {
    let mib = |kib: u64| kib as f64 / 1024.0;
    let mut goals = Vec::new();
    if let (Some((one, idle, _)), Some((many, all, _))) =
        (extra.gateway_kib.first(), extra.gateway_kib.last())
    {
        goals.push(Goal::at_most("gateway with one idle sandbox, MiB", mib(*idle), 8.0));
        let each = (*all as f64 - *idle as f64) / f64::from(many.saturating_sub(*one).max(1));
        goals.push(Goal::at_most("gateway for each further idle sandbox, KiB", each, 60.0));
    }
    if let Some((idle, _)) = extra.forwarder_kib {
        goals.push(Goal::at_most("forwarder idle, MiB", mib(idle), 6.0));
    }
    for stall in &extra.stalls {
        let what = |who: &str| format!("{who} grows when {}, MiB", stall.what);
        goals.push(Goal::at_most(what("gateway"), mib(stall.gateway_kib), 1.0));
        goals.push(Goal::at_most(what("forwarder"), mib(stall.forwarder_kib), 1.0));
    }
    if let Some((refused, dropped)) = &extra.dialling {
        goals.push(Goal::at_most("guest listens → ready when refused, p99 ms", refused.p99_ms, 50.0));
        goals.push(Goal::at_most("packets pass → ready when dropped, p99 ms", dropped.p99_ms, 250.0));
    }
    let Some(neighbours) = &extra.neighbours else { return goals };
    let of = |p99: f64, other: f64| if other > 0.0 { p99 / other } else { f64::NAN };
    // What is busy beside the gateway stands for other machines, and yet takes what processors this one has.
    let saturated = neighbours.saturated.iter().map(|beside| ("saturated sandboxes", beside));
    for (others, beside) in saturated.chain([("stalled guests", &neighbours.stalled)]) {
        let Beside { what, p99_us, apart_p99_us } = beside;
        let what = format!("p99 beside {others} ({what}), of one with a gateway of its own");
        goals.push(Goal::at_most(what, of(*p99_us, *apart_p99_us), 2.0));
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::super::rows::Sample;
    use super::*;

    fn table(ours: f64) -> Table {
        let mut table = Table::default();
        for row in ROWS {
            for (chain, factor) in [("direct", 0.5), ("splice-tls", 1.0), ("ours", ours)] {
                let sample = Sample {
                    per_second: 1e4 / factor,
                    p50_us: 40.0 * factor,
                    p99_us: 80.0 * factor,
                    cpu: vec![("gateway", factor), ("forwarder", factor)],
                    ..Sample::default()
                };
                table.push(row, chain, sample);
            }
        }
        table
    }

    #[test]
    fn a_chain_as_good_as_the_floor_meets_what_is_about_ratios() {
        let goals = judge(Some(&table(1.0)), &Extra::default());
        assert!(goals.iter().all(|goal| goal.met), "{goals:?}");
        assert_eq!(goals.len(), 2 + 9 + 3 + 1);
    }

    #[test]
    fn a_slower_chain_misses_and_so_does_one_that_was_not_measured() {
        let met = |goals: Vec<Goal>| goals.iter().filter(|goal| goal.met).count();
        // CreateContainer is bounded by time and not by the floor.
        assert_eq!(met(judge(Some(&table(1.5)), &Extra::default())), 1);
        assert_eq!(met(judge(Some(&Table::default()), &Extra::default())), 0);
    }

    #[test]
    fn memory_and_dialling_have_limits_of_their_own() {
        let mut extra = Extra {
            gateway_kib: vec![(1, 7 << 10, 0), (100, (7 << 10) + 99 * 50, 0)],
            forwarder_kib: Some((5 << 10, 0)),
            ..Extra::default()
        };
        let one = Beside { what: "1 other".to_owned(), p99_us: 350.0, apart_p99_us: 200.0 };
        let mut neighbours = super::super::extra::Neighbours {
            quiet_p99_us: 100.0,
            saturated: vec![one.clone()],
            stalled: one,
            ..Default::default()
        };
        extra.neighbours = Some(neighbours.clone());
        assert!(beside(&extra).iter().all(|goal| goal.met), "{:?}", beside(&extra));
        extra.gateway_kib[1].1 += 2000;
        let slow = super::super::extra::Dial { p99_ms: 51.0, ..Default::default() };
        extra.dialling = Some((slow, super::super::extra::Dial::default()));
        neighbours.stalled.p99_us = 450.0;
        neighbours.saturated[0].apart_p99_us = 100.0;
        extra.neighbours = Some(neighbours);
        let missed: Vec<_> = beside(&extra).into_iter().filter(|goal| !goal.met).collect();
        assert_eq!(missed.len(), 4, "{missed:?}");
    }
}

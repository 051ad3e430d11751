//! What is printed.

use serde_json::{Value, json};

use super::{Measured, Memory, Options, Row};
use crate::bench::goals::Goal;

/// The tables for people.
pub(in crate::bench) fn tables(options: &Options, measured: &Measured) {
    println!(
        "\n{:<40} {:>10} {:>10} {:>10}   ms over {} starts on {}",
        "phase",
        "median",
        "p90",
        "max",
        options.starts,
        options.provider.name()
    );
    for row in &measured.rows {
        println!("{:<40} {:>10.1} {:>10.1} {:>10.1}", row.name, row.at(0.5), row.at(0.9), row.at(1.0));
    }
    let (idle, busy) = (measured.idle, measured.busy);
    let with = format!("{} sandboxes", options.sandboxes);
    println!("\n{:<40} {:>10} {with:>14}   KiB resident", "program", "idle");
    println!("{:<40} {:>10} {:>14}", "cloud-api-adaptor", idle.daemon, busy.daemon);
    println!("{:<40} {:>10} {:>14}", "peerpod-gateway", idle.gateway, busy.gateway);
}

/// Everything as one object.
pub(in crate::bench) fn json(options: &Options, measured: &Measured, goals: &[Goal]) -> Value {
    let row = |row: &Row| {
        let values =
            json!({ "median": row.at(0.5), "p90": row.at(0.9), "max": row.at(1.0), "all": row.times });
        (row.name.clone(), values)
    };
    let memory = |memory: Memory| json!({ "daemon": memory.daemon, "gateway": memory.gateway });
    json!({
        "starts": options.starts,
        "ms": measured.rows.iter().map(row).collect::<serde_json::Map<_, _>>(),
        "provider": options.provider.name(),
        "sandboxes": options.sandboxes,
        "resident_kib": { "idle": memory(measured.idle), "with_sandboxes": memory(measured.busy) },
        "goals": goals,
        "all_met": goals.iter().all(|goal| goal.met),
    })
}

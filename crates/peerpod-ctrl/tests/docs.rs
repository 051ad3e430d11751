//! The book's list of metrics is the one that the code gives.

use std::{path::Path, time::Duration};

use cloud_providers::{
    ErrorKind,
    layers::{CallOutcome, Operation},
};
use cloud_providers_bundle as _;
use peerpod_ctrl::{cli, metrics::Metrics, options};

/// Sets every metric of the controller once.
fn every_metric() -> String {
    let metrics = Metrics::new();
    let calls = metrics.calls_of("aws");
    calls.started(Operation::Delete);
    calls.retried(Operation::Delete, &ErrorKind::Throttled, Duration::ZERO);
    calls.waited(Operation::Delete, Duration::ZERO);
    calls.finished(Operation::Delete, CallOutcome::Ok, Duration::ZERO);
    metrics.gone("aws");
    metrics.failure("aws", "throttled");
    metrics.pending("aws", 1, 1);
    metrics.held("PodAlive", 1);
    metrics.orphans("aws", "kept", 1);
    metrics.swept("aws");
    metrics.config_broken("aws", false);
    metrics.sweep_ended(1, false);
    metrics.text()
}

#[test]
fn the_books_list_of_metrics_is_fresh() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let table = test_support::metrics_table(&every_metric()).unwrap();
    test_support::fresh_part(&page, "metrics:peerpod-ctrl", &table).unwrap();
}

#[test]
fn no_metric_has_a_label_whose_words_grow_with_the_pods() {
    let table = test_support::metrics_table(&every_metric()).unwrap();
    // Accounts are those that are configured; see `Providers::names`.
    let known = ["account", "kind", "operation", "outcome", "reason", "verdict"];
    for row in table.lines().skip(2) {
        let labels = row.split('|').nth(3).unwrap().split(',').map(str::trim);
        for label in labels.filter(|label| !label.is_empty()) {
            assert!(known.contains(&label), "{row}: ask whether the words of {label} are from a fixed set");
        }
    }
}

#[test]
fn the_books_options_and_exit_codes_are_fresh() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/controller.md");
    let parts = [
        ("options:peerpod-ctrl", cloud_providers::options_table(options::OPTIONS)),
        ("options:peerpod-ctrl-drain", cloud_providers::options_table(options::DRAIN_OPTIONS)),
        ("exits:peerpod-ctrl", test_support::exit_table(cli::EXITS)),
    ];
    for (marker, table) in parts {
        test_support::fresh_part(&page, marker, &table).unwrap();
    }
}

#[test]
fn the_program_ends_with_the_codes_of_the_table() {
    let [(done, _), (failed, _), (usage, _), ..] = cli::EXITS;
    // The log's filter is read once everything else can be used.
    let cases: [(&[&str], u8); 5] = [
        (&["version"], done),
        (&["drain", "-h"], done),
        (&["-log-level", "a=b=c"], failed),
        (&["drian"], usage),
        (&["drain", "-timeout", "5"], usage),
    ];
    for (args, code) in cases {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_peerpod-ctrl"));
        let output = program.args(args).env_clear().env("POD_NAMESPACE", "n").output().unwrap();
        assert_eq!(output.status.code(), Some(code.into()), "{args:?}: {output:?}");
    }
}

//! The book's tables are those that the code gives, and what its pages show is read by what reads it.

// Providers are looked up by name here too, and the linker keeps only what is named.
use cloud_providers_bundle as _;

// The pages configure libvirt.
#[cfg(feature = "libvirt")]
mod pages;

use std::{path::Path, time::Duration};

use caa::metrics::{Metrics, SpanCounts, StartPhase};
use cloud_providers::{
    ErrorKind,
    layers::{CallOutcome, Observer as _, Operation},
};

/// Sets every metric of the daemon once.
fn every_metric() -> String {
    let spans = SpanCounts::default();
    spans.sent(1, 0);
    spans.dropped("queue_full", 1);
    let metrics = Metrics::with_spans("local", &spans);
    metrics.phase(StartPhase::Create, Duration::ZERO);
    metrics.phase_failure(StartPhase::Create, "quota");
    metrics.failure("start_vm", "internal");
    metrics.started(Operation::Create);
    metrics.retried(Operation::Create, &ErrorKind::Throttled, Duration::ZERO);
    metrics.waited(Operation::Create, Duration::ZERO);
    metrics.finished(Operation::Create, CallOutcome::Ok, Duration::ZERO);
    metrics.text()
}

#[test]
fn the_books_list_of_metrics_is_fresh() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let table = test_support::metrics_table(&every_metric()).unwrap();
    test_support::fresh_part(&page, "metrics:cloud-api-adaptor", &table).unwrap();
    // The words that a label may have.
    let words =
        |words: Vec<&str>| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    let phases = words(StartPhase::ALL.iter().map(|phase| phase.label()).collect());
    test_support::fresh_part(&page, "words:phase", &phases).unwrap();
    let operations = words(Operation::ALL.iter().map(|operation| operation.label()).collect());
    test_support::fresh_part(&page, "words:operation", &operations).unwrap();
}

#[test]
fn no_metric_has_a_label_whose_words_grow_with_the_pods() {
    let table = test_support::metrics_table(&every_metric()).unwrap();
    let known = ["provider", "phase", "kind", "operation", "outcome", "reason"];
    for row in table.lines().skip(2) {
        let labels = row.split('|').nth(3).unwrap().split(',').map(str::trim);
        for label in labels.filter(|label| !label.is_empty()) {
            assert!(known.contains(&label), "{row}: ask whether the words of {label} are from a fixed set");
        }
    }
}

/// Compares a part of the page of operations with the code.
fn is_fresh(marker: &str, table: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    test_support::fresh_part(&page, marker, table).unwrap();
}

#[test]
fn the_books_table_of_options_is_fresh() {
    let table = cloud_providers::options_table(caa::config::OPTIONS);
    is_fresh("options:cloud-api-adaptor", &table);
}

#[test]
fn the_books_table_of_checks_is_fresh() {
    is_fresh("checks", &caa::validate::table());
}

#[test]
fn the_books_table_of_refusals_is_fresh() {
    is_fresh("refusals", &caa::status::table());
}

#[test]
fn the_books_exit_codes_and_the_commands_of_caactl_are_fresh() {
    let parts = [
        ("exits:cloud-api-adaptor", test_support::exit_table(caa::cli::EXITS)),
        ("exits:validate", test_support::exit_table(caa::validate::EXITS)),
        ("options:caactl", test_support::command_table(&caa::ctl::command())),
        ("exits:caactl", test_support::exit_table(caa::ctl::EXITS)),
    ];
    for (marker, table) in parts {
        is_fresh(marker, &table);
    }
}

#[test]
fn the_programs_end_with_the_codes_of_the_table() {
    let (daemon, caactl) = (env!("CARGO_BIN_EXE_cloud-api-adaptor"), env!("CARGO_BIN_EXE_caactl"));
    let cases: [(&str, &[&str], u8); 8] = [
        (daemon, &["help"], caa::cli::EXITS[0].0),
        (daemon, &[], caa::cli::EXITS[1].0),
        (daemon, &["no-such-provider"], caa::cli::EXITS[1].0),
        (daemon, &["no-such-provider", "validate"], caa::validate::EXITS[2].0),
        (caactl, &["--version"], caa::ctl::EXITS[0].0),
        (caactl, &["journal", "--state-dir", "/nonexistent"], caa::ctl::EXITS[1].0),
        (caactl, &["no-such-command"], caa::ctl::EXITS[2].0),
        (caactl, &["--socket", "/nonexistent/x.sock", "list"], caa::ctl::EXITS[3].0),
    ];
    for (program, args, code) in cases {
        let output = std::process::Command::new(program).args(args).env_clear().output().unwrap();
        assert_eq!(output.status.code(), Some(code.into()), "{program} {args:?}: {output:?}");
    }
}

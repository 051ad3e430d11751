//! The book's tables are those that the code gives.

use std::{path::Path, process::Command};

use peerpod_gateway::cli;

#[test]
fn the_books_options_and_exit_codes_are_fresh() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let options = test_support::command_table(&cli::command());
    test_support::fresh_part(&page, "options:peerpod-gateway", &options).unwrap();
    test_support::fresh_part(&page, "exits:peerpod-gateway", &test_support::exit_table(cli::EXITS)).unwrap();
}

#[test]
fn the_program_ends_with_the_codes_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("file");
    std::fs::write(&nowhere, "").unwrap();
    let below_a_file = nowhere.join("gateway.sock");
    let cases: [(&[&str], u8); 4] = [
        (&["--version"], cli::DONE.0),
        (&["--help"], cli::DONE.0),
        (&["--control-socket", below_a_file.to_str().unwrap()], cli::FAILED.0),
        (&["--log-level", "loud"], cli::USAGE.0),
    ];
    for (args, code) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_peerpod-gateway")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code.into()), "{args:?}: {output:?}");
    }
}

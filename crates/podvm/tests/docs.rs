//! The book's tables are those that the programs use.

use std::{path::Path, process::Command};

use podvm::programs;
use test_support::{exit_table, fresh_part};

#[test]
fn the_books_options_and_exit_codes_are_fresh() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guest.md");
    let parts = [
        ("options:agent-protocol-forwarder", programs::flags_table(programs::FORWARDER_FLAGS)),
        ("exits:agent-protocol-forwarder", exit_table(programs::FORWARDER_EXITS)),
        ("options:process-user-data", programs::flags_table(programs::USER_DATA_FLAGS)),
        ("exits:process-user-data", exit_table(programs::USER_DATA_EXITS)),
        ("options:podvm-init", programs::flags_table(programs::INIT_FLAGS)),
        ("exits:podvm-init", exit_table(programs::init_exits())),
    ];
    for (marker, table) in parts {
        fresh_part(&page, marker, &table).unwrap();
    }
}

#[test]
fn the_programs_end_with_the_codes_of_the_table() {
    let [(done, _), (failed, _)] = programs::FORWARDER_EXITS;
    let (forwarder, user_data) =
        (env!("CARGO_BIN_EXE_agent-protocol-forwarder"), env!("CARGO_BIN_EXE_process-user-data"));
    let init = env!("CARGO_BIN_EXE_podvm-init");
    let cases: [(&str, &[&str], u8); 9] = [
        (forwarder, &["-version"], done),
        (forwarder, &["-help"], done),
        (forwarder, &["-config", "/dev/null"], failed),
        (forwarder, &["-cofnig", "x"], failed),
        (user_data, &["-help"], programs::USER_DATA_EXITS[0].0),
        (user_data, &["provision"], programs::USER_DATA_EXITS[1].0),
        (init, &["-version"], programs::INIT_DONE.0),
        (init, &["-restarts", "many"], programs::INIT_USAGE.0),
        (init, &["-unknown"], programs::INIT_USAGE.0),
    ];
    for (program, args, code) in cases {
        let output = Command::new(program).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code.into()), "{program} {args:?}: {output:?}");
    }
}

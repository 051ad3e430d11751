//! The book's tables are those that the program uses.

use std::path::Path;

#[test]
fn the_books_commands_and_exit_codes_are_fresh() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/testbed/cli.md");
    let options = test_support::command_table(&testbed::command_line());
    test_support::fresh_part(&page, "options:testbed", &options).unwrap();
    test_support::fresh_part(&page, "exits:testbed", &test_support::exit_table(testbed::EXITS)).unwrap();
}

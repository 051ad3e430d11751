//! The page of the book.

use std::path::Path;

use cloud_providers_local::OPTIONS;

#[test]
fn the_book_shows_every_option() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers/local.md");
    let table = cloud_providers::options_table(OPTIONS);
    test_support::fresh_part(&page, "options:local", &table).unwrap();
}

#[test]
fn the_book_shows_how_the_program_without_root_is_called() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers/local.md");
    let usage = format!("```text\n{}\n```", cloud_providers_local::rootless::USAGE);
    test_support::fresh_part(&page, "usage:local-rootless", &usage).unwrap();
}

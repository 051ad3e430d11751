//! The book's table of options is the one that the declarations give.

use std::{fs, path::Path};

#[test]
fn the_books_table_of_options_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let text = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- options:daemon -->\n", "<!-- /options -->");
    let (head, rest) = text.split_once(begin).unwrap();
    let (_, tail) = rest.split_once(end).unwrap();
    let fresh = format!(
        "{head}{begin}{}\n{end}{tail}",
        cloud_providers::options_table(caa::config::OPTIONS).trim_end()
    );
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    assert!(text == fresh || std::env::var_os("UPDATE_DOCS").is_some(), "run it once with UPDATE_DOCS=1");
}

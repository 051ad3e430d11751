//! The page of the book.

use std::{fs, path::Path};

use cloud_providers_local::OPTIONS;

#[test]
fn the_book_shows_every_option() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers/local.md");
    let text = fs::read_to_string(&page).unwrap();
    let (begin, end) = ("<!-- options:local -->\n", "<!-- /options -->");
    let (head, rest) = text.split_once(begin).unwrap();
    let (_, tail) = rest.split_once(end).unwrap();
    let fresh = format!("{head}{begin}{}{end}{tail}", cloud_providers::options_table(OPTIONS));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&page, &fresh).unwrap();
    } else {
        assert!(text == fresh, "{}: run this test once with UPDATE_DOCS=1", page.display());
    }
}

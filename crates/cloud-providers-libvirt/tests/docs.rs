//! The book's table of options is the one that the declarations give.

use std::{fs, path::Path};

#[test]
fn the_book_shows_every_option() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers/libvirt.md");
    let text = fs::read_to_string(&page).unwrap();
    let (begin, end) = ("<!-- options:libvirt -->\n", "<!-- /options -->");
    let (head, rest) = text.split_once(begin).unwrap();
    let (_, tail) = rest.split_once(end).unwrap();
    let table = cloud_providers::options_table(cloud_providers_libvirt::OPTIONS);
    let fresh = format!("{head}{begin}{table}{end}{tail}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&page, &fresh).unwrap();
    } else {
        assert!(text == fresh, "{}: run this test once with UPDATE_DOCS=1", page.display());
    }
}

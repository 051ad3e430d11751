//! The book's table of options is the one that the declarations give.

use std::path::Path;

#[test]
fn the_book_shows_every_option() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers/libvirt.md");
    let table = cloud_providers::options_table(cloud_providers_libvirt::OPTIONS);
    test_support::fresh_part(&page, "options:libvirt", &table).unwrap();
}

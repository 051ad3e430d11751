//! The page of the book and the set-up for end-to-end tests.

use std::{fs, path::Path};

use cloud_providers___ident__::OPTIONS;

#[test]
fn the_book_shows_every_option() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers/__name__.md");
    let text = fs::read_to_string(&page).unwrap();
    let (begin, end) = ("<!-- options:__name__ -->\n", "<!-- /options -->");
    let (head, rest) = text.split_once(begin).unwrap();
    let (_, tail) = rest.split_once(end).unwrap();
    let fresh = format!("{head}{begin}{}{end}{tail}", cloud_providers::options_table(OPTIONS));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&page, &fresh).unwrap();
    } else {
        assert!(text == fresh, "{}: run `cargo xtask docs`, which writes it", page.display());
    }
}

#[test]
fn the_set_up_gives_every_required_variable() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/setups/__name__/setup.toml");
    let text = fs::read_to_string(&file).unwrap();
    for variable in OPTIONS.iter().filter(|option| option.required).filter_map(|option| option.env) {
        assert!(text.contains(&format!("\"{variable}\"")), "{} lacks {variable}", file.display());
    }
}

//! The pages about the document: their examples work, they name every key, and the tests they name are there.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;
use testbed::document;

fn docs() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/testbed")
}

fn page(name: &str) -> String {
    fs::read_to_string(docs().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn every_example_is_a_document() {
    let page = page("reservation.md");
    let blocks: Vec<&str> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 10, "{}", blocks.len());
    for block in blocks {
        let read = document::check(block, Path::new("/tmp/demo"), "reservation.yaml");
        read.unwrap_or_else(|e| panic!("{e}\n{block}"));
    }
}

#[test]
fn what_other_pages_show_of_a_document_is_part_of_one() {
    let example = docs().join("../examples/my-testbed/README.md");
    let pages = [docs().join("clouds.md"), docs().join("new-provider.md"), example];
    let mut count = 0;
    for file in pages {
        let page = fs::read_to_string(&file).unwrap();
        for block in page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            // They show the provider alone; a document wants machines, too.
            let machines = if block.contains("resources:") { "" } else { "resources:\n  small: {node: 1}\n" };
            let read =
                document::check(&format!("{block}{machines}"), Path::new("/tmp/demo"), "reservation.yaml");
            read.unwrap_or_else(|e| panic!("{}: {e}\n{block}", file.display()));
            count += 1;
        }
    }
    assert!(count >= 4, "{count}");
}

#[test]
fn every_key_is_on_the_page() {
    fn keys(value: &Value, all: &mut BTreeSet<String>) {
        if let Some(properties) = value.get("properties").and_then(Value::as_object) {
            all.extend(properties.keys().cloned());
        }
        match value {
            Value::Object(map) => map.values().for_each(|v| keys(v, all)),
            Value::Array(items) => items.iter().for_each(|v| keys(v, all)),
            _ => {}
        }
    }
    let mut all = BTreeSet::new();
    keys(&document::schema(), &mut all);
    let page = page("reservation.md");
    let words: BTreeSet<&str> = page.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let absent: Vec<&String> = all.iter().filter(|key| !words.contains(key.as_str())).collect();
    // American spelling needs no words.
    assert!(absent.iter().all(|key| key.as_str() == "flavors"), "{absent:?}");
}

#[test]
fn every_test_of_the_traps_is_there() {
    let sources = sources();
    let (mut count, page) = (0, page("traps.md"));
    for row in rows(&page) {
        for test in row.last().unwrap().split(", ").map(|test| test.trim_matches('`')) {
            assert_is_there(&sources, test, &row);
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn what_the_comparison_claims_has_a_test_and_what_it_denies_a_reason() {
    let sources = sources();
    let page = page("comparison.md");
    let mut count = 0;
    for row in rows(&page) {
        let [.., ours, shown] = row.as_slice() else { panic!("a short row: {row:?}") };
        assert!(shown.len() > 10, "{row:?}");
        if *ours == "no" {
            assert!(!shown.starts_with('`'), "{row:?}");
            continue;
        }
        for test in shown.split(", ").map(|test| test.trim_matches('`')) {
            assert_is_there(&sources, test, &row);
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
}

/// The cells of a page's table, without its head.
fn rows(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = page.lines().filter(|line| line.starts_with("| ")).skip(2);
    lines.map(|line| line.trim_start_matches("| ").trim_end_matches(" |").split(" | ").collect())
}

fn assert_is_there(sources: &str, test: &str, row: &[&str]) {
    let name = test.rsplit("::").next().unwrap();
    assert!(sources.contains(&format!("fn {name}(")), "no test {name}: {row:?}");
}

/// The text of all sources and tests.
fn sources() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut text, mut folders) = (String::new(), vec![root.join("src"), root.join("tests")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

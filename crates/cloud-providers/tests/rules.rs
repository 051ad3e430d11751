//! The rules in the docs and the ids in the traits' documentation are the same.

use std::{collections::BTreeSet, fs, path::PathBuf};

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_rule_is_named_by_a_method_and_explained_in_the_docs() {
    let rules = read("../../docs/contract/rules.md");
    let explained: Vec<&str> =
        rules.lines().filter_map(|l| l.strip_prefix("### `")?.strip_suffix('`')).collect();
    let unique: BTreeSet<&str> = explained.iter().copied().collect();
    assert_eq!(unique.len(), explained.len(), "a rule stands twice");

    let source = read("src/provider.rs");
    let is_id = |s: &&str| {
        s.split_once('/').is_some_and(|(group, rule)| {
            let word = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            word(group) && word(rule)
        })
    };
    let docs = source.lines().filter(|l| l.trim_start().starts_with("///"));
    let named: BTreeSet<&str> = docs.flat_map(|l| l.split('`')).filter(is_id).collect();
    assert!(named.len() > 30, "{}", named.len());
    assert_eq!(named, unique);

    for id in explained {
        let body = rules.split(&format!("### `{id}`\n")).nth(1).unwrap().split("\n#").next().unwrap();
        assert!(body.trim().len() > 40, "{id} is not explained");
    }
}

//! What stands where, and what every package has.

use std::collections::BTreeSet;
use std::path::Path;

use cargo_metadata::Metadata;

use super::{Problem, Tree};

/// What may stand at the top, beside dotfiles. Folders end in a slash.
const TOP: &[&str] = &[
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "crates/",
    "deny.toml",
    "docs/",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests/",
    "xtask/",
];

/// What may stand in `tests/`.
const TESTS: &[&str] = &["cloudsim", "e2e", "fixtures", "setups", "support"];

/// Crates beside `cloud-providers` and `cloud-providers-*`.
const CRATES: &[&str] = &[
    "caa",
    "cloud-providers",
    "peerpod-api",
    "peerpod-ctrl",
    "peerpod-gateway",
    "peerpod-net",
    "peerpod-proto",
    "peerpod-webhook",
    "podvm",
    "testbed",
    "testbed-cli",
    "testbed-grid5000",
    "testbed-vagrant",
];

/// Files that must be there.
const NEEDED: &[&str] = &[
    ".ci/run",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "deny.toml",
    "docs/SUMMARY.md",
    "docs/architecture.md",
    "docs/book.toml",
    "docs/faults.md",
];

/// Checks the top level, `tests/` and `crates/` against the layout.
pub(super) fn top_level(tree: &Tree) -> Vec<Problem> {
    let mut problems = BTreeSet::new();
    for path in tree.paths() {
        let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
        let Some(first) = parts.first() else { continue };
        let top = if parts.len() > 1 { format!("{first}/") } else { (*first).to_owned() };
        if !first.starts_with('.') && !TOP.contains(&top.as_str()) {
            problems.insert((
                top,
                "does not belong at the top",
                "move it to crates/, tests/, docs/ or xtask/",
            ));
        }
        if parts.len() > 2 && parts[0] == "tests" && !TESTS.contains(&parts[1]) {
            problems.insert((
                format!("tests/{}/", parts[1]),
                "is no part of the layout",
                "use tests/e2e, tests/setups, tests/support, tests/cloudsim or tests/fixtures",
            ));
        }
        if parts.len() > 2 && parts[0] == "crates" {
            let known = CRATES.contains(&parts[1]) || parts[1].starts_with("cloud-providers-");
            if !known {
                let mend = "name it in xtask/src/tidy/layout.rs and in docs/architecture.md when it is meant to stay";
                problems.insert((format!("crates/{}/", parts[1]), "is no part of the layout", mend));
            }
        }
    }
    let mut problems: Vec<Problem> =
        problems.into_iter().map(|(place, what, mend)| Problem::new(place, what, mend)).collect();
    for needed in NEEDED {
        if !tree.paths().any(|path| path == Path::new(needed)) {
            problems.push(Problem::new(needed, "is missing", "write it; the layout demands it"));
        }
    }
    problems
}

/// Checks that every package has what a package needs.
pub(super) fn packages(tree: &Tree, metadata: &Metadata) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let manifest = package.manifest_path.as_std_path();
        let Some(folder) = manifest.parent().and_then(|folder| folder.strip_prefix(&tree.root).ok()) else {
            continue;
        };
        let place = folder.display();
        match tree.text(folder.join("README.md")) {
            Some(text) if text.lines().filter(|line| !line.trim().is_empty()).count() > 3 => {}
            Some(_) => problems.push(Problem::new(
                format!("{place}/README.md"),
                "says next to nothing",
                "say what the package is, who uses it, and show an example",
            )),
            None => problems.push(Problem::new(
                &place,
                "has no README.md",
                "write one; it is the crate's documentation",
            )),
        }
        let changelog = tree.text(folder.join("CHANGELOG.md"));
        if !changelog.is_some_and(|text| text.lines().any(|line| line.starts_with("## "))) {
            let mend = "write CHANGELOG.md with a heading `## Unreleased`";
            problems.push(Problem::new(&place, "has no changelog with a section", mend));
        }
        let list = tree.text("CHANGELOG.md").unwrap_or_default();
        if !list.contains(&format!("({place}/CHANGELOG.md)")) {
            let line = format!("- [{}]({place}/CHANGELOG.md)", package.name);
            let mend = format!("add the line `{line}` under Packages");
            problems.push(Problem::new("CHANGELOG.md", format!("does not list {}", package.name), mend));
        }
        if package.license.as_deref() != Some("Apache-2.0") {
            let mend = "write `license.workspace = true` in its Cargo.toml";
            problems.push(Problem::new(&place, "is not under Apache-2.0", mend));
        }
        if package.description.as_deref().unwrap_or_default().is_empty() {
            problems.push(Problem::new(&place, "has no description", "write one sentence in its Cargo.toml"));
        }
        let manifest = tree.text(folder.join("Cargo.toml")).unwrap_or_default();
        if manifest.contains("version.workspace = true")
            && !manifest.contains("rust-version.workspace = true")
        {
            problems.push(Problem::new(
                &place,
                "shares its version",
                "give the package a version of its own",
            ));
        }
        if !manifest.replace(' ', "").contains("[lints]\nworkspace=true") {
            let mend = "write `[lints]` with `workspace = true` in its Cargo.toml";
            problems.push(Problem::new(&place, "does not take the lints of the workspace", mend));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_at_the_top_are_named() {
        let tree = Tree::of(&[
            (".gitignore", ""),
            ("Makefile", ""),
            ("src/lib.rs", ""),
            ("crates/caa/src/lib.rs", ""),
            ("crates/mystery/src/lib.rs", ""),
            ("tests/odd/x.rs", ""),
        ]);
        let places: Vec<String> = top_level(&tree).into_iter().map(|problem| problem.place).collect();
        for stranger in ["Makefile", "src/", "crates/mystery/", "tests/odd/"] {
            assert!(places.contains(&stranger.to_owned()), "{stranger} is not in {places:?}");
        }
        assert!(!places.iter().any(|place| place.contains("caa") || place.contains("gitignore")));
    }

    #[test]
    fn missing_files_are_named() {
        let places: Vec<String> =
            top_level(&Tree::of(&[])).into_iter().map(|problem| problem.place).collect();
        assert_eq!(places.len(), NEEDED.len());
    }
}

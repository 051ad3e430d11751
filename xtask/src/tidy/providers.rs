//! What every provider has: files of the same names, a page, a row in each table, a suite.

use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata};

use super::graph::is_provider;
use super::{Problem, Tree};

/// Files of a provider crate, by what they are for. One of the paths is there.
const FILES: &[(&[&str], &str)] = &[
    (&["src/lib.rs"], "modules, exports, registration"),
    (&["src/config.rs"], "the options and what they mean"),
    (&["src/cloud.rs"], "the Cloud, which reads the configuration"),
    (&["src/provider.rs"], "the Provider"),
    (&["src/client.rs", "src/client/mod.rs"], "the calls to the cloud"),
    (&["src/error.rs"], "what the cloud's errors mean"),
    (&["tests/conformance.rs", "tests/conformance/main.rs"], "the conformance suite"),
    (&["tests/conformance-skips.toml"], "what the suite may skip, with reasons"),
];

/// Providers without one of these files, and why.
const WITHOUT: &[(&str, &str)] = &[
    // Its cloud is the kernel: each of its modules makes the calls that it is about.
    ("cloud-providers-local", "src/client.rs"),
];

/// The suite.
const SUITE: &str = "cloud-providers-conformance";
/// Pages with a row or a line for each provider, and what it contains for the provider `x`.
const TABLES: &[(&str, &str, &str)] = &[
    ("docs/providers/index.md", "| [x](x.md) |", "a row"),
    ("docs/SUMMARY.md", "- [x](providers/x.md)", "a line"),
    ("crates/cloud-providers-bundle/README.md", "| `x`", "a row"),
    ("crates/caa/README.md", "| `x`", "a row"),
    ("crates/peerpod-ctrl/README.md", "| `x`", "a row"),
];

/// Headings that the page of a provider has.
const HEADINGS: &[&str] = &["## Options", "## Limits"];

/// Checks files, page and tables of each provider.
pub(super) fn files(tree: &Tree, metadata: &Metadata) -> Vec<Problem> {
    let names: Vec<String> =
        metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();
    names.iter().filter(|name| is_provider(name)).flat_map(|name| of_provider(tree, name)).collect()
}

fn of_provider(tree: &Tree, package: &str) -> Vec<Problem> {
    let folder = format!("crates/{package}");
    let name = package.trim_start_matches("cloud-providers-");
    let mut problems = Vec::new();
    for (paths, what) in FILES {
        let there = paths.iter().any(|path| tree.text(Path::new(&folder).join(path)).is_some());
        if !there && !WITHOUT.contains(&(package, paths[0])) {
            problems.push(Problem::new(
                &folder,
                format!("has no {}", paths[0]),
                format!("write it: files of the same name do the same job in every provider, here {what}"),
            ));
        }
    }
    let page = format!("docs/providers/{name}.md");
    match tree.text(&page) {
        None => problems.push(Problem::new(
            &page,
            "is missing",
            "write it; `cargo xtask new-provider` shows how one begins",
        )),
        Some(text) => {
            let options = format!("<!-- options:{name} -->");
            for needed in HEADINGS.iter().copied().chain([options.as_str()]) {
                if !text.lines().any(|line| line.trim() == needed) {
                    problems.push(Problem::new(
                        &page,
                        format!("has no line `{needed}`"),
                        "add the section: every provider's page has it",
                    ));
                }
            }
        }
    }
    for (table, row, what) in TABLES {
        let row = row
            .replace("[x]", &format!("[{name}]"))
            .replace("`x`", &format!("`{name}`"))
            .replace("x.md", &format!("{name}.md"));
        // A table of a program that is not there yet.
        let Some(text) = tree.text(table) else { continue };
        if !text.lines().any(|line| line.trim().starts_with(&row)) {
            problems.push(Problem::new(
                *table,
                format!("has no {} for {name}", what.trim_start_matches("a ")),
                format!("add {what} that begins with `{row}`"),
            ));
        }
    }
    problems
}

/// One dependency: who has it, on what, for what, and with which version wanted.
type Edge = (String, String, DependencyKind, String);

/// Checks that the suite is a dependency of tests only, by path without version, and that the contract has none of it.
pub(super) fn suite(metadata: &Metadata) -> Vec<Problem> {
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        let of_suite = package.dependencies.iter().filter(|dependency| dependency.name == SUITE);
        edges.extend(of_suite.map(|d| (package.name.to_string(), d.name.clone(), d.kind, d.req.to_string())));
    }
    let mut problems = wrong_suite(&edges);
    for package in metadata.workspace_packages().into_iter().filter(|package| is_provider(&package.name)) {
        if !edges.iter().any(|(from, ..)| *from == *package.name) {
            let mend =
                format!("write `{SUITE}.workspace = true` in its [dev-dependencies], and tests/conformance");
            problems.push(Problem::new(&package.name, "does not run the conformance suite", mend));
        }
    }
    problems
}

fn wrong_suite(edges: &[Edge]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (from, to, kind, wanted) in edges {
        if from == "cloud-providers" {
            let mend = "test it from the suite's own tests: the suite depends on the contract, and a circle cannot be published";
            problems.push(Problem::new(from, format!("depends on {to}"), mend));
        } else if *kind != DependencyKind::Development {
            problems.push(Problem::new(
                from,
                format!("depends on {to} outside of its tests"),
                "make it a dev-dependency",
            ));
        } else if wanted != "*" {
            let mend = "take the version out: cargo leaves a path without version out of what it publishes";
            problems.push(Problem::new(from, format!("wants version {wanted} of {to}"), mend));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Vec<(String, String)> {
        let mut files: Vec<(String, String)> = FILES
            .iter()
            .map(|(paths, _)| (format!("crates/cloud-providers-y/{}", paths[0]), String::new()))
            .collect();
        let page = "## Options\n\n<!-- options:y -->\n<!-- /options -->\n\n## Limits\n";
        files.push(("docs/providers/y.md".into(), page.into()));
        files.push(("docs/providers/index.md".into(), "| [y](y.md) | `y` |\n".into()));
        files.push(("docs/SUMMARY.md".into(), "  - [y](providers/y.md)\n".into()));
        files.push(("crates/cloud-providers-bundle/README.md".into(), "| `y` (default) | |\n".into()));
        files
    }

    fn found(files: &[(String, String)]) -> Vec<String> {
        let files: Vec<(&str, &str)> =
            files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        of_provider(&Tree::of(&files), "cloud-providers-y").into_iter().map(|problem| problem.what).collect()
    }

    #[test]
    fn everything_that_a_provider_lacks_is_named() {
        assert_eq!(found(&whole()), Vec::<String>::new());
        for index in 0..whole().len() {
            let mut files = whole();
            let (path, _) = files.remove(index);
            let what = found(&files);
            let table = TABLES.iter().any(|(table, ..)| *table == path);
            assert_eq!(what.len(), usize::from(!table), "{path}: {what:?}");
            let mut files = whole();
            files[index].1 = "something else\n".to_owned();
            let lacks = if path.ends_with("/y.md") { 3 } else { usize::from(table) };
            assert_eq!(found(&files).len(), lacks, "{path} without its content");
        }
    }

    #[test]
    fn the_suite_is_for_tests_and_without_version() {
        let edge =
            |from: &str, kind, wanted: &str| [(from.to_owned(), SUITE.to_owned(), kind, wanted.to_owned())];
        let development = DependencyKind::Development;
        assert_eq!(wrong_suite(&edge("cloud-providers-y", development, "*")), []);
        for wrong in [
            edge("cloud-providers", development, "*"),
            edge("cloud-providers-y", DependencyKind::Normal, "*"),
            edge("cloud-providers-y", development, "^0.1.0"),
        ] {
            assert_eq!(wrong_suite(&wrong).len(), 1, "{wrong:?}");
        }
    }
}

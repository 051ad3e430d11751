//! The table of faults: every id once, and every test that it names exists.

use std::collections::BTreeMap;

use cargo_metadata::Metadata;

use super::{Problem, Tree};

const PAGE: &str = "docs/faults.md";

/// How many faults each group has.
const GROUPS: [(char, u32); 8] =
    [('A', 20), ('B', 20), ('C', 11), ('D', 8), ('E', 9), ('F', 3), ('G', 18), ('H', 10)];

/// One row of the table.
struct Row<'a> {
    line: usize,
    id: &'a str,
    cells: Vec<&'a str>,
}

/// Checks the table.
pub(super) fn table(tree: &Tree, metadata: &Metadata) -> Vec<Problem> {
    let Some(text) = tree.text(PAGE) else { return Vec::new() };
    let rows = rows(text);
    let mut problems = ids(&rows);
    let packages = packages(tree, metadata);
    for row in &rows {
        let place = format!("{PAGE}:{}", row.line);
        let Some(evidence) = row.cells.last() else { continue };
        if row.cells.len() != 4 {
            problems.push(Problem::new(
                &place,
                format!("the row of {} has {} cells", row.id, row.cells.len()),
                "write four: id, fault, answer, evidence",
            ));
            continue;
        }
        if row.cells.iter().any(|cell| cell.is_empty()) {
            let mend = "say the fault, our answer, and the test or the plan";
            problems.push(Problem::new(&place, format!("the row of {} has an empty cell", row.id), mend));
        }
        let tests: Vec<&str> =
            evidence.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect();
        let plain = ["open", "planned", "does not apply", "by construction"];
        if tests.is_empty() && !plain.iter().any(|word| evidence.starts_with(word)) {
            let mend = "name a test as `crate::path::test`, or begin with open, planned, does not apply or by construction";
            problems.push(Problem::new(&place, format!("the row of {} names no evidence", row.id), mend));
        }
        for test in tests {
            if let Err(what) = find_test(tree, &packages, test) {
                problems.push(Problem::new(
                    &place,
                    what,
                    "name the test as `crate::path::test`, as it is called now",
                ));
            }
        }
    }
    problems
}

/// Other pages that show what they say by tests.
const NAMING: &[&str] = &["docs/comparison.md", "docs/reliability.md", "docs/security.md"];

/// Checks that the tests which other pages name exist.
pub(super) fn named(tree: &Tree, metadata: &Metadata) -> Vec<Problem> {
    let packages = packages(tree, metadata);
    let mut problems = Vec::new();
    for page in NAMING {
        for (index, line) in tree.text(page).unwrap_or_default().lines().enumerate() {
            let spans = line.split('`').skip(1).step_by(2);
            for test in spans.filter(|word| word.contains("::") && !word.contains(['(', ' ', '/'])) {
                if let Err(what) = find_test(tree, &packages, test) {
                    let mend = "name the test as `crate::path::test`, as it is called now";
                    problems.push(Problem::new(format!("{page}:{}", index + 1), what, mend));
                }
            }
        }
    }
    problems
}

/// The packages with their folders; names as in paths.
fn packages(tree: &Tree, metadata: &Metadata) -> Vec<(String, String)> {
    let packages = metadata.workspace_packages().into_iter();
    let entry = |package: &cargo_metadata::Package| {
        let folder = package.manifest_path.as_std_path().parent()?.strip_prefix(&tree.root).ok()?;
        Some((package.name.replace('-', "_"), folder.to_string_lossy().into_owned()))
    };
    packages.filter_map(entry).collect()
}

fn rows(text: &str) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some(inner) = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            continue;
        };
        let cells: Vec<&str> = inner.split('|').map(str::trim).collect();
        let id = cells[0];
        let letter_then_digits = id.starts_with(|c: char| c.is_ascii_uppercase())
            && id.len() > 1
            && id[1..].chars().all(|c| c.is_ascii_digit());
        if letter_then_digits {
            rows.push(Row { line: index + 1, id, cells });
        }
    }
    rows
}

fn ids(rows: &[Row<'_>]) -> Vec<Problem> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for row in rows {
        *seen.entry(row.id.to_owned()).or_default() += 1;
    }
    let mut problems = Vec::new();
    for (group, count) in GROUPS {
        for number in 1..=count {
            let id = format!("{group}{number}");
            match seen.remove(&id) {
                Some(1) => {}
                Some(times) => {
                    problems.push(Problem::new(
                        PAGE,
                        format!("has {times} rows for {id}"),
                        "keep one row for each id",
                    ));
                }
                None => problems.push(Problem::new(PAGE, format!("has no row for {id}"), "add the row")),
            }
        }
    }
    for id in seen.into_keys() {
        problems.push(Problem::new(
            PAGE,
            format!("has a row for {id}, which is no known id"),
            "take the row out, or add the id to xtask/src/tidy/faults.rs",
        ));
    }
    problems
}

/// Looks for `crate::path::test` in the sources of the package.
fn find_test(tree: &Tree, packages: &[(String, String)], name: &str) -> Result<(), String> {
    let parts: Vec<&str> = name.split("::").collect();
    let (krate, test) = (parts[0].replace('-', "_"), parts[parts.len() - 1]);
    let Some((_, folder)) = packages.iter().find(|(package, _)| *package == krate) else {
        return Err(format!("names the test {name}, but there is no package {}", parts[0]));
    };
    let path = &parts[1..parts.len() - 1];
    let found = tree.with_extension("rs").filter(|(file, _)| file.starts_with(folder)).any(|(file, text)| {
        let in_path = |part: &&str| {
            let stem = |component: &str| {
                component.trim_end_matches(".rs").replace('-', "_") == part.replace('-', "_")
            };
            file.iter().any(|component| component.to_str().is_some_and(stem))
                || text.contains(&format!("mod {part} {{"))
                || text.contains(&format!("mod {part};"))
        };
        text.contains(&format!("fn {test}(")) && path.iter().all(in_path)
    });
    if found { Ok(()) } else { Err(format!("names the test {name}, which does not exist")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_exactly_one_row() {
        let text = "| id | fault | answer | evidence |\n|---|---|---|---|\n| A1 | x | y | open |\n| A1 | x | y | open |\n| Z9 | x | y | open |\n";
        let found: Vec<String> = ids(&rows(text)).into_iter().map(|problem| problem.what).collect();
        let all: u32 = GROUPS.iter().map(|(_, count)| count).sum();
        assert_eq!(all, 99);
        assert_eq!(found.len() as u32, all - 1 + 1 + 1, "98 are missing, A1 is double, Z9 is unknown");
        assert!(found.iter().any(|what| what.contains("2 rows for A1")));
        assert!(found.iter().any(|what| what.contains("Z9")));
    }

    #[test]
    fn a_named_test_must_exist_where_it_is_said_to_be() {
        let tree =
            Tree::of(&[("crates/caa/src/sandbox/life.rs", "mod tests {\n fn stop_is_idempotent() {}\n}")]);
        let packages = [("caa".to_owned(), "crates/caa".to_owned())];
        assert_eq!(find_test(&tree, &packages, "caa::sandbox::life::tests::stop_is_idempotent"), Ok(()));
        assert!(find_test(&tree, &packages, "caa::sandbox::start::tests::stop_is_idempotent").is_err());
        assert!(find_test(&tree, &packages, "caa::sandbox::life::tests::stop").is_err());
        assert!(find_test(&tree, &packages, "podvm::stop_is_idempotent").is_err());
    }
}

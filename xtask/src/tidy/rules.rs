//! The rules of the contract and the cases of the conformance suite: the same ids on both sides.

use std::collections::BTreeMap;

use super::{Problem, Tree};

const RULES: &str = "docs/contract/rules.md";
const CASES: &str = "crates/cloud-providers-conformance/src/cases/mod.rs";

/// Checks that every rule has a case, every case a rule, and none stands twice.
pub(super) fn cases(tree: &Tree) -> Vec<Problem> {
    let (Some(page), Some(source)) = (tree.text(RULES), tree.text(CASES)) else { return Vec::new() };
    let heading = |line: &'_ str| line.strip_prefix("### `")?.strip_suffix('`').map(str::to_owned);
    let case =
        |line: &'_ str| line.trim().strip_prefix("case!(\"")?.split_once('"').map(|(id, _)| id.to_owned());
    let mut problems = Vec::new();
    let rules = once(RULES, page.lines().filter_map(heading), &mut problems);
    let cases = once(CASES, source.lines().filter_map(case), &mut problems);
    for id in rules.keys().filter(|id| !cases.contains_key(*id)) {
        problems.push(Problem::new(
            CASES,
            format!("has no case for the rule `{id}` of {RULES}"),
            "add a line `case!(\"<rule>\", <checks>)`, and a provider that breaks it to tests/mutants",
        ));
    }
    for id in cases.keys().filter(|id| !rules.contains_key(*id)) {
        let what = format!("has the case `{id}`, which is no rule of {RULES}");
        problems.push(Problem::new(CASES, what, "explain the rule there, or take the case out"));
    }
    problems
}

/// Collects ids and complains of those that stand twice.
fn once(
    place: &str,
    ids: impl Iterator<Item = String>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, usize> {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    ids.for_each(|id| *count.entry(id).or_default() += 1);
    for (id, times) in count.iter().filter(|(_, times)| **times > 1) {
        problems.push(Problem::new(place, format!("has `{id}` {times} times"), "keep one of them"));
    }
    if count.is_empty() {
        problems.push(Problem::new(
            place,
            "names no rule",
            "write ids as the other lines of this check expect",
        ));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str, source: &str) -> Vec<String> {
        cases(&Tree::of(&[(RULES, page), (CASES, source)])).into_iter().map(|problem| problem.what).collect()
    }

    #[test]
    fn a_surplus_on_either_side_is_a_problem() {
        let page = "### `a/one`\n### `a/two`\n";
        assert!(found(page, "    case!(\"a/one\", x),\n    case!(\"a/two\", x),\n").is_empty());
        let what = found(page, "    case!(\"a/one\", x),\n    case!(\"a/new\", x),\n");
        assert!(what.len() == 2 && what[0].contains("a/two") && what[1].contains("a/new"), "{what:?}");
    }

    #[test]
    fn doubles_and_empty_lists_are_problems() {
        let what = found("### `a/one`\n", "case!(\"a/one\", x),\ncase!(\"a/one\", y),\n");
        assert!(what.len() == 1 && what[0].contains("2 times"), "{what:?}");
        assert_eq!(found("", "").len(), 2);
    }
}

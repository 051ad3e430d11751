//! The book: every page listed, every link resolved, rules and code in step.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use cargo_metadata::{Metadata, Package};

use super::{Problem, Tree};

const SUMMARY: &str = "docs/SUMMARY.md";
const RULES: &str = "docs/contract/rules.md";
const PROVIDER: &str = "crates/cloud-providers/src/provider.rs";

/// Checks that the table of contents lists every page once.
pub(super) fn summary(tree: &Tree) -> Vec<Problem> {
    let Some(text) = tree.text(SUMMARY) else { return Vec::new() };
    let mut problems = Vec::new();
    let mut listed = BTreeSet::new();
    for target in link_targets(text) {
        let page = Path::new("docs").join(&target.path);
        if !listed.insert(page.clone()) {
            problems.push(Problem::new(
                SUMMARY,
                format!("lists {} twice", page.display()),
                "keep one of the lines",
            ));
        }
    }
    // Examples are packages, whose own pages are for their readers on a registry.
    let is_page = |path: &Path| path.starts_with("docs") && !path.starts_with("docs/examples");
    for (page, _) in tree.with_extension("md").filter(|(path, _)| is_page(path)) {
        if page != Path::new(SUMMARY) && !listed.contains(page) {
            let mend = format!("add a line for it to {SUMMARY}");
            problems.push(Problem::new(page.display(), "is not in the table of contents", mend));
        }
    }
    problems
}

/// Checks that relative links in Markdown files lead to something.
pub(super) fn links(tree: &Tree) -> Vec<Problem> {
    let files: BTreeSet<&Path> = tree.paths().collect();
    let exists = |path: &Path| files.contains(path) || files.iter().any(|file| file.starts_with(path));
    let mut problems = Vec::new();
    for (page, text) in tree.with_extension("md") {
        let folder = page.parent().unwrap_or(Path::new(""));
        for target in link_targets(text) {
            let Some(path) = normalize(&folder.join(&target.path)) else {
                let what = format!("links to {}, outside of the repository", target.path);
                problems.push(Problem::new(page.display(), what, "link to a page of the repository"));
                continue;
            };
            let place = format!("{}:{}", page.display(), target.line);
            if !target.path.is_empty() && !exists(&path) {
                let what = format!("links to {}, which does not exist", target.path);
                problems.push(Problem::new(
                    place,
                    what,
                    "correct the path, which counts from the page's folder",
                ));
                continue;
            }
            let Some(anchor) = target.anchor else { continue };
            let path = if target.path.is_empty() { page.to_owned() } else { path };
            let headings = tree.text(&path).map(anchors).unwrap_or_default();
            if path.extension().is_some_and(|extension| extension == "md") && !headings.contains(&anchor) {
                let what = format!("links to #{anchor}, and {} has no such heading", path.display());
                problems.push(Problem::new(
                    place,
                    what,
                    "write the heading in lower case with dashes for blanks",
                ));
            }
        }
    }
    problems
}

/// The parts of pages that are written from the code, by the beginning of their marks.
const WRITTEN: [&str; 5] = ["options:", "exits:", "metrics:", "words:", "usage:"];

/// Checks that parts which are written from the code are kept by a test: it knows their mark and compares.
pub(super) fn kept_tables(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (page, text) in tree.with_extension("md").filter(|(path, _)| path.starts_with("docs")) {
        let marks = prose(text).filter_map(|(number, line)| {
            let mark = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
            WRITTEN.iter().any(|kind| mark.starts_with(kind)).then_some((number, mark))
        });
        for (number, mark) in marks {
            let place = format!("{}:{number}", page.display());
            let end = text.lines().skip(number).find(|line| line.starts_with("<!-- "));
            if end != Some("<!-- /options -->") && end != Some(&format!("<!-- /{mark} -->")) {
                let mend = format!("end the part with a line `<!-- /{mark} -->`");
                let what = format!("begins a part with `{mark}` that has no end");
                problems.push(Problem::new(&place, what, mend));
            }
            if !tree.with_extension("rs").any(|(path, text)| is_test(path) && text.contains(mark)) {
                let mend = "write a test that compares it, such as crates/caa/tests/docs.rs";
                let what = format!("has the part `{mark}`, which no test keeps fresh");
                problems.push(Problem::new(&place, what, mend));
            }
        }
    }
    problems
}

fn is_test(path: &Path) -> bool {
    path.iter().any(|part| part == "tests")
}

/// Checks that the book has the options and the exit codes of every program that is published, as the code has them.
pub(super) fn programs(tree: &Tree, metadata: &Metadata) -> Vec<Problem> {
    let published = |package: &&Package| package.publish.as_ref().is_none_or(|to| !to.is_empty());
    let programs = metadata.workspace_packages().into_iter().filter(published).flat_map(|package| {
        package.targets.iter().filter(|target| target.is_bin()).map(|target| target.name.clone())
    });
    listed(tree, &programs.collect::<Vec<_>>())
}

fn listed(tree: &Tree, programs: &[String]) -> Vec<Problem> {
    let has = |mark: String| {
        let pages = tree.with_extension("md").filter(|(path, _)| path.starts_with("docs"));
        let line = format!("<!-- {mark} -->");
        pages.into_iter().any(|(_, text)| text.lines().any(|found| found == line))
    };
    let lacks = |program: &&String| {
        let tables = has(format!("options:{program}")) && has(format!("exits:{program}"));
        // A small program may show the text of its help, which has both.
        !tables && !has(format!("usage:{program}"))
    };
    let problem = |program: &String| {
        let what = format!("has no options or no exit codes of the program {program}");
        let mend = format!(
            "write the lines `<!-- options:{program} -->` and `<!-- exits:{program} -->` with their ends in a page, and a test \
             `docs` that compares them"
        );
        Problem::new("docs", what, mend)
    };
    programs.iter().filter(lacks).map(problem).collect()
}

/// Checks that the ids of rules in the contract page are those that the trait names.
pub(super) fn rules(tree: &Tree) -> Vec<Problem> {
    let (Some(page), Some(source)) = (tree.text(RULES), tree.text(PROVIDER)) else {
        return Vec::new();
    };
    let headings: String = page
        .lines()
        .filter(|line| line.starts_with('#') || line.starts_with('|'))
        .collect::<Vec<_>>()
        .join("\n");
    let (written, used) = (rule_ids(&headings), rule_ids(&contract_lines(source)));
    let mut problems = Vec::new();
    for id in used.difference(&written) {
        problems.push(Problem::new(
            RULES,
            format!("has no rule `{id}`"),
            format!("{PROVIDER} names it: describe it"),
        ));
    }
    for id in written.difference(&used) {
        let what = format!("has the rule `{id}`, which {PROVIDER} does not name");
        problems.push(Problem::new(RULES, what, "name it in the `Contract:` line of the method it binds"));
    }
    problems
}

/// The documentation paragraphs that begin with `Contract:` or `Contract, for every method:`.
fn contract_lines(source: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for line in source.lines() {
        let comment = line.trim_start().trim_start_matches("//!").trim_start_matches("///").trim();
        let begins = comment.starts_with("Contract:") || comment.starts_with("Contract, ");
        inside = !comment.is_empty() && (inside || begins);
        if inside {
            text.push_str(comment);
            text.push('\n');
        }
    }
    text
}

/// Words such as `delete/missing-is-ok` in backticks.
fn rule_ids(text: &str) -> BTreeSet<String> {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let is_id =
        |word: &&str| word.split_once('/').is_some_and(|(group, rule)| is_word(group) && is_word(rule));
    text.split('`').skip(1).step_by(2).filter(is_id).map(str::to_owned).collect()
}

/// A relative link.
struct Target {
    line: usize,
    path: String,
    anchor: Option<String>,
}

/// Returns the relative links of a page; those in code blocks are none.
fn link_targets(text: &str) -> Vec<Target> {
    let mut targets = Vec::new();
    for (number, line) in prose(text) {
        // Code spans may hold brackets that look like links.
        let line: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for part in line.split("](").skip(1) {
            let Some((target, _)) = part.split_once(')') else { continue };
            let target = target.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']);
            let foreign = target.contains("://") || target.starts_with("mailto:") || target.contains("::");
            if target.is_empty() || foreign {
                continue;
            }
            let (path, anchor) =
                target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
            targets.push(Target { line: number, path: path.to_owned(), anchor: anchor.map(str::to_owned) });
        }
    }
    targets
}

/// Lines outside of fenced code blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((index + 1, line))
    })
}

/// The anchors that mdBook makes of the headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let keep = |c: char| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                _ => None,
            };
            title.chars().filter_map(keep).collect()
        })
        .collect()
}

/// Takes `.` and `..` out of a path; `None` when it leads out of the folder that it begins in.
pub(crate) fn normalize(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if !out.pop() => return None,
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_must_be_listed_once() {
        let tree = Tree::of(&[
            (SUMMARY, "- [a](a.md)\n- [a](a.md)\n"),
            ("docs/a.md", ""),
            ("docs/b.md", ""),
            ("docs/examples/x/README.md", ""),
            ("README.md", ""),
        ]);
        let found: Vec<String> = summary(&tree).into_iter().map(|problem| problem.place).collect();
        assert_eq!(found, [SUMMARY, "docs/b.md"]);
    }

    #[test]
    fn links_must_lead_to_a_file_or_heading() {
        let text = "[ok](b/c.md) [folder](b) [web](https://example.org/x) `[no](link)` [gone](d.md)\n\
                    [up](../../x) [good](b/c.md#one-two) [bad](b/c.md#three)\n```\n[code](nowhere.md)\n```\n";
        let tree = Tree::of(&[("docs/a.md", text), ("docs/b/c.md", "## One, two\n")]);
        let found: Vec<String> = links(&tree).into_iter().map(|problem| problem.what).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].contains("d.md") && found[1].contains("../../x") && found[2].contains("#three"),
            "{found:?}"
        );
    }

    #[test]
    fn tables_have_an_end_and_a_test() {
        let page = "<!-- options:x -->\n| a |\n<!-- /options -->\n";
        let test = ("crates/x/tests/docs.rs", "\"<!-- options:x -->\\n\"");
        assert_eq!(kept_tables(&Tree::of(&[("docs/x.md", page), test])), []);
        assert_eq!(kept_tables(&Tree::of(&[("docs/x.md", page)])).len(), 1);
        assert_eq!(kept_tables(&Tree::of(&[("docs/x.md", "<!-- options:x -->\n"), test])).len(), 1);
        let other = "<!-- exits:x -->\n| a |\n<!-- /exits:y -->\n";
        assert_eq!(kept_tables(&Tree::of(&[("docs/x.md", other), test])).len(), 2);
    }

    #[test]
    fn every_program_is_in_the_book_with_options_and_exit_codes() {
        let page = "<!-- options:a -->\n<!-- /options:a -->\n<!-- exits:a -->\n<!-- options:b -->\n<!-- usage:c -->\n";
        let programs = ["a", "b", "c", "d"].map(str::to_owned);
        let found = listed(&Tree::of(&[("docs/x.md", page)]), &programs);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].what.ends_with(" b") && found[1].what.ends_with(" d"), "{found:?}");
    }

    #[test]
    fn rules_and_trait_name_the_same_ids() {
        let source = "/// Makes it.\n///\n/// Contract: `create/idempotent`,\n/// `create/new`.\n///\n/// See `no/rule`.\n";
        let page = "## `create/idempotent`\nlike `other/thing`\n## `delete/old`\n";
        let found: Vec<String> = rules(&Tree::of(&[(RULES, page), (PROVIDER, source)]))
            .into_iter()
            .map(|problem| problem.what)
            .collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("create/new") && found[1].contains("delete/old"), "{found:?}");
    }
}

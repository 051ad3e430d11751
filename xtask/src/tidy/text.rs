//! Sizes of files, words that must not appear, and code that must not stay.

use std::path::Path;

use super::{Problem, Tree};

/// A Rust file with more lines is refused.
const MOST_LINES: usize = 700;
/// A Rust file with more lines is pointed out.
const MANY_LINES: usize = 600;

/// Files that may contain unsafe code, each with the reason in the file itself.
const UNSAFE: &[&str] = &[
    "crates/caa/src/memory.rs",
    "crates/cloud-providers-libvirt/src/client/addresses.rs",
    "crates/cloud-providers-libvirt/src/client/library.rs",
    "crates/cloud-providers-local/src/spawn.rs",
    "tests/support/test-agent/src/spawn.rs",
];

/// Returns files that are too long, and files that will soon be.
pub(super) fn sizes(tree: &Tree) -> (Vec<Problem>, Vec<Problem>) {
    let (mut refused, mut pointed_out) = (Vec::new(), Vec::new());
    for (path, text) in tree.with_extension("rs") {
        let lines = text.lines().count();
        if lines > MANY_LINES {
            let what = format!(
                "has {lines} lines, over {}",
                if lines > MOST_LINES { MOST_LINES } else { MANY_LINES }
            );
            let problem = Problem::new(path.display(), what, "split it: one idea per file, around 300 lines");
            if lines > MOST_LINES { refused.push(problem) } else { pointed_out.push(problem) }
        }
    }
    (refused, pointed_out)
}

/// Returns places that speak of the machine somebody worked on.
pub(super) fn words(tree: &Tree) -> Vec<Problem> {
    // Put together here, so that this file does not contain them.
    let forbidden = [format!("/{}/", "work"), format!("../{}", "shared"), format!("/home/{}", "user")];
    let mut problems = Vec::new();
    for (path, text) in &tree.files {
        let Some(text) = text else { continue };
        for (number, line) in text.lines().enumerate() {
            for word in &forbidden {
                if stands_alone(line, word) {
                    problems.push(Problem::new(
                        format!("{}:{}", path.display(), number + 1),
                        format!("contains {word}, a path of somebody's machine"),
                        "write a path that every reader has, or take the line out",
                    ));
                }
            }
        }
    }
    problems
}

/// Whether `word` is in `line` and does not merely continue a longer path.
fn stands_alone(line: &str, word: &str) -> bool {
    let continues = |c: char| c.is_ascii_alphanumeric() || "._-}*~$".contains(c);
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(continues))
}

/// Returns code that must not stay: unfinished, for debugging, unsafe outside of named modules, or hidden reads of
/// the process environment.
pub(super) fn code(tree: &Tree) -> Vec<Problem> {
    let unfinished = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let unsafety = ["unsafe", "code"].join("_");
    let environment = ["var(", "var_os(", "vars(", "vars_os("].map(|call| format!("{}::{call}", "env"));
    let mut problems = Vec::new();
    for (path, text) in tree.with_extension("rs") {
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                continue;
            }
            let place = format!("{}:{}", path.display(), number + 1);
            for call in unfinished.iter().filter(|call| code.contains(*call)) {
                problems.push(Problem::new(&place, format!("contains {call}…)"), "finish it or take it out"));
            }
            if environment.iter().any(|call| code.contains(call)) && !may_read_environment(path) {
                let mend = "take an EnvSource, or read the variable once in main";
                problems.push(Problem::new(&place, "reads the process environment", mend));
            }
        }
        for number in silenced(text, &unsafety).filter(|_| !UNSAFE.iter().any(|file| path == Path::new(file)))
        {
            let mend = "do it with a safe API; else name the file in xtask/src/tidy/text.rs and give the reason in it";
            problems.push(Problem::new(format!("{}:{number}", path.display()), "lets unsafe code in", mend));
        }
    }
    problems
}

/// Returns what would let public items be without documentation: the compiler asks for it, unless it is told not to.
pub(super) fn documented(tree: &Tree) -> Vec<Problem> {
    let lint = ["missing", "docs"].join("_");
    let mut problems = Vec::new();
    let manifest = tree.text("Cargo.toml").unwrap_or_default().replace(' ', "");
    if !["warn", "deny", "forbid"].iter().any(|level| manifest.contains(&format!("\n{lint}=\"{level}\""))) {
        let mend = format!("write `{lint} = \"warn\"` in [workspace.lints.rust]");
        problems.push(Problem::new("Cargo.toml", "does not ask for documentation of public items", mend));
    }
    for (path, text) in tree.with_extension("rs") {
        for number in silenced(text, &lint) {
            let place = format!("{}:{number}", path.display());
            let mend = "document the items: first what the caller gets, then the rules, then the errors";
            problems.push(Problem::new(place, "lets public items be without documentation", mend));
        }
    }
    problems
}

/// The numbers of the lines in which an attribute names `lint` to allow or expect it, among others and over several
/// lines too.
fn silenced<'a>(text: &'a str, lint: &'a str) -> impl Iterator<Item = usize> + 'a {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(lint).filter_map(move |(at, _)| {
        let (before, after) = (&text[..at], &text[at + lint.len()..]);
        let line = before.rsplit('\n').next().unwrap_or_default();
        if before.ends_with(word) || after.starts_with(word) || line.trim_start().starts_with("//") {
            return None;
        }
        // Between the attribute and the lint stand other lints, and nothing else.
        let list = |c: char| word(c) || c.is_whitespace() || c == ':' || c == ',';
        let attribute = before.trim_end_matches(list).strip_suffix('(')?;
        let silences = ["allow", "expect"].iter().any(|silences| attribute.ends_with(silences));
        silences.then(|| before.matches('\n').count() + 1)
    })
}

/// Programs may read it once where they start; libraries only where `EnvSource` is made of it.
fn may_read_environment(path: &Path) -> bool {
    let main =
        path.ends_with("src/main.rs") || path.parent().is_some_and(|folder| folder.ends_with("src/bin"));
    let test = path.components().any(|part| part.as_os_str() == "tests");
    let known = ["crates/cloud-providers/src/options/env.rs", "xtask/src/context.rs"];
    main || test || known.iter().any(|file| path == Path::new(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_are_refused_and_growing_ones_pointed_out() {
        let long = "x\n".repeat(MOST_LINES + 1);
        let growing = "x\n".repeat(MANY_LINES + 1);
        let tree = Tree::of(&[("a.rs", &long), ("b.rs", &growing), ("c.rs", "x\n"), ("d.md", &long)]);
        let (refused, pointed_out) = sizes(&tree);
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].place, "a.rs");
        assert_eq!(pointed_out.len(), 1);
        assert_eq!(pointed_out[0].place, "b.rs");
    }

    #[test]
    fn paths_of_a_machine_are_found_but_not_longer_paths() {
        let machine = format!("see /{}/x and `../{}/y`\n", "work", "shared");
        let overlay = format!("workdir={{dir}}/{}/x upper/{0}/y\n", "work");
        let tree = Tree::of(&[("a.md", &machine), ("b.rs", &overlay)]);
        let places: Vec<String> = words(&tree).into_iter().map(|problem| problem.place).collect();
        assert_eq!(places, ["a.md:1", "a.md:1"]);
    }

    #[test]
    fn unfinished_and_unsafe_code_is_found_but_not_comments() {
        let bad = format!("fn f() {{ {}!() }}\n#![{}({})]\n", "todo", "allow", "unsafe_code");
        let comment = format!("// {}!()\n", "todo");
        let found = code(&Tree::of(&[("a.rs", &bad), ("b.rs", &comment)]));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn documentation_is_asked_for_everywhere() {
        let manifest = |level: &str| format!("[workspace.lints.rust]\nmissing_{} = \"{level}\"\n", "docs");
        let silenced = format!("#![{}(missing_{})]\n", "allow", "docs");
        let good = manifest("warn");
        assert_eq!(documented(&Tree::of(&[("Cargo.toml", &good), ("a.rs", "fn f() {}\n")])), []);
        let bad = manifest("allow");
        let found = documented(&Tree::of(&[("Cargo.toml", &bad), ("a.rs", &silenced)]));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_silenced_lint_is_found_among_others_and_over_lines_but_not_in_prose() {
        let lines = |text: &str| silenced(text, "the_lint").collect::<Vec<_>>();
        assert_eq!(lines("#![allow(the_lint)]\n"), [1]);
        assert_eq!(lines("//! Text.\n#[expect(dead_code, clippy::x, the_lint, reason = \"y\")]\n"), [2]);
        assert_eq!(
            lines("#![cfg_attr(\n    test,\n    allow(\n        dead_code,\n        the_lint,\n    )\n)]\n"),
            [5]
        );
        let none = "// #[allow(the_lint)]\n#![warn(the_lint)]\n#[allow(not_the_lint, the_lint_too)]\n";
        assert!(lines(none).is_empty());
    }

    #[test]
    fn only_main_and_the_source_of_options_read_the_environment() {
        let read = format!("let x = std::{}::var(\"X\");\n", "env");
        let tree = Tree::of(&[
            ("crates/caa/src/lib.rs", &read),
            ("crates/caa/src/main.rs", &read),
            ("crates/podvm/src/bin/podvm-init.rs", &read),
            ("crates/caa/tests/x.rs", &read),
        ]);
        let places: Vec<String> = code(&tree).into_iter().map(|problem| problem.place).collect();
        assert_eq!(places, ["crates/caa/src/lib.rs:1"]);
    }
}

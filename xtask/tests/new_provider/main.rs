//! A provider is generated in a copy of this workspace, filled over HTTP to a small cloud in memory, and passes.

mod scratch;

use std::fs;
use std::path::Path;

use crate::scratch::Scratch;

/// The most lines that an author writes for a cloud as small as this one.
const MOST_LINES: usize = 200;
/// The cloud itself: it stands in for an emulator, which an author has.
const CLOUD: &str = "crates/cloud-providers-toy/tests/conformance/toy_cloud.rs";

/// Its name, and what shows it.
type Fact = (&'static str, fn(&Scratch));

/// What is shown, in order: each fact goes on from the tree that the one before left.
const FACTS: &[Fact] = &[
    ("nothing_is_half_written", nothing_is_half_written),
    ("a_provider_is_generated_and_no_line_goes", generated),
    ("the_generated_crate_is_clean_and_its_own_tests_pass", generated_passes),
    ("the_suite_names_what_to_write", suite_names_what_to_write),
    ("less_than_200_lines_fill_it", few_lines_fill_it),
    ("the_filled_crate_is_clean", is_clean),
    ("the_suite_passes", suite_passes),
    ("the_workspace_is_tidy", is_tidy),
];

/// A `main` of its own, so that counts and allowed skips are seen also when all is well.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        println!("new_provider: test");
        return;
    }
    // The facts are one test: a word that does not name it leaves all of them out.
    let words: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = words.is_empty() || words.iter().any(|word| "new_provider".contains(word.as_str()));
    let facts = if chosen { FACTS } else { &[] };
    if chosen {
        let scratch = Scratch::new();
        for (name, fact) in facts {
            fact(&scratch);
            println!("test {name} ... ok");
        }
    }
    println!("\ntest result: ok. {} passed; 0 failed; 0 ignored", facts.len());
}

fn generated(scratch: &Scratch) {
    let told = scratch.xtask(&["new-provider", "toy"]).success();
    assert!(told.contains("crates/cloud-providers-toy/src/client/api.rs"), "{told}");
    assert!(told.contains("docs/development/adding-a-provider.md"), "{told}");
    // The page of versions is written anew: the bundle's row names its providers.
    let changed = scratch.git(&["diff", "--numstat", "--", ".", ":!docs/versions.md"]);
    for line in changed.lines() {
        assert_eq!(line.split('\t').nth(1), Some("0"), "lines went: {line}");
    }
    let paths: Vec<&str> = changed.lines().filter_map(|line| line.split('\t').nth(2)).collect();
    for path in
        ["Cargo.lock", "Cargo.toml", "crates/caa/Cargo.toml", "crates/cloud-providers-bundle/src/lib.rs"]
    {
        assert!(paths.contains(&path), "{path} is not among {paths:?}");
    }
    scratch.xtask(&["new-provider", "toy"]).failure("cloud-providers-toy already");
    scratch.commit("generated");
}

fn generated_passes(scratch: &Scratch) {
    is_clean(scratch);
    scratch.cargo(&["test", "--locked", "-p", "cloud-providers-toy", "--lib", "--test", "docs"]).success();
    let registered = ["--no-default-features", "--features", "toy", "--test", "registered"];
    scratch.cargo(&["test", "--locked", "-p", "cloud-providers-bundle"]).with(&registered).success();
    let tree = ["tree", "--locked", "--prefix", "none", "--edges", "normal", "-p", "caa"];
    let tree = scratch.cargo(&tree).with(&["--no-default-features", "--features", "toy"]).success();
    assert!(tree.contains("cloud-providers-toy v0.1.0") && !tree.contains("cloud-providers-local"), "{tree}");
    is_tidy(scratch);
}

/// Whatever goes wrong, the tree is as before.
fn nothing_is_half_written(scratch: &Scratch) {
    let plan = scratch.xtask(&["new-provider", "toy", "--dry-run"]).success();
    assert!(
        plan.contains("nothing was written") && plan.contains("+ use cloud_providers_toy as _;"),
        "{plan}"
    );
    scratch.is_unchanged("a dry run");
    for (name, why) in
        [("Toy", "is no name"), ("bundle", "is reserved"), ("local", "cloud-providers-local already")]
    {
        scratch.xtask(&["new-provider", name]).failure(why);
        scratch.is_unchanged(name);
    }
    // The last file that is edited has no place for the entry.
    let summary = scratch.path("docs/SUMMARY.md");
    let text = fs::read_to_string(&summary).unwrap();
    fs::write(&summary, text.replace("(providers/", "(elsewhere/")).unwrap();
    scratch.commit("a table of contents of another form");
    scratch.xtask(&["new-provider", "toy"]).failure("docs/SUMMARY.md does not look as expected");
    scratch.is_unchanged("an edit without its place");
    fs::write(&summary, text).unwrap();
    // Cargo refuses the workspace when everything is written already.
    let broken = scratch.path("crates/broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("Cargo.toml"), "[package]\nname = \"broken\"\n").unwrap();
    scratch.commit("a package without sources");
    scratch
        .xtask(&["new-provider", "toy"])
        .failure("nothing was changed: cargo does not accept the workspace");
    scratch.is_unchanged("a workspace that cargo refuses");
    fs::remove_dir_all(&broken).unwrap();
    scratch.commit("as it was");
}

fn is_clean(scratch: &Scratch) {
    let clippy =
        ["clippy", "--locked", "-p", "cloud-providers-toy", "-p", "cloud-providers-bundle", "--all-targets"];
    scratch.cargo(&clippy).with(&["--all-features", "--", "-D", "warnings"]).success();
    scratch.cargo(&["fmt", "-p", "cloud-providers-toy", "-p", "cloud-providers-bundle", "--check"]).success();
    let doc = scratch.cargo(&[
        "doc",
        "--locked",
        "--no-deps",
        "-p",
        "cloud-providers-toy",
        "--document-private-items",
    ]);
    doc.env("RUSTDOCFLAGS", "-D warnings").success();
}

fn suite(scratch: &Scratch) -> scratch::Call {
    scratch.cargo(&["test", "--locked", "-p", "cloud-providers-toy", "--test", "conformance"])
}

/// Each case fails, and for no other reason than something that is not written.
fn suite_names_what_to_write(scratch: &Scratch) {
    let out = suite(scratch).failure("0 passed");
    let failed = out.lines().filter(|line| line.contains("... FAILED")).count();
    let reasons: Vec<&str> = out.lines().filter(|line| line.starts_with("    ")).collect();
    assert!(failed > 0 && !out.contains("... ok") && !out.contains("problem:"), "{out}");
    assert_eq!(failed, reasons.len(), "{out}");
    for reason in reasons {
        let (_, place) =
            reason.split_once(": write ").unwrap_or_else(|| panic!("{reason} does not say what to write"));
        let (function, file) = place.split_once(" in ").unwrap_or_else(|| panic!("{reason} names no file"));
        let text = fs::read_to_string(scratch.path(file)).unwrap();
        let name = function.rsplit("::").next().unwrap_or(function);
        assert!(text.contains(&format!("fn {name}(")), "{file} has no {name}");
    }
    println!("{failed} cases fail, each naming file and function");
}

/// Does what an author does, and counts what was written.
fn few_lines_fill_it(scratch: &Scratch) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/new_provider");
    scratch.git(&["apply", here.join("toy/edits.patch").to_str().unwrap()]);
    for file in ["src/client/api.rs", "tests/conformance/account.rs"] {
        let to = scratch.path("crates/cloud-providers-toy").join(file);
        fs::copy(here.join("toy").join(file), &to).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    fs::copy(here.join("toy_cloud.rs"), scratch.path(CLOUD)).unwrap();
    // The dependency of the calls is in the workspace already.
    scratch.cargo(&["metadata", "--offline", "--format-version", "1"]).success();
    let written = scratch.added_lines(&[CLOUD]);
    println!("{written} lines fill the generated crate");
    assert!(written < MOST_LINES, "{written} lines were written, {MOST_LINES} are too many");
}

fn is_tidy(scratch: &Scratch) {
    let told = scratch.xtask(&["tidy"]).success();
    assert!(told.contains("nothing to mend"), "{told}");
}

fn suite_passes(scratch: &Scratch) {
    let out = suite(scratch).success();
    let counts = out.lines().find(|line| line.starts_with("conformance toy:")).unwrap_or_default();
    println!("{counts}");
    assert!(counts.contains(" 0 failed"), "{out}");
    let passed: usize =
        counts.split_whitespace().nth(2).and_then(|word| word.parse().ok()).unwrap_or_default();
    assert!(passed > 30, "{counts}");
    let skips =
        fs::read_to_string(scratch.path("crates/cloud-providers-toy/tests/conformance-skips.toml")).unwrap();
    for line in skips.lines().filter(|line| line.starts_with('"')) {
        println!("  skipped: {line}");
    }
}

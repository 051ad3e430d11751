//! Configurations, right and wrong, and exactly what `validate` finds in each. Needs root: every case has a network
//! namespace of its own.
//!
//! One file of `cases/` for each, see [`case::Case`]. Another case is another file.

// Providers are looked up by name, and the linker keeps only what is named. Without its SDK aws has its options alone.
use cloud_providers_aws as _;
use cloud_providers_bundle as _;

mod case;
mod place;
mod rights;

use std::{collections::BTreeMap, fs, path::Path, sync::Mutex};

use case::{Case, Found};
use place::Place;

/// The least numbers of cases.
const BROKEN: usize = 25;
const RIGHT: usize = 5;
/// As many cases at a time.
const THREADS: usize = 4;

fn cases() -> BTreeMap<String, Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/validate/cases");
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        let case = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, case)
    };
    fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap())).collect()
}

#[test]
fn every_broken_configuration_is_found_and_nothing_else_is_raised() {
    let cases = cases();
    let broken = cases.values().filter(|case| !case.expect.is_empty()).count();
    let right = cases.len() - broken;
    assert!(
        broken >= BROKEN && right >= RIGHT,
        "{broken} broken and {right} right configurations are too few"
    );
    let compiled_in = |case: &Case| case.in_process() || cloud_providers::lookup(&case.provider).is_ok();
    let (all, left_out): (Vec<_>, Vec<_>) = cases.iter().partition(|(_, case)| compiled_in(case));
    let queue = Mutex::new(all.iter());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some((name, case)) = queue.lock().unwrap().next() else { return };
                    if let Err(difference) = compare(case) {
                        wrong.lock().unwrap().push(format!("{name}: {difference}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    println!("{} configurations: {broken} broken, {right} right", cases.len());
    for (name, case) in left_out {
        println!("left out: {name}: the provider {} is not compiled in", case.provider);
    }
}

/// Runs a case in both forms of the report.
fn compare(case: &Case) -> Result<(), String> {
    let place = Place::make(case).map_err(|error| format!("{error:#}"))?;
    let expected: Vec<Found> = case.expect.iter().map(|found| found.at(&place)).collect();
    let (code, findings) = case.run_json(&place)?;
    let raised: Vec<_> = findings.iter().filter(|finding| finding["outcome"] != "ok").collect();
    let fits = raised.len() == expected.len()
        && expected.iter().all(|expected| raised.iter().filter(|finding| expected.is(finding)).count() == 1);
    let shown = || raised.iter().map(|f| f.to_string()).collect::<Vec<_>>().join("\n  ");
    if !fits {
        return Err(format!("expected {expected:#?}\nraised\n  {}", shown()));
    }
    let fails = expected.iter().any(|found| found.outcome == "failed");
    if code != u8::from(fails) {
        return Err(format!("exit code {code}:\n  {}", shown()));
    }
    for finding in raised.iter().filter(|finding| finding["outcome"] != "not-checked") {
        if finding["option"].is_null() || finding["remedy"].is_null() && !case.live {
            return Err(format!("neither option nor remedy: {finding}"));
        }
    }
    // The same for people.
    let (code, text) = case.run_text(&place)?;
    let counts = text.lines().last().unwrap_or_default();
    let count = |outcome: &str| findings.iter().filter(|finding| finding["outcome"] == outcome).count();
    let same = format!(
        "{} ok, {} warning, {} failed, {} not checked",
        count("ok"),
        count("warning"),
        count("failed"),
        count("not-checked")
    );
    // Sizes differ between two runs, since signatures do.
    let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    let shown = words(&text);
    let lines = raised.iter().all(|finding| {
        let told = |key: &str| shown.contains(&words(finding[key].as_str().unwrap_or_default()));
        told("detail") && told("option") && told("remedy")
    });
    if code != u8::from(fails) || counts != same || !lines {
        return Err(format!("the text (exit code {code}) says something else than {same}:\n{text}"));
    }
    Ok(())
}

#[test]
fn every_case_says_what_it_is_about_and_every_check_has_one() {
    let cases = cases();
    for (name, case) in &cases {
        assert!(!case.about.is_empty(), "{name} does not say what it is about");
    }
    let raised: std::collections::BTreeSet<&str> =
        cases.values().flat_map(|case| case.expect.iter().map(|found| found.check.as_str())).collect();
    let unraised: Vec<String> = caa::validate::table()
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name.to_owned()))
        .filter(|name| !raised.contains(name.as_str()))
        .collect();
    // Another user than root raises it, see `rights`.
    assert_eq!(unraised, ["node-rights"]);
}

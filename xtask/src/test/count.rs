//! Counts what `cargo test` ran, so that an empty run or a silent skip is no success.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

/// Tests that may be ignored, one a line: `name  reason`.
const ALLOWED_SKIPS: &str = include_str!("../../allowed-skips.txt");

/// Reads the output of `cargo test` and returns a summary.
///
/// # Errors
///
/// When no test ran, or one was ignored that `xtask/allowed-skips.txt` does not list.
pub(crate) fn summary(lines: &[String]) -> Result<String> {
    summarize(lines, ALLOWED_SKIPS)
}

fn summarize(lines: &[String], allowed: &str) -> Result<String> {
    let allowed: BTreeSet<&str> = allowed
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once("  "))
        .filter(|(_, reason)| !reason.trim().is_empty())
        .map(|(name, _)| name.trim())
        .collect();
    let (mut passed, mut ignored) = (0, 0);
    for line in lines {
        // A test with a main function of its own may leave the word out.
        if let Some(counts) = line.strip_prefix("test result: ").filter(|line| !line.starts_with("FAILED")) {
            let counts = counts.trim_start_matches("ok. ");
            passed += number_before(counts, " passed");
            ignored += number_before(counts, " ignored");
        }
    }
    let skipped: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("test "))
        .filter_map(|line| {
            line.split_once(" ... ignored").or_else(|| line.split_once(" - compile ... ignored"))
        })
        .map(|(name, _)| name.trim())
        .collect();
    ensure!(passed > 0, "no test ran: a run without cases is no success");
    ensure!(ignored == skipped.len(), "{ignored} tests were ignored but {} are named", skipped.len());
    for name in &skipped {
        if !allowed.contains(name) {
            bail!("test {name} was skipped: run it, or list it with the reason in xtask/allowed-skips.txt");
        }
    }
    // Providers print what the conformance suite found; their counts belong to the outcome.
    let suites: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("conformance ")).collect();
    let counted = if ignored == 0 {
        format!("{passed} tests")
    } else {
        format!("{passed} tests, {ignored} skips allowed")
    };
    Ok(if suites.is_empty() { counted } else { suites.join("; ") })
}

fn number_before(text: &str, word: &str) -> usize {
    let Some((head, _)) = text.split_once(word) else { return 0 };
    head.rsplit(' ').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    const TWO: &str = "test a::b ... ok\ntest result: ok. 12 passed; 0 failed; 0 ignored; 0 measured\n\
                       test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\ntest c::d ... ignored, slow\n";

    #[test]
    fn counts_of_all_binaries_are_added() {
        assert_eq!(summarize(&lines(TWO), "c::d  needs a printer\n").unwrap(), "15 tests, 1 skips allowed");
    }

    #[test]
    fn a_test_with_its_own_main_function_counts() {
        assert_eq!(summarize(&lines("test result: 8 passed; 0 failed"), "").unwrap(), "8 tests");
    }

    #[test]
    fn a_skip_without_a_reason_fails() {
        assert!(summarize(&lines(TWO), "").unwrap_err().to_string().contains("c::d"));
        assert!(summarize(&lines(TWO), "c::d  \n").is_err());
    }

    #[test]
    fn counts_of_the_conformance_suite_are_the_summary() {
        let text = "conformance local: 40 passed, 2 skipped\ntest result: 40 passed; 0 failed\n\
                    conformance libvirt: 41 passed, 1 skipped\ntest result: 41 passed; 0 failed\n";
        let summary = summarize(&lines(text), "").unwrap();
        assert_eq!(summary, "local: 40 passed, 2 skipped; libvirt: 41 passed, 1 skipped");
    }

    #[test]
    fn a_run_without_cases_fails() {
        let empty = lines("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured");
        assert!(summarize(&empty, "").unwrap_err().to_string().contains("no test ran"));
    }
}

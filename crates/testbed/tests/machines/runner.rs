//! Runs tests one after the other on threads of their own and counts them.

use std::{process::ExitCode, thread};

use anyhow::Result;

/// A test and the fact that it shows.
pub(crate) type Test = (&'static str, fn() -> Result<()>);

/// Runs the tests whose names contain one of the words in `args`, all of them without a word.
pub(crate) fn main(args: &[String], groups: &[&[Test]]) -> ExitCode {
    let words: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|w| name.contains(w.as_str()));
    let all: Vec<Test> = groups.iter().copied().flatten().copied().filter(|(name, _)| wanted(name)).collect();
    if args.iter().any(|a| a == "--list") {
        all.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", all.len());
    let mut failed = 0;
    for (name, test) in all.iter().copied() {
        let outcome = match thread::Builder::new().name(name.into()).spawn(test).map(thread::JoinHandle::join)
        {
            Ok(Ok(Ok(()))) => "ok".to_owned(),
            Ok(Ok(Err(error))) => format!("FAILED: {error:?}"),
            Ok(Err(_)) => "FAILED: panicked, see above".into(),
            Err(error) => format!("FAILED: no thread: {error}"),
        };
        failed += usize::from(outcome != "ok");
        println!("test {name} ... {outcome}");
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {} passed; {failed} failed; 0 ignored\n", all.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

//! `cargo xtask docs`: writes the parts of the book that come from the code: options, exit codes, metrics, checks.
//!
//! Each package has a test `docs` that compares its parts with what its programs use; the stage `docs` of the tests runs them
//! all. The same tests write the parts when they are told to, so that nothing can be written that would not be compared.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use cargo_metadata::Metadata;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::context::Context;
use crate::light;

/// The test that keeps the parts of a package.
pub(crate) const TEST: &str = "docs";

const LIMIT: Duration = Duration::from_secs(40 * 60);

/// The subcommand.
pub(crate) fn command() -> Command {
    Command::new("docs")
        .about("Writes the parts of the book that come from the code: options, exit codes, metrics")
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Compare and write nothing; a part that differs is named, and the exit code is 1"),
        )
        .arg(
            Arg::new("package")
                .long("package")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("The parts of this package alone; may be given more than once"),
        )
}

/// Runs `docs`.
///
/// # Errors
///
/// When a package does not build, has no such parts, or a page lacks the markers of one.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let metadata = context.metadata()?;
    let known = packages(&metadata);
    let chosen: Vec<String> = matches.get_many("package").unwrap_or_default().cloned().collect();
    if let Some(other) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("{other} has no test `{TEST}`; those that have one are {}", known.join(", "));
    }
    ensure!(!known.is_empty(), "no package has a test `{TEST}`");
    // Features are those of the other tests, so that nothing is compiled twice; what is chosen stands in the way of that.
    let mut cargo = match chosen.is_empty() {
        true => light::command(context, "test")?,
        false => chosen
            .iter()
            .fold(context.cargo().args(["test", "--locked"]), |cargo, name| cargo.args(["--package", name])),
    };
    cargo = cargo.args(["--test", TEST]);
    let check = matches.get_flag("check");
    if !check {
        cargo = cargo.args(["--", "fresh", "shows", "--test-threads", "1"]).shown_env("UPDATE_DOCS", "1");
    }
    cargo.visible(LIMIT)?;
    println!("docs: {}", if check { "every part of the book is what the code says" } else { "written" });
    Ok(ExitCode::SUCCESS)
}

/// The packages whose code is part of the book.
fn packages(metadata: &Metadata) -> Vec<String> {
    let has = |package: &&cargo_metadata::Package| {
        package.targets.iter().any(|target| target.is_test() && target.name == TEST)
    };
    metadata.workspace_packages().into_iter().filter(has).map(|package| package.name.to_string()).collect()
}

//! `cargo xtask outside`: the proof that the published crates are enough for somebody else.
//!
//! Everything is released to a registry of its own, by the tasks that a maintainer uses. Then the example
//! `docs/examples/minimal-provider` becomes a project that knows the crates by version only: its suite runs, its
//! daemon is built and answers a shim. At last a provider for another version of the contract is tried, which cargo
//! must refuse.

mod project;
mod scratch;
mod skew;
mod smoke;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Command;

use self::project::Project;
use self::scratch::{Scratch, ours};
use crate::context::Context;
use crate::registry::{Registry, Upstream};
use crate::setup;
use crate::test::count;

/// No build here may take longer, on a machine without any cache.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Describes `cargo xtask outside`.
pub(crate) fn command() -> Command {
    Command::new("outside")
        .about("Publishes everything to a local registry, and builds a project outside the workspace from it")
}

/// Runs `cargo xtask outside`.
///
/// # Errors
///
/// At the first step that fails.
pub(crate) fn run(context: &Context) -> Result<ExitCode> {
    setup::require_root("cargo xtask outside")?;
    let summary = stage(context)?;
    context.say(format!("outside: {summary}"));
    Ok(ExitCode::SUCCESS)
}

/// Runs as a stage of the test.
///
/// # Errors
///
/// At the first step that fails.
pub(crate) fn stage(context: &Context) -> Result<String> {
    let scratch = Scratch::new(context)?;
    let registry = Registry::serve(&scratch.registry(), Upstream::of_workspace(context)?)?;
    scratch.configure(&registry)?;
    scratch.forget(&scratch.metadata()?)?;

    scratch.release()?;
    let metadata = scratch.metadata()?;
    let packages: Vec<String> =
        ours(&metadata).map(|package| format!("{} {}", package.name, package.version)).collect();
    context.say(format!("published to {}: {}", registry.index(), packages.join(", ")));

    let project = Project::create(&scratch, &metadata)?;
    let tests = count::summary(&project.cargo(&scratch).arg("test").visible(LIMIT)?)?;
    project.knows_versions_only(&metadata)?;

    let alone = project.build(&scratch, &[])?;
    providers_are(&alone, &["minimal"])?;
    smoke::run(&scratch, &alone)?;
    // Its own provider beside one of ours, chosen by a feature of the library.
    let both = project.build(&scratch, &["--features", "local"])?;
    providers_are(&both, &["local", "minimal"])?;
    skew::refused(&scratch, &project, &metadata)?;
    Ok(format!("{} packages published; {tests}; a daemon with a provider of its own answers", packages.len()))
}

/// Checks what a daemon says about itself, and that its providers are these.
fn providers_are(daemon: &std::path::Path, wanted: &[&str]) -> Result<()> {
    let run = |arg: &[&str]| crate::command::Run::new(daemon).args(arg).stdout();
    let help = run(&["help"])?;
    let listed: Vec<&str> = help
        .lines()
        .skip_while(|line| line.trim() != "Providers:")
        .skip(1)
        .take_while(|line| line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(listed == wanted, "the daemon has the providers {listed:?}, and not {wanted:?}:\n{help}");
    ensure!(run(&["version"])?.starts_with("cloud-api-adaptor version "), "the daemon tells no version");
    let options = run(&["minimal", "-help"])?;
    for option in ["--minimal-folder", "MINIMAL_ADDRESSES", "--socket"] {
        ensure!(options.contains(option), "the help of the provider lacks {option}:\n{options}");
    }
    let error = run(&["minimal"]).err().context("a daemon without its required options starts")?.to_string();
    ensure!(error.contains("MINIMAL_FOLDER"), "a missing option is not named: {error}");
    Ok(())
}

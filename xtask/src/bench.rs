//! `cargo xtask bench`: measures what users wait for and pay with.

pub(crate) mod path;
pub(crate) mod start;

use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgMatches, Command};

use crate::context::Context;

/// The command line.
pub(crate) fn command() -> Command {
    Command::new("bench")
        .about("Measures")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(path::command())
        .subcommand(start::command())
}

/// Runs the task.
///
/// # Errors
///
/// When something cannot be built, started or measured.
pub(crate) fn run(context: &mut Context, matches: &ArgMatches) -> Result<ExitCode> {
    if let Some(sub) = matches.subcommand_matches("path") {
        let options = path::Options::from_matches(sub);
        context.quiet_stdout = options.json();
        return path::run(context, &options);
    }
    let sub = matches.subcommand_matches("start").expect("clap demands one of them");
    let options = start::Options::from_matches(sub);
    context.quiet_stdout = options.json();
    start::run(context, &options)
}

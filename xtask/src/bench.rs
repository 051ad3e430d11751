//! `cargo xtask bench`: measures what users wait for and pay with.

mod footprint;
pub(crate) mod goals;
mod host;
mod passes;
pub(crate) mod path;
pub(crate) mod start;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::context::Context;

/// The command line.
pub(crate) fn command() -> Command {
    Command::new("bench")
        .about("Measures")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(passes::command())
        .subcommand(path::command())
        .subcommand(start::command())
}

/// The flag that names the parts to measure.
fn only<const N: usize>(parts: [&'static str; N]) -> Arg {
    Arg::new("only")
        .long("only")
        .value_name("PART")
        .action(ArgAction::Append)
        .value_delimiter(',')
        .value_parser(parts)
        .help("Measure these parts, and judge their goals alone [default: all]")
}

/// Runs the task.
///
/// # Errors
///
/// When something cannot be built, started or measured.
pub(crate) fn run(context: &mut Context, matches: &ArgMatches) -> Result<ExitCode> {
    if let Some(sub) = matches.subcommand_matches("goals") {
        let options = passes::Options::from_matches(sub)?;
        context.quiet_stdout = options.json();
        return passes::run(context, &options);
    }
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

/// The value that the given part of all values does not exceed; no number when there are none.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn median_and_maximum_are_of_the_sorted_values() {
        let of = |part| quantile(&[5.0, 1.0, 3.0, 2.0, 4.0], part);
        assert_eq!((of(0.5), of(1.0), of(0.0)), (3.0, 5.0, 1.0));
        assert!(quantile(&[], 0.5).is_nan());
    }
}

#![doc = include_str!("../README.md")]

mod agent;
mod certificates;
mod dial;
mod flood;
mod load;
mod message;
mod register;
mod splice;
mod stream;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};

fn main() -> ExitCode {
    match run(&command().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("path-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    Command::new("path-bench")
        .about("Measures the way between a shim and its agent")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(agent::command())
        .subcommand(certificates::command())
        .subcommand(dial::command())
        .subcommand(flood::command())
        .subcommand(load::command())
        .subcommand(register::command())
        .subcommand(splice::command())
}

fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("agent", sub)) => agent::run(sub),
        Some(("certificates", sub)) => certificates::run(sub),
        Some(("dial", sub)) => dial::run(sub),
        Some(("flood", sub)) => flood::run(sub),
        Some(("load", sub)) => load::run(sub),
        Some(("register", sub)) => register::run(sub),
        Some(("splice", sub)) => splice::run(sub),
        _ => unreachable!("clap demands one of the subcommands"),
    }
}

/// An option with a path that must be given.
fn path(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("PATH")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help(help)
}

/// An option with a number.
fn number(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("N")
        .default_value(default)
        .value_parser(value_parser!(u64))
        .help(help)
}

fn given_path(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().expect("clap demands it")
}

fn given_number(matches: &ArgMatches, name: &str) -> u64 {
    *matches.get_one::<u64>(name).expect("it has a default")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}

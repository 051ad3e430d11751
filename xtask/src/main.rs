#![doc = include_str!("../README.md")]

mod command;
mod context;
mod inputs;
mod programs;
mod setup;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::context::Context;

fn main() -> ExitCode {
    let matches = cli().get_matches();
    let context = match Context::from_process() {
        Ok(context) => context,
        Err(error) => return fail(&error),
    };
    match run(&context, &matches) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Something that only the reader can mend (missing programs, missing rights) has a code of its own.
    let code = if error.downcast_ref::<setup::Missing>().is_some() { 2 } else { 1 };
    eprintln!("cargo xtask: {error:#}");
    ExitCode::from(code)
}

fn run(context: &Context, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match matches.subcommand() {
        Some(("test", sub)) => test::run(context, &test::Options::from_matches(sub)),
        Some(("tidy", _)) => tidy::run(context),
        Some(("setup", _)) => {
            setup::install(context, setup::Need::Tests)?;
            println!("everything that the demo and the tests use is installed");
            Ok(ExitCode::SUCCESS)
        }
        _ => unreachable!("clap demands one of the subcommands"),
    }
}

fn cli() -> Command {
    Command::new("cargo xtask")
        .about("The project's own tasks")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("test")
                .about("Runs the stages of the test, fast to slow; heavy ones only when their inputs changed")
                .arg(flag("all", "Run every stage, also those whose inputs are unchanged"))
                .arg(flag("list", "List the stages and end"))
                .arg(
                    Arg::new("stage")
                        .long("stage")
                        .value_name("NAME")
                        .action(ArgAction::Append)
                        .help("Run this stage only; may be given more than once"),
                ),
        )
        .subcommand(Command::new("tidy").about("Checks what no compiler checks: layout, docs, dependencies"))
        .subcommand(
            Command::new("setup").about("Installs what the demo and the tests use (Debian and Ubuntu)"),
        )
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

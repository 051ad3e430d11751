//! `cargo xtask storm`: many instances under faults, and what they leave.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::command::Run;
use crate::context::Context;
use crate::{sdk, setup};

/// A storm of thousands takes a while on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(2 * 3600);
/// What the program takes as it was typed; it checks it.
const PASSED: [&str; 5] = ["pods", "at-once", "throttled", "faults", "seed"];

/// The command line.
pub(crate) fn command() -> Command {
    let number =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("N").help(help);
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("storm")
        .about("Makes and deletes many instances under faults, and looks for what is left")
        .arg(
            Arg::new("provider")
                .long("provider")
                .value_name("NAME")
                .value_parser(["aws", "scripted"])
                .default_value("scripted")
                .help("aws (the SDK against an emulator) or scripted (in memory, in virtual time)"),
        )
        .arg(number("pods", "How many instances").default_value("500"))
        .arg(number("at-once", "How many at a time"))
        .arg(number("throttled", "Share of the calls that are too many, 0.1 by default"))
        .arg(number("faults", "Share of the calls that fail before and after their effect, 0.05 by default"))
        .arg(number("seed", "What chance begins with"))
        .arg(flag("quiet", "No faults; check the number of calls"))
        .arg(flag("json", "Print one JSON object"))
}

/// Runs it by hand; the exit code is 1 when something is left.
///
/// # Errors
///
/// When it does not build.
pub(crate) fn run(context: &mut Context, matches: &ArgMatches) -> Result<ExitCode> {
    context.quiet_stdout = matches.get_flag("json");
    let mut arguments: Vec<String> = Vec::new();
    for name in PASSED {
        if let Some(value) = matches.get_one::<String>(name) {
            arguments.extend([format!("--{name}"), value.clone()]);
        }
    }
    for name in ["quiet", "json"] {
        if matches.get_flag(name) {
            arguments.push(format!("--{name}"));
        }
    }
    let aws = matches.get_one::<String>("provider").is_some_and(|name| name == "aws");
    let storm = if aws {
        over_aws(context)?
    } else {
        let cargo = context.cargo().args(["run", "--quiet", "--locked", "--package", "storm", "--"]);
        cargo.args(["--provider", "scripted"])
    };
    let (code, stdout, stderr) = storm.args(arguments).answer(LIMIT)?;
    print!("{stdout}");
    eprint!("{stderr}");
    Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn over_aws(context: &Context) -> Result<Run> {
    setup::install(context, setup::Need::Emulator)?;
    let program = sdk::program(context, "cloud-providers-aws", "storm")?;
    Ok(context.program(program).args(["--provider", "aws"]))
}

/// Runs as a stage of the test: a storm of `pods`, and a quiet run that counts calls.
///
/// # Errors
///
/// When something is left, or there are more calls than are meant.
pub(crate) fn stage_aws(context: &Context, pods: &str) -> Result<String> {
    let mut said = Vec::new();
    for arguments in [&["--pods", pods][..], &["--pods", "50", "--quiet"]] {
        let lines = over_aws(context)?.args(arguments).visible(LIMIT)?;
        ensure!(lines.iter().any(|line| line == "left: 0"), "the storm does not tell what is left");
        let told = ["pods:", "calls per pod, create", "calls per pod, delete", "peak:"];
        said.extend(lines.into_iter().filter(|line| told.iter().any(|part| line.contains(part))));
    }
    Ok(said.join("; "))
}

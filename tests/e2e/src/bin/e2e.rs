//! Gets a worker machine from a reservation and has the assessments run on it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Arg, ArgMatches, Command, value_parser};
use e2e::driver::{self, Plan};
use e2e::setup::{self, Wanted};
use e2e::signals::Told;

fn main() -> ExitCode {
    match run(&command().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let path = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).value_parser(value_parser!(PathBuf)).help(help)
    };
    Command::new("e2e")
        .about("Gets a worker machine, installs our programs on it, runs the assessments, gives it back")
        .arg(
            Arg::new("provider")
                .long("provider")
                .required(true)
                .value_parser(setup::NAMES.to_vec())
                .help("Who makes the machine"),
        )
        .arg(path("testbed", "FILE", "The program testbed").required(true))
        .arg(path("programs", "DIR", "Folder with what is installed on the machine").required(true))
        .arg(path("setups", "DIR", "Folder of the set-ups").default_value("tests/setups"))
        .arg(path("image", "FILE", "Image of the machine, for providers that boot one"))
}

fn run(matches: &ArgMatches) -> Result<()> {
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    let absolute = |name: &str| {
        let given = path(name).unwrap_or_default();
        given.canonicalize().with_context(|| format!("--{name} {}", given.display()))
    };
    let provider = matches.get_one::<String>("provider").map(String::as_str).unwrap_or_default();
    // Before there is anything to give back.
    let told = Told::watch()?;
    let folder = tempfile::Builder::new().prefix("e2e-").tempdir()?;
    let plan = Plan {
        testbed: absolute("testbed")?,
        reservation: absolute("setups")?.join(provider).join("reservation.yaml"),
        programs: absolute("programs")?,
        dir: folder.path().to_owned(),
    };
    plan.check()?;
    let image = path("image").map(|_| absolute("image")).transpose()?;
    let setup = setup::open(provider, &Wanted { dir: folder.path().to_owned(), image })?;
    let done = driver::run(&plan, setup.as_ref(), &told);
    let ended = setup.end();
    let outcomes = done?;
    ended?;
    println!("{} assessments held, nothing is left", outcomes.len());
    Ok(())
}

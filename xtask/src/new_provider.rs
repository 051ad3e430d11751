//! `cargo xtask new-provider <name>`: a provider crate with everything around it, in one go or not at all.

mod edits;
mod files;
mod lists;
mod names;
mod plan;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Command};

use self::names::Names;
use self::plan::Plan;
use crate::context::Context;

/// Returns the subcommand.
pub(crate) fn command() -> Command {
    Command::new("new-provider")
        .about("Writes a provider crate with its tests, page, set-up, features and changelog entries")
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .required(true)
                .help("What users call the provider: lower case letters, digits and dashes"),
        )
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Say what would be written and write nothing"),
        )
}

/// Writes everything, or says what it would write.
///
/// # Errors
///
/// When the name cannot be taken, or a file does not look as expected; then nothing was changed.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let name = matches.get_one::<String>("name").expect("clap demands the name");
    let names = Names::parse(name)?;
    let mut plan = Plan::new(&context.root);
    files::add(&mut plan, &names)?;
    edits::add(&mut plan, &names)?;
    plan.format(context)?;
    if matches.get_flag("dry-run") {
        print!("{}", plan.describe());
        println!("nothing was written");
        return Ok(ExitCode::SUCCESS);
    }
    plan.write(context, &format!("crates/cloud-providers-{}", names.name))?;
    print!("{}", plan.describe());
    println!("also     Cargo.lock, docs/versions.md, and the licence in the crate");
    println!("\n{}", next_steps(&names));
    Ok(ExitCode::SUCCESS)
}

fn next_steps(names: &Names) -> String {
    let name = &names.name;
    format!(
        "The crate compiles, and its own tests pass:\n\
         \x20   cargo test -p cloud-providers-{name} --lib --test docs\n\
         What is yours to write, in this order; the suite names the next function until all are there:\n\
         \x20   1. crates/cloud-providers-{name}/src/config.rs                    options of the cloud\n\
         \x20   2. crates/cloud-providers-{name}/src/client/api.rs                five calls, and how far lists lag behind\n\
         \x20   3. crates/cloud-providers-{name}/src/error.rs                     what the cloud's codes mean\n\
         \x20   4. crates/cloud-providers-{name}/tests/conformance/account.rs     an emulator or account for the suite\n\
         \x20   5. docs/providers/{name}.md                                       the comments that begin with `write:`\n\
         \x20   6. tests/setups/{name}/setup.toml                                 the emulator for tests of whole pods\n\
         then:\n\
         \x20   cargo test -p cloud-providers-{name} --test conformance\n\
         \x20   cargo xtask tidy\n\
         docs/development/adding-a-provider.md goes through it step by step."
    )
}

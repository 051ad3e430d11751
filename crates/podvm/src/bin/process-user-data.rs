//! Command `process-user-data`: brings user data and init-data to their files, once, early at boot.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podvm::flags;
use podvm::paths::Paths;
use podvm::programs::{USER_DATA_EXITS, USER_DATA_FLAGS};
use podvm::userdata::{Provisioner, provision};

const USAGE: &str = "Usage: process-user-data [-v] | process-user-data provision-files [options]\n";

fn main() -> ExitCode {
    let [(done, _), (failed, _)] = USER_DATA_EXITS;
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::from(done),
        Err(error) => {
            eprintln!("process-user-data: {error:#}");
            ExitCode::from(failed)
        }
    }
}

fn run(args: Vec<String>) -> Result<()> {
    // Options may stand before and after the command.
    let before = flags::parse(USER_DATA_FLAGS, args)?;
    if before.is_on("version") {
        println!("process-user-data {}", podvm::VERSION);
        return Ok(());
    }
    let mut rest = before.rest.clone().into_iter();
    let command = rest.next();
    let parsed = flags::parse(USER_DATA_FLAGS, rest)?;
    if parsed.is_on("version") {
        println!("process-user-data {}", podvm::VERSION);
        return Ok(());
    }
    if before.help || parsed.help || command.is_none() {
        print!("{USAGE}{}", flags::usage("provision-files", USER_DATA_FLAGS));
        return Ok(());
    }
    let command = command.unwrap_or_default();
    if command != "provision-files" {
        bail!("unknown command {command:?}, the only one is provision-files");
    }
    if let Some(word) = parsed.rest.first() {
        bail!("unexpected word {word:?} after provision-files");
    }
    let option = |name: &str| if parsed.was_given(name) { &parsed } else { &before }.text(name).to_owned();
    let seconds = option("user-data-fetch-timeout");
    let seconds: u64 = seconds.parse().with_context(|| {
        format!("option --user-data-fetch-timeout: {seconds:?} is not a number of seconds")
    })?;
    podvm::log::init("process-user-data", before.is_on("verbose") || parsed.is_on("verbose"));
    let mut provisioner = Provisioner::new(Paths::new(option("root")));
    provisioner.timeout = Duration::from_secs(seconds);
    provisioner.user_data_dir = Some(option("user-data-dir")).filter(|dir| !dir.is_empty()).map(Into::into);
    provision(&provisioner)?;
    Ok(())
}

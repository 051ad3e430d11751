//! Command `podvm-init`: the first process of a guest without systemd.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use podvm::flags;
use podvm::init::{self, Options, machine};
use podvm::programs::{INIT_DONE, INIT_FLAGS, INIT_USAGE};

fn main() -> ExitCode {
    let own_name = std::env::args_os().next().map(PathBuf::from);
    match own_name.as_deref().and_then(Path::file_name).and_then(OsStr::to_str) {
        // The name by which a kernel starts its first process. What else it passes are words of its command line that
        // it does not know, not options.
        Some("init") if std::process::id() == 1 => {
            podvm::log::init("podvm-init", false);
            machine::run(&Options::default())
        }
        // The name by which a kernel asks for modules.
        Some("modprobe") => return modprobe(),
        _ => {}
    }
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::from(INIT_DONE.0),
        Err(error) => {
            eprintln!("podvm-init: {error:#}");
            return ExitCode::from(INIT_USAGE.0);
        }
    };
    match init::run(&options) {
        Ok(()) => ExitCode::from(INIT_DONE.0),
        Err((step, error)) => {
            eprintln!("podvm-init: {step}: {error:#}");
            ExitCode::from(step.exit_code())
        }
    }
}

fn modprobe() -> ExitCode {
    match machine::modprobe(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The kernel asks for much that no image has, so it passes -q and nobody reads this.
            eprintln!("modprobe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Option<Options>> {
    let parsed = flags::parse(INIT_FLAGS, std::env::args().skip(1))?;
    if parsed.is_on("version") {
        println!("podvm-init {}", podvm::VERSION);
        return Ok(None);
    }
    if parsed.help {
        print!("{}", flags::usage("podvm-init", INIT_FLAGS));
        return Ok(None);
    }
    let number = |name: &str| -> Result<u64> {
        let text = parsed.text(name);
        text.parse().with_context(|| format!("option --{name}: {text:?} is not a number"))
    };
    let mut options = Options::default();
    options.guest_dir = parsed.text("guest-dir").into();
    options.agent = match parsed.non_empty("agent") {
        Some(path) => path.into(),
        None => options.guest_dir.join("kata-agent"),
    };
    options.agent_args = parsed.rest.clone();
    options.agent_socket = parsed.text("agent-socket").into();
    options.agent_timeout = Duration::from_secs(number("agent-timeout")?);
    options.forwarder_port = number("forwarder-port")?.try_into().context("option --forwarder-port")?;
    options.forwarder_args = parsed.text("forwarder-options").split_whitespace().map(str::to_owned).collect();
    options.user_data_dir = parsed.non_empty("user-data-dir").map(Into::into);
    options.user_data_timeout = Duration::from_secs(number("user-data-fetch-timeout")?);
    options.restarts = number("restarts")?.try_into().context("option --restarts")?;
    options.end_timeout = Duration::from_secs(number("end-timeout")?);
    options.mount = parsed.is_on("mount");
    podvm::log::init("podvm-init", parsed.is_on("verbose"));
    Ok(Some(options))
}

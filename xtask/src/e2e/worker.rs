//! End-to-end tests without an account: a worker machine from a reservation, and pods on it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::context::Context;
use crate::machines::Provider;
use crate::podvm::{self, Flavour};
use crate::signals::Ends;
use crate::{programs, setup};

/// A machine without hardware for virtualisation takes a minute to boot, and its pods a minute to start.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Builds everything and runs the program `e2e`.
///
/// # Errors
///
/// When something that cannot be installed is missing, or cargo fails.
pub(super) fn run(context: &Context, provider: Provider) -> Result<ExitCode> {
    setup::require_root("cargo xtask e2e")?;
    setup::install(context, provider.need())?;
    let own = build(context, "e2e")?;
    // The program gives its machine back when a terminal interrupts it, and is waited for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _ends = Ends::watch(&runtime)?;
    let folder = tempfile::Builder::new().prefix("e2e-programs-").tempdir()?;
    let image = collect(context, provider, folder.path())?;
    // The image has the same program with fewer providers, from the same place.
    let testbed = programs::build_testbed(context, provider)?;
    let mut run = context.program(own).args(["--provider", provider.name()]);
    run = run.arg("--testbed").arg(testbed).arg("--programs").arg(folder.path());
    run = run.arg("--setups").arg(context.root.join("tests/setups"));
    if let Some(image) = image {
        run = run.arg("--image").arg(image);
    }
    let done = run.visible(LIMIT);
    if let Err(error) = &done {
        context.say(format!("{error:#}"));
    }
    Ok(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs as a stage of the test.
///
/// # Errors
///
/// When an assessment fails or something is left.
pub(crate) fn stage(context: &Context, provider: Provider) -> Result<String> {
    ensure!(run(context, provider)? == ExitCode::SUCCESS, "see above");
    Ok("a pod on a worker machine from a reservation, and nothing left of both".to_owned())
}

/// Copies what is installed on the machine into `folder`, and builds its image where it boots one.
fn collect(context: &Context, provider: Provider, folder: &Path) -> Result<Option<PathBuf>> {
    let guest = programs::build_guest(context)?;
    let node = programs::build_node(context, Provider::Local)?;
    let worker = build(context, "e2e-worker")?;
    let guest = programs::GUEST.iter().map(|name| guest.folder.join(name));
    for program in guest.chain([node.daemon, node.gateway, worker]) {
        let name = program.file_name().context("a program has a name")?;
        programs::strip(&program, &folder.join(name))?;
    }
    if provider == Provider::Local {
        return Ok(None);
    }
    let options = podvm::Options { flavour: Flavour::Machine, ..podvm::Options::default() };
    Ok(Some(podvm::build(context, &options)?.path))
}

/// Builds a program of the end-to-end tests, and returns where it is.
fn build(context: &Context, name: &str) -> Result<PathBuf> {
    context.say(format!("building {name}"));
    let args = ["build", "--quiet", "--locked", "-p", "e2e", "--bin", name];
    context.cargo().args(args).visible(LIMIT)?;
    let program = context.target.join("debug").join(name);
    ensure!(program.is_file(), "cargo built no {}", program.display());
    Ok(program)
}

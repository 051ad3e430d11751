//! The demo for an ordinary user: the same in a user namespace.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Options;
use crate::command::Run;
use crate::context::Context;
use crate::machines::Provider;
use crate::{programs, setup};

/// How long the demo of an ordinary user may take.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// The user that nobody is, as every machine has it.
const NOBODY: u32 = 65_534;

/// Builds what is needed outside, where the registry is, and runs the demo again as root of a namespace.
///
/// # Errors
///
/// When something is missing, or cannot be built.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    setup::install(context, Provider::Local.need())?;
    let launcher = match &options.programs {
        Some(folder) => folder.join(programs::ROOTLESS),
        None => {
            programs::build_guest(context)?;
            programs::build_rootless(context)?
        }
    };
    context.say("not root: everything is made in a user, network and mount namespace of its own");
    let mut command = Command::new(&launcher);
    if options.one_id {
        command.arg("--one-id");
    }
    let own = std::env::current_exe().context("find this program")?;
    // It takes our place: there is nothing left to do here but to hand on signals and the exit code.
    let error = command.arg("--").arg(own).args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("cannot start {}", launcher.display()))
}

/// Runs as a stage of the test: the demo of a user who is nobody, with its own id alone, with ranges, and without them.
///
/// # Errors
///
/// When a demo fails, leaves something, or does not say what is missing.
pub(crate) fn stage(context: &Context) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("pprootless-").tempdir_in("/tmp")?;
    let folder = folder.path();
    place_programs(context, folder)?;
    let ranges = format!("{NOBODY}:300000:65536\n");
    for (what, flags, ranges) in
        [("its own id", ["--json", "--one-id"].as_slice(), ""), ("ranges of ids", &["--json"], &ranges)]
    {
        let (code, out, err) = as_nobody(context, folder, flags, ranges)?;
        ensure!(code == Some(0), "the demo of an ordinary user with {what} failed:\n{out}\n{err}");
        let report: serde_json::Value = serde_json::from_str(&out).context("the demo prints no JSON")?;
        ensure!(report["leftovers"].as_array().is_some_and(Vec::is_empty), "something is left: {out}");
        context.say(format!("as user {NOBODY} with {what}: the demo leaves nothing"));
    }
    let (code, out, err) = as_nobody(context, folder, &[], "")?;
    let told =
        ["has no range", "/etc/subuid", "add the line", "--one-id"].iter().all(|part| err.contains(part));
    ensure!(code != Some(0) && told, "nothing tells which line is missing:\n{out}\n{err}");
    Ok("as nobody with its own id and with ranges; without ranges the missing line is told".to_owned())
}

/// Copies all programs to where everybody can run them.
fn place_programs(context: &Context, folder: &Path) -> Result<()> {
    let guest = programs::build_guest(context)?;
    let rootless = programs::build_rootless(context)?;
    let node = programs::build_node(context, Provider::Local)?;
    let own = std::env::current_exe().context("find this program")?;
    let guest = programs::GUEST.map(|name| guest.folder.join(name));
    let ours = [&node.daemon, &node.gateway, &rootless, &own].into_iter().chain(&node.caactl);
    for program in ours.chain(&guest) {
        let name = program.file_name().context("a program has a name")?;
        std::fs::copy(program, folder.join(name)).with_context(|| format!("copy {}", program.display()))?;
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Runs the demo as a user without rights, a home or a compiler, who has `ranges` in /etc/subuid and /etc/subgid.
fn as_nobody(
    context: &Context,
    folder: &Path,
    flags: &[&str],
    ranges: &str,
) -> Result<(Option<i32>, String, String)> {
    /// The files are covered for this one command. They are there where the program that reads them is.
    const COVERED: &str =
        "for file in subuid subgid; do mount --bind \"$0/ranges\" /etc/$file; done; exec \"$@\"";
    let file = folder.join("ranges");
    std::fs::write(&file, ranges).with_context(|| format!("write {}", file.display()))?;
    let own = folder.join(std::env::current_exe()?.file_name().context("a program has a name")?);
    let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()];
    let path = std::env::join_paths(&context.path)?;
    let run =
        Run::new("unshare").current_dir(folder).args(["--mount", "sh", "-e", "-c", COVERED]).arg(folder);
    let run = run.arg("setpriv").args(user).arg(own).arg("demo").arg("--programs").arg(folder).args(flags);
    // There is no clone and no target directory: nothing may need one.
    let run = run.env_clear().env("PATH", path).env("HOME", folder);
    run.env("CARGO_MANIFEST_DIR", folder.join("xtask"))
        .env("CARGO_TARGET_DIR", folder.join("none"))
        .answer(LIMIT)
}

//! Machines that one logs in to, which have no pod: their image brings a program that makes accounts out of the user
//! data and runs an SSH server.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use tracing::info;

use super::Network;
use crate::init::children::{Children, Event};
use crate::init::{Kept, Options, Step, end};
use crate::paths::Paths;
use crate::userdata::{self, Provisioner};

/// An image with this program is one of a machine to log in to.
const PROGRAM: &str = "/usr/libexec/peerpod/machine";
/// Where the program finds the user data, as on a seed disk.
const USER_DATA_DIR: &str = "/run/machine/cidata";

/// Whether this is such a machine.
pub(super) fn is_wanted() -> bool {
    Path::new(PROGRAM).is_file()
}

/// Runs the program until a signal ends it, or it is gone for good.
pub(super) fn run(
    options: &Options,
    children: &mut Children,
    network: &mut Network,
) -> Result<(), (Step, anyhow::Error)> {
    // Clouds hand user data out over the network.
    if !network.wait(children)? {
        return Ok(());
    }
    take_user_data(options).map_err(|error| (Step::UserData, error))?;
    let mut program = Kept::new("machine", Step::Machine, options.restarts);
    program.start(children, &mut command())?;
    info!(program = PROGRAM, "the machine is handed over");
    loop {
        let due = [program.start_at, network.due()].into_iter().flatten().min();
        match children.next(due.map(|due| due.saturating_duration_since(Instant::now()))) {
            Event::Stop => {
                info!("stopping");
                end(children, &program, options.end_timeout);
                return Ok(());
            }
            Event::Ended { pid, how } if program.pid == Some(pid) => program.ended(&how.to_string())?,
            Event::Ended { pid, how } => drop(network.ended(pid, &how.to_string())?),
            Event::Timeout => {}
        }
        network.restart_when_due(children)?;
        program.restart_when_due(children, command)?;
    }
}

fn command() -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["machine", "--ssh-server", "sshd", "--user-data-dir", USER_DATA_DIR]);
    command
}

fn take_user_data(options: &Options) -> Result<()> {
    let mut provisioner = Provisioner::new(Paths::host());
    provisioner.timeout = options.user_data_timeout;
    provisioner.user_data_dir.clone_from(&options.user_data_dir);
    let data =
        userdata::fetch(&provisioner)?.ok_or_else(|| anyhow!("nothing gives this machine user data"))?;
    // It has the machine's own key.
    let mut folder = DirBuilder::new();
    let made = folder.recursive(true).mode(0o700).create(USER_DATA_DIR);
    made.with_context(|| format!("make {USER_DATA_DIR}"))?;
    let file = Path::new(USER_DATA_DIR).join("user-data");
    fs::write(&file, data).with_context(|| format!("write {}", file.display()))
}

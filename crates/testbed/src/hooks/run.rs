//! Runs hooks, one after the other.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use cloud_providers::{EnvSource, Error, ErrorKind, OpContext, Result};
use futures_util::{StreamExt as _, stream};
use tokio::process::Command;

use super::{describe, log_of};
use crate::{
    Event, Hook, HookAction, Host, Point, Progress,
    ssh::{Outcome, Remote, program, tail},
    state::{Folder, Secrets},
};

/// How many machines a hook runs on at once.
const AT_ONCE: usize = 32;

/// What hooks run with.
#[derive(Debug)]
pub struct Runner<'a> {
    /// The environment's folder: inventories stand there, and logs go there.
    pub folder: &'a Folder,
    /// The document's folder: commands start there.
    pub base: &'a Path,
    /// The experiment's name, for `TESTBED_EXPERIMENT`.
    pub experiment: &'a str,
    /// The machines.
    pub hosts: &'a [Host],
    /// The way to them.
    pub remote: &'a Remote,
    /// Takes what is to be told.
    pub progress: &'a Arc<dyn Progress>,
    /// What is blanked in errors.
    pub secrets: &'a Secrets,
}

/// Runs the hooks of `point`.
///
/// # Errors
///
/// At the first one that fails, with the end of what it wrote; those with `ignore_errors` are told and passed over.
pub async fn run(
    op: &OpContext,
    env: &dyn EnvSource,
    runner: &Runner<'_>,
    point: Point,
    hooks: &[Hook],
) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let path = log_of(runner.folder.path(), point);
    let failed = |error: std::io::Error| {
        Error::config("cannot write the log").with("path", path.display()).with_source(error)
    };
    let mut log =
        OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&path).map_err(failed)?;
    for hook in hooks {
        op.check()?;
        let what = describe(hook);
        runner.progress.tell("", &Event::Note { text: format!("hook, {what}") });
        writeln!(log, "## {what}").map_err(failed)?;
        let from = log.seek(SeekFrom::End(0)).map_err(failed)?;
        let result = match &hook.action {
            HookAction::Local(command) => {
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(command);
                runner.process(op, shell, &log).await
            }
            HookAction::Ssh { roles, run } => runner.ssh(op, roles, run, &mut log).await,
            HookAction::Ansible { playbook, args } => runner.ansible(op, env, playbook, args, &log).await,
        };
        let Err(error) = result else { continue };
        op.check()?;
        let mut written = String::new();
        if log.seek(SeekFrom::Start(from)).is_ok() {
            let mut bytes = Vec::new();
            let _ = log.read_to_end(&mut bytes);
            written = runner.secrets.blank(&tail(&String::from_utf8_lossy(&bytes)));
        }
        let error = Error::new(ErrorKind::Internal, "a hook failed")
            .with("hook", what)
            .with("log", path.display())
            .with("it wrote", format!("{written:?}"))
            .with_source(error);
        if hook.ignore_errors {
            runner.progress.tell("", &Event::Note { text: format!("passed over: {}", error.report()) });
        } else {
            return Err(error);
        }
    }
    Ok(())
}

impl Runner<'_> {
    /// Runs a process of this machine whose output goes to the log, and ends it with all its children on cancellation.
    async fn process(&self, op: &OpContext, mut command: Command, log: &File) -> Result<()> {
        let out = || log.try_clone().map(Stdio::from);
        let failed = |error: std::io::Error| Error::internal("cannot start it").with_source(error);
        command
            .current_dir(self.base)
            .env("TESTBED_ENV", self.folder.path())
            .env("TESTBED_EXPERIMENT", self.experiment)
            .env("TESTBED_INVENTORY", self.folder.path().join("inventory.yaml"))
            .env("TESTBED_SSH_CONFIG", self.folder.ssh_config())
            .stdin(Stdio::null())
            .stdout(out().map_err(failed)?)
            .stderr(out().map_err(failed)?)
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let group = Group(child.id());
        let status = op
            .run(async {
                child.wait().await.map_err(|error| Error::internal("cannot wait for it").with_source(error))
            })
            .await?;
        group.leave();
        match Outcome::of(status) {
            Outcome::Status(0) => Ok(()),
            Outcome::Status(code) => Err(Error::internal(format!("it ended with status {code}"))),
            Outcome::Signal(signal) => Err(Error::internal(format!("signal {signal} ended it"))),
        }
    }

    async fn ssh(&self, op: &OpContext, roles: &[String], command: &str, log: &mut File) -> Result<()> {
        let chosen = self.hosts.iter().filter(|host| {
            roles.is_empty() || roles.iter().any(|role| host.roles.contains(role) || host.alias == *role)
        });
        let runs =
            chosen.map(|host| async move { (host, self.remote.run(op, &host.alias, command, &[]).await) });
        let mut runs = stream::iter(runs).buffered(AT_ONCE);
        let mut failed = Vec::new();
        while let Some((host, answer)) = runs.next().await {
            match answer {
                Ok(answer) => {
                    for line in [&answer.stdout, &answer.stderr]
                        .into_iter()
                        .flat_map(|bytes| bytes.split(|b| *b == b'\n'))
                    {
                        if !line.is_empty() {
                            let _ = writeln!(log, "{}: {}", host.alias, String::from_utf8_lossy(line));
                        }
                    }
                    if !answer.outcome.success() {
                        failed.push(format!("{} with status {}", host.alias, answer.outcome.code()));
                    }
                }
                Err(error) => failed.push(format!("{}: {}", host.alias, error.report())),
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(Error::internal(format!("it failed on {}", failed.join(", "))))
        }
    }

    async fn ansible(
        &self,
        op: &OpContext,
        env: &dyn EnvSource,
        playbook: &Path,
        args: &[String],
        log: &File,
    ) -> Result<()> {
        let ansible: PathBuf = program(env, "ansible-playbook", "install Ansible")?;
        let mut command = Command::new(ansible);
        command
            .arg("-i")
            .arg(self.folder.path().join("inventory.yaml"))
            .args(args)
            .arg(playbook)
            .env("ANSIBLE_NOCOLOR", "1")
            .env("ANSIBLE_SSH_ARGS", "");
        self.process(op, command, log).await
    }
}

/// The process group of a hook: what it started ends with it when it is cancelled.
struct Group(Option<u32>);

impl Group {
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) {
            let _ =
                nix::sys::signal::killpg(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
        }
    }
}

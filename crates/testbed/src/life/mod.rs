//! The life of an experiment: `init`, machines that answer, hooks around the provisioning, and the end.

mod destroy;
mod interrupt;
mod preflight;
mod reach;
mod up;

pub use destroy::{destroy, soft};
pub use interrupt::Interrupt;
pub use preflight::preflight;
pub use reach::wait_for_ssh;
pub use up::{Done, Extent, Start, up};

use std::{sync::Arc, time::Duration};

use cloud_providers::{EnvSource, Error, OpContext, Result};

use crate::{
    Context, Environment, Event, Phase, Point, Progress,
    hooks::{self, Runner},
    inventories,
    several::Member,
    ssh::{self, Remote},
    state::{Store, private_folder},
};

/// A command at work on an experiment.
pub struct Session {
    /// The reservations with their providers, secrets included.
    pub members: Vec<Member>,
    /// The state.
    pub store: Arc<Store>,
    /// Takes what is to be told.
    pub progress: Arc<dyn Progress>,
    /// Cancellation.
    pub op: OpContext,
    /// The environment of the process.
    pub env: Arc<dyn EnvSource>,
    /// Machines are made anew even where they are there already.
    pub force: bool,
    /// How long machines may take until they answer over SSH.
    pub ssh_limit: Duration,
}

impl Session {
    /// Makes the folders of the providers: their contexts name them.
    ///
    /// # Errors
    ///
    /// When one cannot be made.
    pub fn prepare(&self) -> Result<()> {
        let folder = self.store.folder();
        private_folder(&folder.path().join("providers"))?;
        self.members.iter().try_for_each(|(r, _)| private_folder(&folder.of_provider(&r.provider.name)))
    }

    /// Returns the context of a call of the provider called `name`.
    pub fn context(&self, name: &str) -> Context {
        let mut context = Context::new(self.store.folder().of_provider(name));
        context.op = self.op.clone();
        context.progress = self.progress.clone();
        context.keep = self.store.keeper(name);
        context.state = self.store.saved().environment.state.remove(name).unwrap_or_default();
        context.force = self.force;
        context
    }

    /// Returns the environment as providers get it: with secrets.
    pub fn environment(&self) -> Environment {
        let mut environment = self.store.saved().environment;
        environment.reservations = self.members.iter().map(|(reservation, _)| reservation.clone()).collect();
        environment
    }

    /// Tells something in words.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.progress.tell("", &Event::Note { text: text.into() });
    }

    /// Writes a new phase.
    pub(crate) fn enter(&self, phase: Phase) -> Result<()> {
        self.store.update(|saved| saved.environment.phase = phase)
    }

    /// Writes what other programs read: the configuration of ssh and the inventory of Ansible.
    ///
    /// `fresh` names the machines whose learned host keys are no longer theirs.
    ///
    /// # Errors
    ///
    /// When a value of a machine cannot stand in them, or they cannot be written.
    pub fn write_files(&self, fresh: &[&str]) -> Result<()> {
        let saved = self.store.saved();
        let (folder, hosts) = (self.store.folder(), &saved.environment.obtained.hosts);
        ssh::write(folder, saved.environment.experiment(), hosts, fresh)?;
        inventories::write(folder, &saved.environment.obtained)
    }

    /// Runs the document's hooks of `point`.
    async fn hooks(&self, point: Point) -> Result<()> {
        let Some((reservation, _)) = self.members.first() else { return Ok(()) };
        let hooks = reservation.hooks.at(point);
        if hooks.is_empty() {
            return Ok(());
        }
        let hosts = self.store.saved().environment.obtained.hosts;
        let folder = self.store.folder();
        let runner = Runner {
            folder,
            base: &reservation.base,
            experiment: &reservation.experiment,
            hosts: &hosts,
            remote: &Remote::new(self.env.as_ref(), folder)?,
            progress: &self.progress,
            secrets: self.store.secrets(),
        };
        hooks::run(&self.op, self.env.as_ref(), &runner, point, hooks).await
    }

    /// Keeps the error in the state and returns it.
    fn keep_error(&self, error: Error) -> Error {
        let error = self.store.secrets().blank_error(error);
        // A second failure must not hide the first.
        if let Err(second) = self.store.update(|saved| saved.environment.last_error = Some(error.report())) {
            tracing::warn!(error = %second.report(), "the error could not be kept in the environment");
        }
        error
    }
}

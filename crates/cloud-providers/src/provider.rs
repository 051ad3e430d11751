//! The two traits of the contract.

use std::{ffi::OsString, fmt::Debug, sync::Arc};

use async_trait::async_trait;

use crate::{
    Capabilities, ConsoleTail, CreateRequest, EnvSource, Error, Instance, InstanceId, OpContext, OwnedList,
    Ownership, Result, Scope, Settings, Token, VerifyReport,
};

/// Reads configuration and builds a [`Provider`]. One value per use, never a global.
///
/// The order is always [`Cloud::parse_cmd`] (may be left out), [`Cloud::load_env`], [`Cloud::new_provider`].
/// Precedence: flag, non-empty variable, default. A list replaces the list of a lower source.
///
/// Contract: `config/no-globals`, `config/strict`, `config/all-problems-together`, `secrets/never-shown`.
#[async_trait]
pub trait Cloud: Send {
    /// Returns the place where typed and loaded values are kept.
    fn settings(&mut self) -> &mut Settings;

    /// Adds this provider's flags to `command`, parses `args` (without the program's name) and keeps what was typed.
    ///
    /// The matches are returned so that the program takes its own flags from them. Arguments follow Go's flag syntax,
    /// see [`crate::go_flags`].
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Config`] for what the parser cannot make sense of, and for the wish for help (code `help`).
    /// Unknown flags and values that do not parse come with all others from [`Cloud::problems`] and
    /// [`Cloud::new_provider`].
    fn parse_cmd(&mut self, command: clap::Command, args: &[OsString]) -> Result<clap::ArgMatches> {
        self.settings().parse_cmd(command, args)
    }

    /// Fills what is still open from `env`.
    ///
    /// # Errors
    ///
    /// None today: values are checked together in [`Cloud::new_provider`].
    fn load_env(&mut self, env: &dyn EnvSource) -> Result<()> {
        self.settings().load_env(env);
        Ok(())
    }

    /// Returns every problem that can be seen in the values alone, so that a program reports its own beside them.
    ///
    /// A provider with rules beyond the types of its options adds them here.
    fn problems(&mut self) -> Vec<String> {
        self.settings().parse_all().1
    }

    /// Checks everything, reports all problems together, and returns the provider.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Config`] naming every bad key; the cloud's own errors when it asks the cloud.
    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>>;
}

/// Makes and deletes machines. The rules are in `docs/contract/rules.md`, each with its id.
///
/// Contract, for every method: `errors/say-what-to-do`, `waits/bounded`, `waits/cancellable`, `tags/on-everything`,
/// `tags/plain-values`, `secrets/never-shown`.
#[async_trait]
pub trait Provider: Send + Sync + Debug {
    /// Makes the instance of the request's token, or returns the one that the token has already.
    ///
    /// Contract: `create/idempotent`, `create/race-gives-one`, `create/lost-reply-gives-one`,
    /// `create/other-request-is-conflict`, `create/foreign-name-is-conflict`, `create/failure-leaves-nothing`,
    /// `create/cancel-leaves-nothing`, `create/leftovers-are-told`, `create/records-before-next-call`,
    /// `create/dropped-leaves-what-was-recorded`, `create/confidential-is-never-downgraded`,
    /// `create/unsupported-is-refused`, `create/limits-before-first-call`, `tags/user-tags-keep-out`.
    ///
    /// # Errors
    ///
    /// What could not be undone is in [`Error::leftovers`] and was recorded.
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance>;

    /// Deletes the instance together with everything that was made for it. Volumes of the user stay.
    ///
    /// Contract: `delete/missing-is-ok`, `delete/no-leftovers`, `delete/repeat-finishes`, `delete/volumes-stay`,
    /// `delete/foreign-is-refused`, `delete/recorded-name-is-accepted`.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Permission`] when `ownership` does not hold.
    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()>;

    /// Frees what this value holds (connections, threads). Deletes no instance; may be called twice.
    ///
    /// Contract: `teardown/instances-stay`, `teardown/twice-is-ok`.
    ///
    /// # Errors
    ///
    /// When something held could not be freed.
    async fn teardown(&self) -> Result<()>;

    /// Asks the cloud whether the configuration can work: credentials, image, network. Changes nothing.
    ///
    /// Every check is in the report, also those that found nothing wrong: one finding does not keep the others from
    /// being looked at, and what could not be looked at says why.
    ///
    /// Contract: `verify/changes-nothing`.
    ///
    /// # Errors
    ///
    /// When nothing could be looked at: the cloud does not answer, the call ended. What is wrong is no error but a
    /// finding; [`VerifyReport::into_result`] makes one of them.
    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        let _ = ctx;
        Err(Error::unsupported("this provider cannot verify its configuration"))
    }

    /// Lists everything of `scope`: one entry per token with all its resources.
    ///
    /// Contract: `list/one-entry-per-token`, `list/says-when-incomplete`, `list/other-scopes-are-not-shown`,
    /// `list/says-what-runs`.
    ///
    /// # Errors
    ///
    /// The cloud's own. A list that could not be finished is no error: it says `complete: false`.
    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        let _ = (ctx, scope);
        Err(Error::unsupported("this provider cannot list what it owns"))
    }

    /// Removes everything that carries `token`, also where no instance came to be. Nothing found is success.
    ///
    /// Contract: `release/without-instance`, `release/nothing-is-ok`, `release/other-tokens-stay`.
    ///
    /// # Errors
    ///
    /// What is still there is in [`Error::leftovers`].
    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        let _ = (ctx, token);
        Err(Error::unsupported("this provider cannot release by token"))
    }

    /// Returns the end of what an instance wrote to its console, at most `limit` bytes of it: for whoever wants to know why
    /// it does not come up.
    ///
    /// Contract: `console/last-plain-text`.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::NotFound`] for an instance that is not there. A console that is silent is an empty text.
    async fn console(&self, ctx: &OpContext, id: &InstanceId, limit: usize) -> Result<ConsoleTail> {
        let _ = (ctx, id, limit);
        Err(Error::unsupported("this provider cannot read consoles"))
    }

    /// Returns what this provider can do and its limits. The default can do nothing beyond the three required calls.
    ///
    /// Contract: `capabilities/tell-the-truth`.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

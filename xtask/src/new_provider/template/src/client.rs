//! The calls to the cloud, as the provider needs them. No type of an SDK passes through here.

mod api;
#[cfg(test)]
pub(crate) mod scripted;

use std::{collections::BTreeMap, fmt::Debug, net::IpAddr, time::Duration};

use cloud_providers::{Result, UserData, async_trait};

pub(crate) use api::ApiClient;

/// Tags of a machine.
pub(crate) type Tags = BTreeMap<String, String>;

/// What the provider asks of the cloud: [`ApiClient`] in programs, `scripted::Scripted` in unit tests.
///
/// Every method is one remote call. Waits, limits of time, undoing and looking for what a lost reply has made are the
/// provider's part. An error has its kind from `error.rs`.
#[async_trait]
pub(crate) trait Client: Debug + Send + Sync {
    /// Asks whether the account may be used; changes nothing.
    async fn check_account(&self) -> Result<()>;

    /// Returns a page of the machines whose tag `key` is `value`, without those that are gone; `after` is the mark of
    /// the page before.
    async fn list_machines(&self, key: &str, value: &str, after: Option<&str>) -> Result<Page>;

    /// Makes a machine with its tags, in one call that may be repeated.
    async fn launch(&self, launch: &Launch) -> Result<Launched>;

    /// Returns a machine, `None` when there is none of this id, or when it is gone and only still shown. Any text may be
    /// asked for.
    async fn get_machine(&self, id: &str) -> Result<Option<Machine>>;

    /// Begins to remove a machine with all that belongs to it. One that is missing is success.
    async fn remove_machine(&self, id: &str) -> Result<()>;

    /// Returns for how long a change may be missing in lists, after the cloud's documentation.
    fn list_lag(&self) -> Duration;
}

/// What [`Client::launch`] makes.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) name: String,
    /// The value by which the cloud knows a repetition.
    pub(crate) client_token: String,
    pub(crate) tags: Tags,
    pub(crate) user_data: UserData,
}

/// What became of a launch.
#[derive(Clone, Debug)]
pub(crate) enum Launched {
    /// This call made the machine.
    New(Machine),
    /// An earlier call with the same `client_token` made it. It may be gone since.
    Known(Machine),
    /// A machine of this name exists that was not made with this `client_token`.
    NameTaken,
    /// The cloud knows the `client_token` from a launch with other parameters, if only another time of creation.
    TokenTaken,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) tags: Tags,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) state: State,
}

/// What a machine is doing, as far as the provider minds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It comes up.
    Starting,
    /// It is up.
    Running,
    /// It is switched off: what ran in it is over.
    Stopped,
    /// It is on its way out, or gone: it never comes back.
    Going,
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub(crate) machines: Vec<Machine>,
    /// The mark of the next page, `None` on the last one.
    pub(crate) next: Option<String>,
}

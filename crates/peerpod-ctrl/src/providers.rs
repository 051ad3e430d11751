//! Which provider deletes what.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use cloud_providers::{Error, ErrorKind, Provider};
use tokio::sync::watch;

/// A provider with its configuration: one account of a cloud.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name: that of the provider, or `<provider>/<profile>`.
    pub name: String,
    /// The provider.
    pub provider: Arc<dyn Provider>,
}

/// Why there is no provider for a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoAccount {
    /// The program does not have it, or nobody configured the profile: the text says what to mend.
    Unknown(String),
    /// Its configuration does not work.
    Broken(Error),
}

/// Finds accounts.
#[async_trait]
pub trait Providers: Send + Sync {
    /// Returns the account that a record names.
    ///
    /// # Errors
    ///
    /// When there is none that works.
    async fn account(&self, provider: &str, profile: Option<&str>) -> Result<Account, NoAccount>;

    /// Returns every account that is configured, with the names of those that do not work.
    async fn all(&self) -> Vec<(String, Result<Account, Error>)>;

    /// Returns the names of every account that is configured. A record may name any other, which no metric repeats.
    fn names(&self) -> BTreeSet<String>;

    /// Tells that something changed, so that what failed is worth another try at once.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Returns the name of an account.
pub fn account_name(provider: &str, profile: Option<&str>) -> String {
    profile.map_or_else(|| provider.to_owned(), |profile| format!("{provider}/{profile}"))
}

/// Accounts that never change.
#[derive(Debug)]
pub struct Fixed {
    accounts: BTreeMap<String, Arc<dyn Provider>>,
    changes: watch::Sender<u64>,
}

impl Fixed {
    /// Collects accounts by name.
    pub fn new<N: Into<String>>(accounts: impl IntoIterator<Item = (N, Arc<dyn Provider>)>) -> Self {
        let accounts = accounts.into_iter().map(|(name, provider)| (name.into(), provider)).collect();
        Self { accounts, changes: watch::Sender::new(0) }
    }
}

#[async_trait]
impl Providers for Fixed {
    async fn account(&self, provider: &str, profile: Option<&str>) -> Result<Account, NoAccount> {
        let name = account_name(provider, profile);
        match self.accounts.get(&name) {
            Some(provider) => Ok(Account { name, provider: provider.clone() }),
            None => Err(NoAccount::Unknown(
                Error::new(ErrorKind::Config, format!("there is no provider {name:?}"))
                    .with("known", self.accounts.keys().cloned().collect::<Vec<_>>().join(", "))
                    .to_string(),
            )),
        }
    }

    async fn all(&self) -> Vec<(String, Result<Account, Error>)> {
        let account = |(name, provider): (&String, &Arc<dyn Provider>)| {
            (name.clone(), Ok(Account { name: name.clone(), provider: provider.clone() }))
        };
        self.accounts.iter().map(account).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        self.accounts.keys().cloned().collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

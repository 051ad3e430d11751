//! Accounts from the cluster's configuration: a ConfigMap and a Secret for each profile, read again when they change.
//!
//! Values reach a provider through an `EnvSource` of their own and never through the environment of the process, so that
//! several providers and several profiles of one provider live side by side. A new configuration that does not work
//! changes nothing: the old one stays in use, and the failure is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use cloud_providers::{
    Error, ErrorKind, MapEnv, Provider,
    layers::{self, LayerSettings},
    lookup, registered,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::ClusterError,
    metrics::Metrics,
    providers::{Account, NoAccount, Providers, account_name},
};

/// The variable that names the provider of a profile.
pub const PROVIDER: &str = "CLOUD_PROVIDER";
/// How long a provider may take to be made.
const BUILD_LIMIT: Duration = Duration::from_secs(60);
/// The configuration is read at least this often, also where it may not be watched.
const POLL: Duration = Duration::from_secs(60);
/// How long a provider that was replaced is kept for what it is still at.
const OLD_LIMIT: Duration = Duration::from_secs(900);

/// Variables of one profile.
pub type Variables = BTreeMap<String, String>;

/// Where the configuration is.
#[async_trait]
pub trait ConfigSource: Send + Sync {
    /// Reads the variables of a profile, of the default one for `None`. Nothing when neither object is there.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    async fn read(&self, profile: Option<&str>) -> Result<Option<Variables>, ClusterError>;

    /// Returns when something may have changed. What breaks is begun anew inside.
    async fn changed(&self);

    /// Tells that a configuration does not work. What cannot be told is in the log already.
    async fn report(&self, profile: Option<&str>, message: &str);
}

/// Accounts that follow the configuration.
pub struct Profiles {
    source: Arc<dyn ConfigSource>,
    layers: LayerSettings,
    metrics: Arc<Metrics>,
    /// The named profiles that may be used. Whoever may make records must not choose what is read.
    named: Vec<String>,
    state: tokio::sync::Mutex<State>,
    /// What is asked for without waiting.
    names: Mutex<BTreeSet<String>>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    variables: BTreeMap<Option<String>, Option<Variables>>,
    accounts: BTreeMap<String, Entry>,
}

/// One account.
struct Entry {
    provider_name: String,
    profile: Option<String>,
    /// What the provider was made from, or what the last attempt was.
    tried: Option<Variables>,
    provider: Option<Arc<dyn Provider>>,
    error: Option<Error>,
}

impl std::fmt::Debug for Profiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profiles").field("named", &self.named).finish_non_exhaustive()
    }
}

impl Profiles {
    /// Makes accounts that nobody has asked for yet.
    pub fn new(
        source: Arc<dyn ConfigSource>,
        named: Vec<String>,
        layers: LayerSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (state, names) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { source, layers, metrics, named, state, names, changes: watch::Sender::new(0) }
    }

    /// Reads the configuration again whenever it may have changed, until `stop` fires.
    pub async fn follow(&self, stop: CancellationToken) {
        loop {
            self.reload().await;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.source.changed() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
        let state = std::mem::take(&mut *self.state.lock().await);
        for provider in state.accounts.into_values().filter_map(|e| e.provider) {
            let _ = tokio::time::timeout(Duration::from_secs(2), provider.teardown()).await;
        }
    }

    /// Reads every profile, and makes accounts anew whose variables changed.
    pub async fn reload(&self) {
        let profiles = std::iter::once(None).chain(self.named.iter().cloned().map(Some));
        let mut changed = false;
        for profile in profiles {
            let variables = match self.source.read(profile.as_deref()).await {
                Ok(variables) => variables,
                Err(error) => {
                    tracing::warn!(profile = profile.as_deref().unwrap_or("default"), %error, "the configuration cannot be read, what is known stays in use");
                    continue;
                }
            };
            let mut state = self.state.lock().await;
            changed |= state.variables.get(&profile) != Some(&variables);
            state.variables.insert(profile.clone(), variables.clone());
            // What the configuration names is there before any record names it, so that it is swept.
            let named = variables.as_ref().and_then(|v| v.get(PROVIDER)).filter(|p| !p.is_empty()).cloned();
            if let Some(provider) = named {
                let name = account_name(&provider, profile.as_deref());
                if lookup(&provider).is_ok() {
                    state.accounts.entry(name).or_insert_with(|| Entry::new(provider, profile.clone()));
                } else {
                    tracing::error!(
                        provider,
                        known = known().join(", "),
                        "the configuration names a provider that this program does not have"
                    );
                }
            }
            let names: Vec<String> =
                state.accounts.iter().filter(|(_, e)| e.profile == profile).map(|(n, _)| n.clone()).collect();
            drop(state);
            for name in names {
                changed |= self.refresh(&name).await;
            }
        }
        if changed {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// Makes the provider of an account when its variables are others than those it was made from. Returns whether
    /// something changed.
    async fn refresh(&self, name: &str) -> bool {
        let (provider_name, profile, variables) = {
            let mut state = self.state.lock().await;
            let State { variables, accounts } = &mut *state;
            let Some(entry) = accounts.get_mut(name) else { return false };
            let variables = variables.get(&entry.profile).cloned().flatten().unwrap_or_default();
            if entry.tried.as_ref() == Some(&variables) {
                return false;
            }
            entry.tried = Some(variables.clone());
            (entry.provider_name.clone(), entry.profile.clone(), variables)
        };
        // Without the lock: a provider that takes long to be made holds up no other.
        let made = build(&provider_name, variables.clone()).await;
        let mut told = None;
        {
            let mut state = self.state.lock().await;
            let Some(entry) = state.accounts.get_mut(name) else { return false };
            if entry.tried.as_ref() != Some(&variables) {
                // The configuration changed again; whoever saw that makes the next one.
                return false;
            }
            let first = entry.provider.is_none();
            match made {
                Ok(provider) => {
                    let observer = self.metrics.calls_of(name);
                    let provider = layers::standard(&provider_name, provider, &self.layers, observer);
                    tracing::info!(account = name, first, "the provider is configured");
                    if let Some(old) = entry.provider.replace(provider) {
                        tokio::spawn(retire(old));
                    }
                    entry.error = None;
                }
                Err(error) => {
                    let kept = if first { "there is none" } else { "the one before stays in use" };
                    let why = error.report();
                    tracing::error!(
                        account = name,
                        error = why,
                        kept,
                        "the configuration of a provider does not work"
                    );
                    if *error.kind() != ErrorKind::Config {
                        // The cloud may answer the next time.
                        entry.tried = None;
                    }
                    told = Some(format!("provider {name}: {why}; {kept}"));
                    entry.error = Some(error);
                }
            }
            self.metrics.config_broken(name, entry.error.is_some());
        }
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        if let Some(message) = told {
            self.source.report(profile.as_deref(), &message).await;
        }
        true
    }
}

impl Entry {
    fn new(provider_name: String, profile: Option<String>) -> Self {
        Self { provider_name, profile, tried: None, provider: None, error: None }
    }
}

fn being_made() -> Error {
    Error::new(ErrorKind::Transient, "the provider is being made")
}

fn known() -> Vec<&'static str> {
    registered().iter().map(|r| r.name).collect()
}

/// Makes a provider from variables alone.
async fn build(name: &str, variables: Variables) -> Result<Arc<dyn Provider>, Error> {
    let mut cloud = (lookup(name)?.new)();
    cloud.load_env(&MapEnv::new(variables))?;
    let late = |_| Error::new(ErrorKind::Transient, format!("it was not made within {BUILD_LIMIT:?}"));
    tokio::time::timeout(BUILD_LIMIT, cloud.new_provider()).await.map_err(late)?
}

/// Frees a provider once nothing uses it any more.
async fn retire(provider: Arc<dyn Provider>) {
    let begun = Instant::now();
    while Arc::strong_count(&provider) > 1 && begun.elapsed() < OLD_LIMIT {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    if let Err(error) = provider.teardown().await {
        tracing::warn!(error = error.report(), "a provider that was replaced could not be freed");
    }
}

#[async_trait]
impl Providers for Profiles {
    async fn account(&self, provider: &str, profile: Option<&str>) -> Result<Account, NoAccount> {
        if provider.is_empty() {
            return Err(NoAccount::Unknown("it names no provider (spec.cloudProvider)".into()));
        }
        lookup(provider).map_err(|error| NoAccount::Unknown(error.to_string()))?;
        if let Some(profile) = profile
            && !self.named.iter().any(|n| n == profile)
        {
            return Err(NoAccount::Unknown(format!(
                "profile {profile:?} is none of this controller's: add it to -profiles (known: {})",
                self.named.join(", ")
            )));
        }
        let mut state = self.state.lock().await;
        let key = profile.map(str::to_owned);
        match state.variables.get(&key) {
            // A named profile belongs to one provider; the default one may serve several.
            Some(Some(variables)) if profile.is_some() => {
                if let Some(other) = variables.get(PROVIDER).filter(|p| *p != provider) {
                    return Err(NoAccount::Unknown(format!(
                        "profile {} is one of provider {other}, and not of {provider}",
                        profile.unwrap_or_default()
                    )));
                }
            }
            Some(_) => {}
            None => {
                let error = Error::new(ErrorKind::Transient, "the configuration could not be read yet");
                return Err(NoAccount::Broken(error));
            }
        }
        let name = account_name(provider, profile);
        state.accounts.entry(name.clone()).or_insert_with(|| Entry::new(provider.to_owned(), key));
        drop(state);
        self.refresh(&name).await;
        let state = self.state.lock().await;
        let entry = state.accounts.get(&name);
        match entry.map(|e| (&e.provider, &e.error)) {
            Some((Some(provider), _)) => Ok(Account { name, provider: provider.clone() }),
            Some((None, Some(error))) => Err(NoAccount::Broken(error.clone())),
            _ => Err(NoAccount::Broken(being_made())),
        }
    }

    async fn all(&self) -> Vec<(String, Result<Account, Error>)> {
        let state = self.state.lock().await;
        let account = |(name, entry): (&String, &Entry)| {
            let result = match (&entry.provider, &entry.error) {
                (Some(provider), _) => Ok(Account { name: name.clone(), provider: provider.clone() }),
                (None, Some(error)) => Err(error.clone()),
                (None, None) => Err(being_made()),
            };
            (name.clone(), result)
        };
        state.accounts.iter().map(account).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests;

//! From the name in `provider:` to a [`Testbed`].
//!
//! Three places are looked at, in this order:
//!
//! 1. testbeds that are linked in, by name or alias ([`crate::register_testbed!`]);
//! 2. clouds that are linked in (`cloud_providers::registered`), each a testbed through the adapter;
//! 3. executables `testbed-provider-<name>`, in the folders of the variable `TESTBED_PROVIDER_PATH` and then of `PATH`.
//!
//! Hyphens are letters like others, and the case of letters does not matter.

mod keys;
mod path;

use std::{fmt, path::PathBuf, sync::Arc};

use cloud_providers::{EnvSource, Error, Result};
use tracing::warn;

use crate::{
    Key, ProviderConfig, Registration, Testbed, adapter, near::hint, plugin::Started, registrations,
};

pub use path::{PROVIDER_PATH, Search};

/// Where a provider comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// It is linked in.
    Linked,
    /// It is a cloud that is linked in, and a testbed through the adapter.
    Cloud,
    /// It is an executable.
    Executable(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linked => f.write_str("linked in"),
            Self::Cloud => f.write_str("a cloud, linked in"),
            Self::Executable(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A provider that can be named.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
    /// What it is, in a sentence; empty for an executable, which would have to be started for it.
    pub summary: String,
    /// The version of its crate; empty for an executable.
    pub version: String,
    /// Another one of the same name comes first: this one is never used.
    pub hidden: bool,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if !self.aliases.is_empty() {
            write!(f, " or {}", self.aliases.join(" or "))?;
        }
        write!(f, " ({})", self.origin)
    }
}

/// Returns every provider that can be named, in the order in which they are looked for; no executable is started.
pub fn known(search: &Search) -> Vec<Known> {
    let mut all: Vec<Known> = Vec::new();
    let mut add = |name: &str, aliases: &[&str], origin, summary: &str, version: &str| {
        let same = |known: &Known| {
            known.name.eq_ignore_ascii_case(name)
                || known.aliases.iter().any(|a| a.eq_ignore_ascii_case(name))
        };
        all.push(Known {
            hidden: all.iter().any(same),
            name: name.to_owned(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            origin,
            summary: summary.to_owned(),
            version: version.to_owned(),
        });
    };
    for linked in registrations() {
        add(linked.name, linked.aliases, Origin::Linked, linked.summary, linked.version);
    }
    for cloud in cloud_providers::registered() {
        add(cloud.name, &[], Origin::Cloud, cloud.summary, cloud.version);
    }
    for (name, file) in search.executables() {
        add(&name, &[], Origin::Executable(file), "", "");
    }
    all
}

/// A provider that was found, and not opened yet.
#[derive(Debug)]
#[non_exhaustive]
pub struct Found {
    /// Its name, also where an alias was given.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What it is, in a sentence.
    pub summary: String,
    /// Its version.
    pub version: String,
    /// Every extra variable that it reads.
    pub keys: Vec<Key>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Linked(&'static Registration),
    Cloud(&'static cloud_providers::Registration),
    Executable(Box<Started>),
}

/// Finds the testbed that `config` names, checks what is said to it, and makes it.
///
/// # Errors
///
/// [`cloud_providers::ErrorKind::Config`] when no provider has the name, with all that were found and where was looked;
/// when keys are unknown, missing or of the wrong type, all of them together; and the provider's own errors.
pub async fn open(search: &Search, config: &ProviderConfig) -> Result<Arc<dyn Testbed>> {
    find(search, config).await?.open(search, config).await
}

/// Finds the provider that `config` names. An executable is started, since only it knows its keys.
///
/// # Errors
///
/// As [`open`].
pub async fn find(search: &Search, config: &ProviderConfig) -> Result<Found> {
    let name = config.kind.as_str();
    let linked = one_of(name, registrations().into_iter().filter(|r| r.answers_to(name)).collect())?;
    if let Some(linked) = linked {
        passed_over(search, name, linked.name);
        return Ok(Found {
            name: linked.name.to_owned(),
            origin: Origin::Linked,
            summary: linked.summary.to_owned(),
            version: linked.version.to_owned(),
            keys: linked.keys.to_vec(),
            kind: Kind::Linked(linked),
        });
    }
    if let Some(cloud) = cloud_providers::registered().into_iter().find(|c| c.name.eq_ignore_ascii_case(name))
    {
        // Two crates that claim the name are an error there.
        let cloud = cloud_providers::lookup(cloud.name)?;
        passed_over(search, name, cloud.name);
        return Ok(Found {
            name: cloud.name.to_owned(),
            origin: Origin::Cloud,
            summary: cloud.summary.to_owned(),
            version: cloud.version.to_owned(),
            keys: adapter::keys(cloud).iter().map(Key::from).collect(),
            kind: Kind::Cloud(cloud),
        });
    }
    if let Some(file) = search.executable(name) {
        let started = Started::new(&file, search.limits()).await?;
        return Ok(Found {
            name: name.to_lowercase(),
            origin: Origin::Executable(file),
            summary: started.hello.summary.clone(),
            version: started.hello.release.clone(),
            keys: started.hello.keys.clone(),
            kind: Kind::Executable(Box::new(started)),
        });
    }
    Err(unknown(search, config))
}

/// Tells of an executable that is not used, since a provider of its name is linked in.
fn passed_over(search: &Search, given: &str, name: &str) {
    if let Some(file) = search.executable(given).or_else(|| search.executable(name)) {
        warn!(
            provider = name,
            executable = %file.display(),
            "the executable is not used: a provider of this name is linked in"
        );
    }
}

/// Returns the one registration, or an error when two crates claim the name.
fn one_of(name: &str, found: Vec<&'static Registration>) -> Result<Option<&'static Registration>> {
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => {
            let names = found.iter().map(|r| r.name).collect::<Vec<_>>().join(", ");
            Err(Error::config(format!("two crates of this program answer to the provider {name:?}"))
                .with("registered", names))
        }
    }
}

impl Found {
    /// Makes the testbed.
    ///
    /// # Errors
    ///
    /// As [`open`].
    pub async fn open(self, search: &Search, config: &ProviderConfig) -> Result<Arc<dyn Testbed>> {
        let config = self.check(config, search.env())?;
        match self.kind {
            Kind::Linked(linked) => (linked.new)(&config).await,
            Kind::Cloud(cloud) => adapter::open(cloud, &config, search.env()).await,
            Kind::Executable(started) => Ok(Arc::new(started.open(&config).await?)),
        }
    }

    /// Checks what is said to the provider and returns it with defaults, and each value in the one form that the provider
    /// gets. Nothing is made. A cloud reads values and the environment itself: of its keys the names are checked here.
    ///
    /// # Errors
    ///
    /// [`cloud_providers::ErrorKind::Config`] with all problems together.
    pub fn check(&self, config: &ProviderConfig, env: &dyn EnvSource) -> Result<ProviderConfig> {
        if matches!(self.kind, Kind::Cloud(_)) {
            keys::check_names(&self.name, &self.keys, config)?;
            return Ok(config.clone());
        }
        keys::check(&self.name, &self.keys, config, env)
    }

    /// Returns `config` without the values that are secret, for what is written to disk.
    #[must_use]
    pub fn without_secrets(&self, config: &ProviderConfig) -> ProviderConfig {
        let mut config = config.clone();
        config
            .extra
            .retain(|given, _| !keys::declared(&self.name, &self.keys, given).is_some_and(|k| k.secret));
        config
    }
}

/// Says which providers there are and where they were looked for.
fn unknown(search: &Search, config: &ProviderConfig) -> Error {
    let known = known(search);
    let names = known.iter().flat_map(|k| std::iter::once(&k.name).chain(&k.aliases)).map(String::as_str);
    let name = &config.kind;
    let place = keys::place(config, "type");
    let mut message = format!("{place}unknown provider {name:?}{}", hint(name, names));
    if let Some(file) = search.not_executable(name) {
        message.push_str(&format!(", {} is not executable: chmod +x makes it so", file.display()));
    }
    let list = known.iter().filter(|k| !k.hidden).map(ToString::to_string).collect::<Vec<_>>();
    let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    Error::config(message).with("found", list).with("looked at", search.places())
}

//! What came of a reservation, and what is kept of it on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Reservation;

/// A machine that is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Host {
    /// The machine's name in the reservation, unique in the experiment; the name in inventories.
    pub alias: String,
    /// What SSH connects to.
    pub address: String,
    /// Port of SSH.
    #[serde(default = "ssh")]
    pub port: u16,
    /// The account.
    pub user: Option<String>,
    /// The private key's file.
    pub key: Option<PathBuf>,
    /// The machine's SSH host key in the form `<type> <base64>`, where the provider knows it beforehand.
    pub host_key: Option<String>,
    /// The command whose standard streams are the connection, where the address cannot be reached directly. `%h` and
    /// `%p` stand for address and port, as in `ssh_config`.
    pub proxy_command: Option<String>,
    /// A machine to go through, as `user@address:port`.
    pub jump: Option<String>,
    /// Every role: those of the document, its kind, its topology group, its provider.
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// All its addresses, the one for experiments first.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The provider that it came from, by [`crate::ProviderConfig::name`].
    #[serde(default)]
    pub provider: String,
    /// The provider's own id of it.
    #[serde(default)]
    pub id: String,
    /// Variables for the inventory.
    #[serde(default)]
    pub extra: BTreeMap<String, Value>,
}

/// The port of SSH where none is said.
fn ssh() -> u16 {
    22
}

impl Host {
    /// Makes a host with SSH at port 22.
    pub fn new(alias: impl Into<String>, address: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            alias: alias.into(),
            address: address.into(),
            port: 22,
            user: None,
            key: None,
            host_key: None,
            proxy_command: None,
            jump: None,
            roles: BTreeSet::new(),
            addresses: Vec::new(),
            provider: String::new(),
            id: id.into(),
            extra: BTreeMap::new(),
        }
    }
}

/// A network of the experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Network {
    /// Its name in the reservation, or the provider's for its default one.
    pub name: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its addresses.
    pub cidr: Option<IpNet>,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Free addresses; `None` says that there are none to be had.
    pub pool: Option<Pool>,
}

/// Free addresses of a network, see [`Pool::take`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Pool {
    /// First free address of the range.
    pub start: Option<IpAddr>,
    /// Last free address of the range, inclusive.
    pub end: Option<IpAddr>,
    /// Single free addresses, taken before the range.
    #[serde(default)]
    pub extra_ips: Vec<IpAddr>,
    /// Who has which address.
    #[serde(default)]
    pub taken: BTreeMap<IpAddr, String>,
    /// Addresses in the range that nobody gets: the gateway's, those of hosts.
    #[serde(default)]
    pub reserved: BTreeSet<IpAddr>,
}

impl Pool {
    /// Makes a pool of a range, both ends inclusive.
    pub fn new(start: IpAddr, end: IpAddr) -> Self {
        Self { start: Some(start), end: Some(end), ..Self::default() }
    }
}

/// What [`crate::Testbed::init`] returns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Obtained {
    /// The hosts, in the order of the reservation.
    pub hosts: Vec<Host>,
    /// The networks, the management network first.
    pub networks: Vec<Network>,
    /// Machines that were wanted and are not there, each with the reason. Only within what the reservation allows.
    pub missing: BTreeMap<String, String>,
    /// Names of the hosts that this call made, and did not only find again: nothing else is given back when another
    /// provider of the same document fails. Empty where machines exist already.
    pub made: BTreeSet<String>,
}

impl Obtained {
    /// Makes the result.
    pub fn new(hosts: Vec<Host>, networks: Vec<Network>) -> Self {
        Self { hosts, networks, missing: BTreeMap::new(), made: BTreeSet::new() }
    }

    /// Returns the hosts by role. A role without hosts is not in it.
    pub fn roles(&self) -> BTreeMap<&str, Vec<&Host>> {
        let mut roles: BTreeMap<&str, Vec<&Host>> = BTreeMap::new();
        for host in &self.hosts {
            for role in &host.roles {
                roles.entry(role).or_default().push(host);
            }
        }
        roles
    }
}

/// What a provider keeps between two commands, unread by anybody else.
pub type ProviderState = BTreeMap<String, Value>;

/// How far an experiment is. Each value includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Nothing was asked of a provider.
    #[default]
    New,
    /// A provider was asked for machines: some may be there.
    Initialising,
    /// The machines are there.
    Initialised,
    /// Each of them answered over SSH.
    Reachable,
    /// The provider's `before_preinstall` and the hooks of that point ran.
    BeforePreinstall,
    /// The provisioning ran.
    Preinstalled,
    /// The provider's `after_preinstall` and the hooks of that point ran: `up` is through.
    Ready,
    /// Machines are being given back: some may be gone.
    Destroying,
    /// Everything was given back.
    Destroyed,
}

/// What is kept of an experiment between two commands. It holds no secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Environment {
    /// The document, as it was when the machines were asked for, without secrets; one for each provider.
    pub reservations: Vec<Reservation>,
    /// How far it is.
    pub phase: Phase,
    /// What is there.
    pub obtained: Obtained,
    /// What each provider keeps, by [`crate::ProviderConfig::name`].
    pub state: BTreeMap<String, ProviderState>,
    /// The last error, as shown to the user.
    pub last_error: Option<String>,
}

impl Environment {
    /// Makes the environment of an experiment that has nothing yet.
    pub fn new(reservations: Vec<Reservation>) -> Self {
        Self {
            reservations,
            phase: Phase::New,
            obtained: Obtained::default(),
            state: BTreeMap::new(),
            last_error: None,
        }
    }

    /// Returns the experiment's name.
    pub fn experiment(&self) -> &str {
        self.reservations.first().map_or("", |r| &r.experiment)
    }
}

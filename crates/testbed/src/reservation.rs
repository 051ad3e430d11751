//! What a user asks for, checked and spelled out. Plain data: it crosses to a provider in another process.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use cloud_providers::PortRequest;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{NetworkConstraints, Places};

/// A whole reservation of one provider. A document that names several providers becomes one of these for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reservation {
    /// Names the experiment: the same name finds the same machines again.
    pub experiment: String,
    /// The provider and what is said to it.
    pub provider: ProviderConfig,
    /// How machines are logged in to.
    pub access: Access,
    /// What happens when fewer machines are to be had than wanted.
    pub shortage: Shortage,
    /// The groups in the order of the document; [`Machine::group`] counts in it.
    pub groups: Vec<Group>,
    /// Every machine wanted, in an order that depends on the document alone.
    pub machines: Vec<Machine>,
    /// The networks wanted.
    pub networks: Vec<NetworkRequest>,
    /// What is run around provisioning.
    pub hooks: Hooks,
    /// What the network between the machines is to be like, where the document says it.
    #[serde(default)]
    pub constraints: Option<NetworkConstraints>,
    /// The folder of the document: relative paths in it start here.
    pub base: PathBuf,
}

impl Reservation {
    /// Makes a reservation without machines.
    pub fn new(experiment: impl Into<String>, provider: ProviderConfig) -> Self {
        Self {
            experiment: experiment.into(),
            provider,
            access: Access::default(),
            shortage: Shortage::default(),
            groups: Vec::new(),
            machines: Vec::new(),
            networks: Vec::new(),
            hooks: Hooks::default(),
            constraints: None,
            base: PathBuf::from("."),
        }
    }
}

/// The provider's part of the document: its name, and whatever else stands beside `type`.
///
/// `provider: local` and `provider: {type: local}` are the same.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProviderConfig {
    /// The name as written, an alias maybe.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the provider is called where there are several; its type otherwise. It is a role of all its machines.
    pub name: String,
    /// Every other key, as in the document.
    pub extra: Map<String, Value>,
    /// Where the keys of `extra` stand in the document, for messages.
    #[serde(skip)]
    pub places: Places,
}

impl fmt::Debug for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be credentials.
        let keys: Vec<&String> = self.extra.keys().collect();
        f.debug_struct("ProviderConfig")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .field("extra", &keys)
            .finish_non_exhaustive()
    }
}

impl ProviderConfig {
    /// Makes the configuration that a bare name stands for.
    pub fn new(kind: impl Into<String>) -> Self {
        let kind = kind.into();
        Self { name: kind.clone(), kind, extra: Map::new(), places: Places::default() }
    }

    /// Sets an extra variable.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra.insert(key.into(), value.into());
        self
    }
}

/// How machines are logged in to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Access {
    /// The account; `None` leaves it to the provider's image.
    pub user: Option<String>,
    /// The private key's file; `None` until the environment made one.
    pub private_key: Option<PathBuf>,
    /// The public key in the form of `authorized_keys`. It is there whenever a provider is called.
    pub public_key: Option<String>,
}

/// Whether a shortage is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortage {
    /// Every machine wanted must be there, or each group's `min`.
    #[default]
    Strict,
    /// What there is will do, as long as each group has its `min`.
    Lenient,
}

/// Machines that were asked for together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Group {
    /// A name for messages and for `plan`; unique.
    pub name: String,
    /// The group of a topology that it stands in, where there is one.
    pub topology: Option<String>,
    /// The number wanted.
    pub count: usize,
    /// The fewest to go on with. Without a word on it: `count` when strict, 0 when lenient.
    pub min: Option<usize>,
}

impl Group {
    /// Makes a group.
    pub fn new(name: impl Into<String>, count: usize) -> Self {
        Self { name: name.into(), topology: None, count, min: None }
    }

    /// Returns the fewest machines to go on with.
    pub fn least(&self, shortage: Shortage) -> usize {
        self.min.unwrap_or(match shortage {
            Shortage::Strict => self.count,
            Shortage::Lenient => 0,
        })
    }
}

/// One machine wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Machine {
    /// Its name in the experiment: follows from its place in the document, so that another group's size changes nothing.
    pub name: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// The index of its group.
    pub group: usize,
    /// Whatever the provider sells: a flavour, a cluster's name, an instance type. `None` is the provider's default.
    pub kind: Option<String>,
    /// The size, where the document says it.
    pub size: Size,
    /// The image; `None` is the provider's default.
    pub image: Option<String>,
    /// The account to log in as, where it differs from the document's.
    pub user: Option<String>,
    /// Names of the networks it is on, in the order of its interfaces; empty means the provider's default.
    pub networks: Vec<String>,
    /// A fixed address.
    pub address: Option<IpAddr>,
    /// Ports to be reachable beside SSH's.
    pub ports: Vec<PortRequest>,
    /// A machine that exists already; only for the provider `static`.
    pub host: Option<StaticHost>,
    /// Variables for the inventory.
    pub extra: BTreeMap<String, Value>,
}

impl Machine {
    /// Makes a machine of group `group`.
    pub fn new(
        name: impl Into<String>,
        group: usize,
        roles: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            name: name.into(),
            roles: roles.into_iter().map(Into::into).collect(),
            group,
            kind: None,
            size: Size::default(),
            image: None,
            user: None,
            networks: Vec::new(),
            address: None,
            ports: Vec::new(),
            host: None,
            extra: BTreeMap::new(),
        }
    }
}

/// The size of a machine. `None` means that the user does not mind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Size {
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// Root disk in GiB.
    pub disk_gib: Option<u32>,
    /// GPUs.
    pub gpus: Option<u32>,
}

/// A machine that exists already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StaticHost {
    /// Address or name that SSH connects to.
    pub address: String,
    /// Port of SSH; `None` is 22.
    pub port: Option<u16>,
    /// Private key's file, where it differs from the document's.
    pub key: Option<PathBuf>,
}

impl StaticHost {
    /// Names a host.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), port: None, key: None }
    }
}

/// One network wanted, or the pool that the user gives from a network of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkRequest {
    /// Its name in the document.
    pub name: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// What it is at the provider: a subnet's id, a vlan's kind.
    pub kind: Option<String>,
    /// Its addresses.
    pub cidr: Option<IpNet>,
    /// First free address.
    pub start: Option<IpAddr>,
    /// Last free address, inclusive.
    pub end: Option<IpAddr>,
    /// Single free addresses; they are used before the range.
    pub extra_ips: Vec<IpAddr>,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
}

/// What is run around provisioning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Hooks {
    /// Runs before the provisioning, right after the provider's own `before_preinstall`.
    pub before_preinstall: Vec<Hook>,
    /// The provisioning.
    pub preinstall: Vec<Hook>,
    /// Runs after the provisioning, right after the provider's own `after_preinstall`.
    pub after_preinstall: Vec<Hook>,
    /// Runs before machines are given back.
    pub destroy: Vec<Hook>,
}

/// The point at which hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Before.
    BeforePreinstall,
    /// The provisioning itself.
    Preinstall,
    /// After.
    AfterPreinstall,
    /// Before machines are given back.
    Destroy,
}

impl Hooks {
    /// Returns the hooks of `point`.
    pub fn at(&self, point: Point) -> &[Hook] {
        match point {
            Point::BeforePreinstall => &self.before_preinstall,
            Point::Preinstall => &self.preinstall,
            Point::AfterPreinstall => &self.after_preinstall,
            Point::Destroy => &self.destroy,
        }
    }
}

/// One thing to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hook {
    /// What it does.
    #[serde(flatten)]
    pub action: HookAction,
    /// A failure is told and goes on.
    #[serde(default)]
    pub ignore_errors: bool,
}

/// What a hook does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HookAction {
    /// A command of the shell on this machine, in the folder of the document.
    Local(String),
    /// A command over SSH on every machine of the roles, in parallel.
    Ssh {
        /// The roles; empty means all machines.
        roles: Vec<String>,
        /// The command.
        run: String,
    },
    /// A playbook, with the inventory of the environment, where the user has Ansible.
    Ansible {
        /// The playbook's file.
        playbook: PathBuf,
        /// More arguments of `ansible-playbook`.
        args: Vec<String>,
    },
}

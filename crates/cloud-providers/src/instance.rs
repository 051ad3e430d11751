//! What providers return: instances, resources, lists of what is owned, capabilities.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{Architecture, ConfidentialType, InstanceId, Scope, Token};

/// A machine that a provider made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Instance {
    /// The cloud's id; what [`crate::Provider::delete_instance`] takes.
    pub id: InstanceId,
    /// The name that was given to it.
    pub name: String,
    /// Its addresses; the first one is the one to dial.
    pub addresses: Vec<IpAddr>,
    /// The type that was chosen, where the cloud has types.
    pub instance_type: Option<String>,
}

impl Instance {
    /// Makes an instance record.
    pub fn new(id: InstanceId, name: impl Into<String>, addresses: Vec<IpAddr>) -> Self {
        Self { id, name: name.into(), addresses, instance_type: None }
    }

    /// Sets the type that was chosen.
    #[must_use]
    pub fn with_type(mut self, instance_type: impl Into<String>) -> Self {
        self.instance_type = Some(instance_type.into());
        self
    }
}

/// One thing that a provider made: an instance, a disk, an interface, an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resource {
    /// A word such as `instance`, `disk`, `network_interface`, `address`, `folder`.
    pub kind: String,
    /// The cloud's id of it.
    pub id: String,
}

impl Resource {
    /// The kind of instances.
    pub const INSTANCE: &'static str = "instance";

    /// Names a resource.
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: id.into() }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)
    }
}

/// How a caller proves that an instance is its own to delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ownership {
    /// The instance must carry our tags with this scope.
    Tagged(Scope),
    /// As [`Ownership::Tagged`], and an untagged instance is accepted when its name is the generated one.
    ///
    /// For records of the existing programs, which tag nothing.
    Recorded {
        /// The generated name.
        name: String,
    },
    /// As [`Ownership::Recorded`], where the record tells the pod and not the sandbox: the name must be one that is
    /// generated for this pod, see [`crate::names::is_instance_name`].
    RecordedFor {
        /// Name of the pod.
        pod: String,
    },
}

impl Ownership {
    /// Whether `name` proves ownership of an instance that carries no tags.
    ///
    /// ```
    /// # use cloud_providers::{Ownership, Scope};
    /// assert!(Ownership::Recorded { name: "podvm-web-0a1b2c3d".into() }.accepts_name("podvm-web-0a1b2c3d"));
    /// assert!(Ownership::RecordedFor { pod: "web".into() }.accepts_name("podvm-web-0a1b2c3d"));
    /// assert!(!Ownership::RecordedFor { pod: "web".into() }.accepts_name("podvm-web-1-0a1b2c3d"));
    /// assert!(!Ownership::Tagged(Scope::Cluster("c".into())).accepts_name("podvm-web-0a1b2c3d"));
    /// ```
    pub fn accepts_name(&self, name: &str) -> bool {
        match self {
            Self::Tagged(_) => false,
            Self::Recorded { name: recorded } => recorded == name,
            Self::RecordedFor { pod } => crate::names::is_instance_name(name, pod),
        }
    }
}

/// What a machine is doing, as far as a list tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InstanceState {
    /// It is being made or started.
    Pending,
    /// It runs.
    Running,
    /// It holds still and goes on where it was when somebody lets it.
    Paused,
    /// It is about to stop or to be deleted.
    Stopping,
    /// It is switched off. What ran in it is over; its disks are there.
    Stopped,
    /// It is deleted and still listed for a while.
    Terminated,
    /// The provider does not tell, or tells something that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl InstanceState {
    /// Whether what ran in the machine is over and never comes back by itself.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Terminated)
    }

    /// Returns the word for people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Terminated => "terminated",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Everything that carries one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Owned {
    /// The full token, `None` where only its hash could be stored.
    pub token: Option<Token>,
    /// The token's tag value, see [`Token::tag_value`].
    pub token_tag: String,
    /// The node or user.
    pub holder: Option<String>,
    /// The instance, where it came to be.
    pub instance: Option<Instance>,
    /// What the instance is doing; a provider of an earlier version does not say.
    #[serde(default)]
    pub state: InstanceState,
    /// All resources, the instance among them.
    pub resources: Vec<Resource>,
    /// Seconds since 1970 when it was made, where known.
    pub created_unix: Option<u64>,
    /// Somebody asked by [`crate::tags::PROTECT`] that no sweep deletes it.
    #[serde(default)]
    pub protected: bool,
}

impl Owned {
    /// Makes an entry without resources.
    pub fn new(token_tag: impl Into<String>) -> Self {
        Self {
            token: None,
            token_tag: token_tag.into(),
            holder: None,
            instance: None,
            state: InstanceState::default(),
            resources: Vec::new(),
            created_unix: None,
            protected: false,
        }
    }
}

/// What a provider found of a scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OwnedList {
    /// One entry per token.
    pub entries: Vec<Owned>,
    /// `false` when something may be missing; nobody deletes on the word of an incomplete list.
    pub complete: bool,
}

impl OwnedList {
    /// Makes a list.
    pub fn new(entries: Vec<Owned>, complete: bool) -> Self {
        Self { entries, complete }
    }
}

/// What a provider can do and where its limits are, known before the first call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Capabilities {
    /// [`crate::Provider::verify_config`] works.
    pub verify_config: bool,
    /// [`crate::Provider::list_owned`] works.
    pub list_owned: bool,
    /// [`crate::Provider::release`] works.
    pub release: bool,
    /// [`crate::Provider::console`] works.
    pub console: bool,
    /// Instances are separated from the host and from each other by more than namespaces.
    pub isolation: bool,
    /// Kinds of confidential machines.
    pub confidential: Vec<ConfidentialType>,
    /// Architectures; empty means unknown.
    pub architectures: Vec<Architecture>,
    /// GPUs can be asked for.
    pub gpus: bool,
    /// vCPU and memory of a request are enforced.
    pub sizes: bool,
    /// Existing volumes can be attached.
    pub volumes: bool,
    /// The root disk can be sized.
    pub root_disk_size: bool,
    /// More than one network interface.
    pub multi_nic: bool,
    /// An image can be chosen per request.
    pub images: bool,
    /// The cloud has types of its own that a request can name.
    pub instance_types: bool,
    /// Plain machines (testbeds) as well as guests.
    pub plain_machines: bool,
    /// Ports of a request are opened; otherwise all ports are reachable or none.
    pub ports: bool,
    /// The most bytes of user data, as the caller hands them over.
    pub user_data_limit: Option<usize>,
    /// The most characters of an instance name.
    pub name_limit: Option<usize>,
    /// The most tags of a resource.
    pub tag_limit: Option<usize>,
    /// Reserved: user data delivered after the start of the machine.
    pub late_user_data: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_earlier_and_later_versions_are_unknown_and_never_over() {
        let mut entry = serde_json::to_value(Owned::new("t")).unwrap();
        entry.as_object_mut().unwrap().remove("state");
        let read = |entry: &serde_json::Value| serde_json::from_value::<Owned>(entry.clone()).unwrap().state;
        assert_eq!(read(&entry), InstanceState::Unknown);
        for (text, state) in [("hibernated", InstanceState::Unknown), ("stopped", InstanceState::Stopped)] {
            entry["state"] = text.into();
            assert_eq!(read(&entry), state);
            assert_eq!(state.is_over(), text == "stopped");
        }
    }
}

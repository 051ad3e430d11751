//! The messages. Each is one JSON object on a line of its own; fields that are not known are passed over.

use std::{collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Environment, Event, Features, Key, ProviderConfig, ProviderState, Reservation};

/// What the program that needs machines says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToProvider {
    /// The first message.
    Hello {
        /// The versions of the protocol that it speaks.
        versions: Vec<u32>,
        /// What it is, for logs.
        #[serde(default)]
        host: String,
    },
    /// Asks for something. Exactly one result or error with the same id answers it.
    Call {
        /// Counts up.
        id: u64,
        /// What is asked for.
        method: Method,
        /// What goes with it; which fields are there depends on the method.
        #[serde(default)]
        params: Box<Params>,
    },
    /// Answers `keep`.
    Kept {
        /// The call.
        id: u64,
        /// The number that the provider gave.
        keep: u64,
        /// Why it could not be kept; the provider undoes what it made and fails with this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Value>,
    },
    /// Ends a call early: it undoes what it made and is answered with an error of kind `cancelled`.
    Cancel {
        /// The call.
        id: u64,
    },
}

/// What a provider says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToHost {
    /// Answers `hello`.
    Hello(Hello),
    /// A call succeeded.
    Result {
        /// The call.
        id: u64,
        /// What came of it; nothing for calls that return nothing.
        #[serde(default)]
        value: Value,
    },
    /// A call failed.
    Error {
        /// The call; without it the provider cannot go on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// `kind`, `message`, and what else the contract's error has.
        error: Value,
    },
    /// Something happened to a machine.
    Progress {
        /// The call.
        id: u64,
        /// The machine's name in the reservation.
        machine: String,
        /// What happened.
        #[serde(flatten)]
        event: Event,
    },
    /// Keeps `value` under `key`, or removes the key: wait for `kept` before going on.
    Keep {
        /// The call.
        id: u64,
        /// A number of the provider's choice, which `kept` repeats.
        #[serde(default)]
        keep: u64,
        /// The key.
        key: String,
        /// The value; `null` removes the key.
        #[serde(default)]
        value: Option<Value>,
    },
}

/// What a provider says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hello {
    /// The version of the protocol: one of those offered.
    pub version: u32,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The version of the program.
    #[serde(default)]
    pub release: String,
    /// What it is, in a sentence.
    #[serde(default)]
    pub summary: String,
    /// Every extra variable that it reads.
    #[serde(default)]
    pub keys: Vec<Key>,
    /// What it can do.
    #[serde(default)]
    pub features: Features,
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Method {
    /// Takes `config`; the first call. Returns [`Opened`].
    Open,
    /// [`crate::Testbed::init`]: `context`, `reservation`.
    Init,
    /// [`crate::Testbed::destroy`]: `context`, `environment`.
    Destroy,
    /// [`crate::Testbed::give_back`]: `context`, `environment`, `machines`.
    GiveBack,
    /// [`crate::Testbed::before_preinstall`]: `context`, `environment`.
    BeforePreinstall,
    /// [`crate::Testbed::after_preinstall`]: `context`, `environment`.
    AfterPreinstall,
    /// [`crate::Testbed::plan`]: `context`, `reservation`.
    Plan,
    /// [`crate::Testbed::status`]: `context`, `environment`.
    Status,
}

impl Method {
    /// Returns its name on the wire.
    pub fn label(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Init => "init",
            Self::Destroy => "destroy",
            Self::GiveBack => "give_back",
            Self::BeforePreinstall => "before_preinstall",
            Self::AfterPreinstall => "after_preinstall",
            Self::Plan => "plan",
            Self::Status => "status",
        }
    }
}

/// What goes with a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Params {
    /// What is said to the provider, checked, with defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ProviderConfig>,
    /// What accompanies the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<CallContext>,
    /// What is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<Reservation>,
    /// What is kept of the experiment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// The machines to give back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machines: Option<BTreeSet<String>>,
}

/// The part of [`crate::Context`] that crosses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CallContext {
    /// What the provider kept in earlier calls.
    pub state: ProviderState,
    /// Machines are made anew even where they are there already.
    pub force: bool,
    /// A folder, private to the user, where the provider may put files.
    pub dir: PathBuf,
    /// The time that the call has, in milliseconds; `cancel` comes at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// Answers [`Method::Open`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Opened {
    /// What the provider can do with this configuration, where it differs from what it said at first.
    pub features: Option<Features>,
}

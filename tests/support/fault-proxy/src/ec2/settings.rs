//! What of EC2 can be set.

use serde::{Deserialize, Serialize};

/// How EC2 behaves. The default adds nothing that takes time.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// How long an instance is `pending` after RunInstances.
    pub pending_ms: u64,
    /// How long an instance is `shutting-down` after TerminateInstances.
    pub shutting_down_ms: u64,
    /// How long instances, interfaces and addresses that were just made are not found by describing.
    pub hidden_ms: u64,
    /// After which time a terminated instance is no longer found, if ever.
    pub forget_ms: Option<u64>,
    /// What there is no room for.
    pub shortages: Vec<Shortage>,
}

impl Settings {
    /// Short times of the kind that the service has, for tests that are to notice them.
    pub fn realistic() -> Self {
        Self { pending_ms: 700, shutting_down_ms: 700, hidden_ms: 250, ..Self::default() }
    }

    /// Adds a shortage.
    #[must_use]
    pub fn with_shortage(mut self, shortage: Shortage) -> Self {
        self.shortages.push(shortage);
        self
    }
}

/// RunInstances that are refused for lack of something; everything that is given has to fit.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Shortage {
    /// In this availability zone.
    pub zone: Option<String>,
    /// In this subnet.
    pub subnet: Option<String>,
    /// For this instance type.
    pub instance_type: Option<String>,
    /// For spot instances, or for those on demand.
    pub spot: Option<bool>,
    /// What the service says, such as `InsufficientInstanceCapacity`.
    pub code: String,
    /// How often, without an end where it is missing.
    pub times: Option<u64>,
}

impl Shortage {
    /// A shortage of everything, for ever, to be narrowed down.
    pub fn new(code: &str) -> Self {
        Self { code: code.to_owned(), ..Self::default() }
    }

    /// Only in this availability zone.
    #[must_use]
    pub fn with_zone(mut self, zone: &str) -> Self {
        self.zone = Some(zone.to_owned());
        self
    }

    /// Only in this subnet.
    #[must_use]
    pub fn with_subnet(mut self, subnet: &str) -> Self {
        self.subnet = Some(subnet.to_owned());
        self
    }

    /// Only for this instance type.
    #[must_use]
    pub fn with_instance_type(mut self, instance_type: &str) -> Self {
        self.instance_type = Some(instance_type.to_owned());
        self
    }

    /// Only for spot instances, or only for those on demand.
    #[must_use]
    pub fn with_spot(mut self, spot: bool) -> Self {
        self.spot = Some(spot);
        self
    }

    /// Only so often.
    #[must_use]
    pub fn with_times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// The status that goes with the code.
    pub(super) fn status(&self) -> u16 {
        match self.code.as_str() {
            // What the service lacks itself is its own error; a limit of the account is the caller's.
            "InsufficientInstanceCapacity"
            | "InsufficientHostCapacity"
            | "InsufficientReservedInstanceCapacity"
            | "InsufficientCapacity" => 500,
            _ => 400,
        }
    }
}

//! The state machine of a sandbox: its phases, the steps between them, and what takes each step back.
//!
//! ```text
//!            CreateVM          StartVM
//!   (none) ───────────▶ Planned ───────▶ Launching ─▶ Launched ─▶ Connected ─▶ Ready
//!                          │                 │            │           │          │
//!                          │ StopVM          └──────┬─────┴───────────┘          │ StopVM, two signs that the
//!                          │ no StartVM             │ failure, StopVM,           │ pod is gone, VM vanished
//!                          ▼                        ▼ caller gone, too late      ▼
//!                       Stopping ◀──────────────────┴────────────────────────────┘
//!                          │ everything taken back, the cloud said gone
//!                          ▼
//!                         Gone
//! ```
//!
//! One task owns one sandbox from Planned to Gone. Calls only change what the task waits for, so calls for one sandbox
//! are served in order and calls for different sandboxes never wait for each other. A panic inside a step becomes the
//! failure of that sandbox. A caller that goes away during StartVM cancels the start: nobody would use its result.
//!
//! The record of a sandbox is on the disk before the first effect of a phase; Connected has none that Launched has not, and
//! is not written. So whatever a daemon that ended in the middle may have done, the next one finds the phase in which it
//! was, and takes back every step that may have begun: each way back is fine with nothing to take back.
//!
//! | step | taken in | what it makes | what takes it back |
//! |---|---|---|---|
//! | [`Step::Record`] | Planned | the entry in the journal | forgetting it, after all other steps |
//! | [`Step::Tunnel`] | Planned, Launched | the tunnel device, its rules and redirections | removing them |
//! | [`Step::Folder`] | Planned | the folder of the sandbox | removing it |
//! | [`Step::Claim`] | Launching | the record in the cluster | removing it, after the instance |
//! | [`Step::Instance`] | Launching | instance, disks, interfaces | deleting the instance, or all that its token has |
//! | [`Step::Proxy`] | Launched | the agent socket and the link to the guest | closing both |

use serde::{Deserialize, Serialize};

/// Where a sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// CreateVM was answered: tunnel id reserved, user data ready, nothing in the cloud.
    Planned,
    /// The provider makes the instance.
    Launching,
    /// The instance is known.
    Launched,
    /// The tunnel stands and the guest's forwarder is being dialled.
    Connected,
    /// StartVM was answered.
    Ready,
    /// Everything is being taken back.
    Stopping,
    /// Nothing is left.
    Gone,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 7] = [
        Self::Planned,
        Self::Launching,
        Self::Launched,
        Self::Connected,
        Self::Ready,
        Self::Stopping,
        Self::Gone,
    ];

    /// Whether a sandbox may go from this phase to `next`.
    pub fn leads_to(self, next: Self) -> bool {
        match next {
            Self::Planned => false,
            Self::Launching => self == Self::Planned,
            Self::Launched => self == Self::Launching,
            Self::Connected => self == Self::Launched,
            Self::Ready => self == Self::Connected,
            // Also of one that an earlier daemon began to stop.
            Self::Stopping => self != Self::Gone,
            Self::Gone => self == Self::Stopping,
        }
    }

    /// Whether something may be in the cloud: from the moment at which the provider may have been asked.
    pub(crate) fn may_have_instance(self) -> bool {
        self > Self::Planned
    }
}

/// What a sandbox is made of; see the table of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// The entry in the journal.
    Record,
    /// The tunnel.
    Tunnel,
    /// The folder.
    Folder,
    /// The record in the cluster.
    Claim,
    /// What the provider made.
    Instance,
    /// The agent socket and the link to the guest.
    Proxy,
}

impl Step {
    /// What is done to take it back, in words that follow "cannot".
    pub fn way_back(self) -> &'static str {
        match self {
            Self::Record => "forget the sandbox",
            Self::Tunnel => "remove the tunnel",
            Self::Folder => "remove the folder of the sandbox",
            Self::Claim => "release the record in the cluster",
            Self::Instance => "delete the instance",
            Self::Proxy => "close the agent socket",
        }
    }
}

/// A point at which the task of a sandbox, or a call for it, waits for something.
///
/// The simulated campaign ends daemons at each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum AwaitPoint {
    /// A planned sandbox waits for its StartVM.
    Planned,
    /// A start waits for its turn to ask the provider.
    Turn,
    /// A phase is entered: its record is to be kept.
    Enter,
    /// The provider reported a resource, whose record is to be kept.
    Recorded,
    /// A running sandbox waits for its end.
    Ready,
    /// The task begins to take everything back.
    Stopping,
    /// An attempt to take something back failed and is repeated after a pause.
    Again,
    /// A restored sandbox is served again.
    Reattach,
    /// Everything is taken back but the record.
    Forget,
}

impl AwaitPoint {
    /// Every point.
    pub const ALL: [Self; 9] = [
        Self::Planned,
        Self::Turn,
        Self::Enter,
        Self::Recorded,
        Self::Ready,
        Self::Stopping,
        Self::Again,
        Self::Reattach,
        Self::Forget,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_goes_forward_one_phase_at_a_time_or_is_stopped() {
        for (index, from) in Phase::ALL.into_iter().enumerate() {
            for (other, to) in Phase::ALL.into_iter().enumerate() {
                let start = to < Phase::Stopping && other == index + 1;
                let stop = to == Phase::Stopping && from != Phase::Gone;
                let gone = (from, to) == (Phase::Stopping, Phase::Gone);
                assert_eq!(from.leads_to(to), start || stop || gone, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn every_phase_after_planned_may_have_an_instance() {
        let without: Vec<Phase> = Phase::ALL.into_iter().filter(|p| !p.may_have_instance()).collect();
        assert_eq!(without, [Phase::Planned]);
    }
}

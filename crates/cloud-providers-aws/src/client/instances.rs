//! Instances.

use std::net::IpAddr;

use cloud_providers::UserData;

use super::{CreateInterface, LaunchTemplateRef, Tags};

/// What [`super::Ec2::run_instances`] makes: one instance, so `MinCount` and `MaxCount` are 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunInstances {
    /// The idempotency value, at most 64 characters.
    pub client_token: String,
    /// A launch template; what is said here replaces what it says.
    pub launch_template: Option<LaunchTemplateRef>,
    /// Image id.
    pub image: Option<String>,
    /// Instance type.
    pub instance_type: Option<String>,
    /// Key pair.
    pub key_name: Option<String>,
    /// Interfaces; empty leaves them to the launch template.
    pub interfaces: Vec<NewInterface>,
    /// The root volume; `None` leaves it to the image.
    pub root_volume: Option<RootVolume>,
    /// Sets `CpuOptions.AmdSevSnp` to `enabled`.
    pub sev_snp: bool,
    /// Buys at the spot market: one time, terminated when interrupted.
    pub spot: bool,
    /// How the instance's metadata service answers; `None` leaves it to the template or the account.
    pub metadata: Option<MetadataOptions>,
    /// Sets `InstanceInitiatedShutdownBehavior` to `terminate`: a machine that switches itself off is gone.
    pub terminate_on_shutdown: bool,
    /// Handed to the machine; not encoded yet.
    pub user_data: UserData,
    /// Tags of the instance, its volumes and its interfaces, and of the spot request where there is one.
    pub tags: Tags,
}

/// An interface that is made together with an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewInterface {
    /// Position, from 0.
    pub device_index: u32,
    /// Subnet.
    pub subnet: Option<String>,
    /// Security groups; empty means the VPC's default group.
    pub groups: Vec<String>,
    /// A fixed private IPv4 address.
    pub private_address: Option<IpAddr>,
    /// Whether it gets a public address from Amazon's pool; `None` leaves it to the subnet. EC2 takes this for a single
    /// interface only.
    pub public: Option<bool>,
    /// The interface goes with the instance.
    pub delete_on_termination: bool,
}

/// The root volume. It goes with the instance, whatever the image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RootVolume {
    /// Device name of the image's root.
    pub device: String,
    /// Size in GiB; `None` leaves it to the image.
    pub size_gib: Option<u32>,
}

/// How an instance's metadata service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetadataOptions {
    /// Only version 2, with its session tokens, is answered.
    pub tokens_required: bool,
    /// How many hops an answer with a token may take.
    pub hop_limit: u8,
}

impl MetadataOptions {
    /// Makes options.
    pub fn new(tokens_required: bool, hop_limit: u8) -> Self {
        Self { tokens_required, hop_limit }
    }
}

/// One instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// Id.
    pub id: String,
    /// What it is doing.
    pub state: State,
    /// Why it changed to this state.
    pub state_reason: Option<StateReason>,
    /// Type.
    pub instance_type: String,
    /// Image id.
    pub image: Option<String>,
    /// Subnet of the first interface.
    pub subnet: Option<String>,
    /// Availability zone.
    pub zone: Option<String>,
    /// Whether it was bought at the spot market.
    pub spot: bool,
    /// Whether AMD SEV-SNP is enabled.
    pub sev_snp: bool,
    /// Seconds since 1970 at launch.
    pub launched_unix: Option<u64>,
    /// The idempotency value that it was made with.
    pub client_token: Option<String>,
    /// Interfaces, in any order.
    pub interfaces: Vec<InstanceInterface>,
    /// Volumes attached, in any order, the root among them.
    pub volumes: Vec<InstanceVolume>,
    /// Tags.
    pub tags: Tags,
}

/// What an instance is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// `pending`.
    Pending,
    /// `running`.
    Running,
    /// `shutting-down`.
    ShuttingDown,
    /// `terminated`.
    Terminated,
    /// `stopping`.
    Stopping,
    /// `stopped`.
    Stopped,
    /// Something that this version does not know, or nothing.
    #[default]
    Unknown,
}

impl State {
    /// Reads EC2's word.
    pub fn of(word: &str) -> Self {
        match word {
            "pending" => Self::Pending,
            "running" => Self::Running,
            "shutting-down" => Self::ShuttingDown,
            "terminated" => Self::Terminated,
            "stopping" => Self::Stopping,
            "stopped" => Self::Stopped,
            _ => Self::Unknown,
        }
    }

    /// Returns whether it is on its way out or gone, and never comes back.
    pub fn is_going(self) -> bool {
        matches!(self, Self::ShuttingDown | Self::Terminated)
    }
}

/// Why an instance changed its state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateReason {
    /// EC2's code, such as `Server.InsufficientInstanceCapacity`.
    pub code: String,
    /// EC2's text.
    pub message: String,
}

/// An interface of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceInterface {
    /// Id.
    pub id: String,
    /// Id of its attachment.
    pub attachment: Option<String>,
    /// Position.
    pub device_index: u32,
    /// Private addresses, the primary one first.
    pub private_addresses: Vec<IpAddr>,
    /// Public address.
    pub public_address: Option<IpAddr>,
    /// Owner of the public address: `amazon` for one of Amazon's pool, the account for an Elastic IP.
    pub public_owner: Option<String>,
    /// It goes with the instance.
    pub delete_on_termination: bool,
}

/// A volume of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceVolume {
    /// Id.
    pub id: String,
    /// Device name.
    pub device: String,
    /// EC2's word: `attaching`, `attached`, `detaching`, `detached`.
    pub state: String,
    /// It goes with the instance.
    pub delete_on_termination: bool,
}

/// A changing call whose permission [`super::Ec2::dry_run`] asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DryRun {
    /// `RunInstances`.
    RunInstances(Box<RunInstances>),
    /// `TerminateInstances` of an id.
    TerminateInstances(String),
    /// `CreateNetworkInterface`.
    CreateNetworkInterface(Box<CreateInterface>),
    /// `AttachNetworkInterface` of an interface to an instance, as device 1.
    AttachNetworkInterface(String, String),
    /// `ModifyNetworkInterfaceAttribute` of an interface and its attachment.
    ModifyNetworkInterfaceAttribute(String, String),
    /// `DetachNetworkInterface` of an attachment.
    DetachNetworkInterface(String),
    /// `DeleteNetworkInterface` of an id.
    DeleteNetworkInterface(String),
    /// `AllocateAddress` with tags.
    AllocateAddress(Tags),
    /// `AssociateAddress` of an allocation with an interface.
    AssociateAddress(String, String),
    /// `DisassociateAddress` of an association.
    DisassociateAddress(String),
    /// `ReleaseAddress` of an allocation.
    ReleaseAddress(String),
    /// `AttachVolume` of a volume to an instance.
    AttachVolume(String, String),
    /// `DetachVolume` of a volume from an instance.
    DetachVolume(String, String),
}

impl DryRun {
    /// Returns the operation's name.
    pub fn operation(&self) -> &'static str {
        match self {
            Self::RunInstances(_) => "RunInstances",
            Self::TerminateInstances(_) => "TerminateInstances",
            Self::CreateNetworkInterface(_) => "CreateNetworkInterface",
            Self::AttachNetworkInterface(..) => "AttachNetworkInterface",
            Self::ModifyNetworkInterfaceAttribute(..) => "ModifyNetworkInterfaceAttribute",
            Self::DetachNetworkInterface(_) => "DetachNetworkInterface",
            Self::DeleteNetworkInterface(_) => "DeleteNetworkInterface",
            Self::AllocateAddress(_) => "AllocateAddress",
            Self::AssociateAddress(..) => "AssociateAddress",
            Self::DisassociateAddress(_) => "DisassociateAddress",
            Self::ReleaseAddress(_) => "ReleaseAddress",
            Self::AttachVolume(..) => "AttachVolume",
            Self::DetachVolume(..) => "DetachVolume",
        }
    }
}

//! The sandbox as a whole: set-up, details of the guest, files, policy.

use bytes::Bytes;

use super::Storage;

/// A kernel module to load.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KernelModule {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Parameters, as `key=value`.
    #[prost(string, repeated, tag = "2")]
    pub parameters: Vec<String>,
}

/// Prepares the guest for a sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxRequest {
    /// Host name.
    #[prost(string, tag = "1")]
    pub hostname: String,
    /// Lines for the guest's resolver configuration.
    #[prost(string, repeated, tag = "2")]
    pub dns: Vec<String>,
    /// Storage all containers see.
    #[prost(message, repeated, tag = "3")]
    pub storages: Vec<Storage>,
    /// Whether containers share a process namespace.
    #[prost(bool, tag = "4")]
    pub sandbox_pidns: bool,
    /// Id of the sandbox.
    #[prost(string, tag = "5")]
    pub sandbox_id: String,
    /// Directory with hooks in the guest.
    #[prost(string, tag = "6")]
    pub guest_hook_path: String,
    /// Modules to load.
    #[prost(message, repeated, tag = "7")]
    pub kernel_modules: Vec<KernelModule>,
}

/// Ends the sandbox in the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DestroySandboxRequest {}

/// Brings added processors and memory online.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OnlineCpuMemRequest {
    /// Whether to wait for all.
    #[prost(bool, tag = "1")]
    pub wait: bool,
    /// Number of processors; 0 to skip the check.
    #[prost(uint32, tag = "2")]
    pub nb_cpus: u32,
    /// Whether memory is left alone.
    #[prost(bool, tag = "3")]
    pub cpu_only: bool,
}

/// Adds to the guest's entropy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReseedRandomDevRequest {
    /// Random bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
}

/// What the agent can do.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentDetails {
    /// Version of the agent.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Whether it runs as process 1.
    #[prost(bool, tag = "2")]
    pub init_daemon: bool,
    /// Kinds of devices.
    #[prost(string, repeated, tag = "3")]
    pub device_handlers: Vec<String>,
    /// Kinds of storage.
    #[prost(string, repeated, tag = "4")]
    pub storage_handlers: Vec<String>,
    /// Whether it filters system calls.
    #[prost(bool, tag = "5")]
    pub supports_seccomp: bool,
    /// Further features.
    #[prost(string, repeated, tag = "6")]
    pub extra_features: Vec<String>,
}

/// Asks what the guest can do.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GuestDetailsRequest {
    /// Whether to tell the block size of memory.
    #[prost(bool, tag = "1")]
    pub mem_block_size: bool,
    /// Whether to tell if memory is probed.
    #[prost(bool, tag = "2")]
    pub mem_hotplug_probe: bool,
}

/// Tells what the guest can do.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GuestDetailsResponse {
    /// Block size of memory.
    #[prost(uint64, tag = "1")]
    pub mem_block_size_bytes: u64,
    /// What the agent can do.
    #[prost(message, optional, tag = "2")]
    pub agent_details: Option<AgentDetails>,
    /// Whether memory is probed.
    #[prost(bool, tag = "3")]
    pub support_mem_hotplug_probe: bool,
}

/// Sets the guest's clock.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetGuestDateTimeRequest {
    /// Seconds since the epoch.
    #[prost(int64, tag = "1")]
    pub sec: i64,
    /// Microseconds on top.
    #[prost(int64, tag = "2")]
    pub usec: i64,
}

/// Copies a piece of a file into the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CopyFileRequest {
    /// Path in the guest.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Size of the whole file.
    #[prost(int64, tag = "2")]
    pub file_size: i64,
    /// Mode, with the type of file.
    #[prost(uint32, tag = "3")]
    pub file_mode: u32,
    /// Mode of missing directories.
    #[prost(uint32, tag = "4")]
    pub dir_mode: u32,
    /// Owner.
    #[prost(int32, tag = "5")]
    pub uid: i32,
    /// Group.
    #[prost(int32, tag = "6")]
    pub gid: i32,
    /// Where the piece belongs.
    #[prost(int64, tag = "7")]
    pub offset: i64,
    /// The piece; at most 1 MiB from the shims.
    #[prost(bytes = "bytes", tag = "8")]
    pub data: Bytes,
}

/// Replaces the policy of the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetPolicyRequest {
    /// Text of the policy.
    #[prost(string, tag = "1")]
    pub policy: String,
}

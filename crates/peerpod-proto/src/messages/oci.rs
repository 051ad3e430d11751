//! The container specification as the agent receives it, as far as it is read here.
//!
//! These structs are for reading. A message that is forwarded after a change is edited with [`crate::wire`],
//! because encoding a struct again would lose the fields it does not name.

use std::collections::HashMap;

/// What a container is made of.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Spec {
    /// Version of the runtime specification.
    #[prost(string, tag = "1")]
    pub version: String,
    /// First process of the container.
    #[prost(message, optional, tag = "2")]
    pub process: Option<Process>,
    /// Root filesystem.
    #[prost(message, optional, tag = "3")]
    pub root: Option<Root>,
    /// Host name.
    #[prost(string, tag = "4")]
    pub hostname: String,
    /// Mounts, in order.
    #[prost(message, repeated, tag = "5")]
    pub mounts: Vec<Mount>,
    /// Programs run at points of the container's life.
    #[prost(message, optional, tag = "6")]
    pub hooks: Option<Hooks>,
    /// Free metadata.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    /// What is particular to Linux.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<Linux>,
}

/// A process to start.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    /// Whether the process gets a terminal.
    #[prost(bool, tag = "1")]
    pub terminal: bool,
    /// Size of the terminal.
    #[prost(message, optional, tag = "2")]
    pub console_size: Option<ConsoleBox>,
    /// Who the process runs as.
    #[prost(message, optional, tag = "3")]
    pub user: Option<User>,
    /// Program and arguments.
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    /// Environment, as `KEY=value`.
    #[prost(string, repeated, tag = "5")]
    pub env: Vec<String>,
    /// Working directory.
    #[prost(string, tag = "6")]
    pub cwd: String,
    /// Capabilities.
    #[prost(message, optional, tag = "7")]
    pub capabilities: Option<LinuxCapabilities>,
    /// Resource limits.
    #[prost(message, repeated, tag = "8")]
    pub rlimits: Vec<PosixRlimit>,
    /// Whether the process can gain no privileges.
    #[prost(bool, tag = "9")]
    pub no_new_privileges: bool,
    /// Profile of AppArmor.
    #[prost(string, tag = "10")]
    pub apparmor_profile: String,
    /// Adjustment of the score for the out-of-memory killer.
    #[prost(int64, tag = "11")]
    pub oom_score_adj: i64,
    /// Label of SELinux.
    #[prost(string, tag = "12")]
    pub selinux_label: String,
}

/// Size of a terminal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConsoleBox {
    /// Rows.
    #[prost(uint32, tag = "1")]
    pub height: u32,
    /// Columns.
    #[prost(uint32, tag = "2")]
    pub width: u32,
}

/// Who a process runs as.
#[derive(Clone, PartialEq, prost::Message)]
pub struct User {
    /// User id.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// Group id.
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    /// Further group ids.
    #[prost(uint32, repeated, tag = "3")]
    pub additional_gids: Vec<u32>,
    /// Name of the user.
    #[prost(string, tag = "4")]
    pub username: String,
}

/// Capability sets.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxCapabilities {
    /// Bounding set.
    #[prost(string, repeated, tag = "1")]
    pub bounding: Vec<String>,
    /// Effective set.
    #[prost(string, repeated, tag = "2")]
    pub effective: Vec<String>,
    /// Inheritable set.
    #[prost(string, repeated, tag = "3")]
    pub inheritable: Vec<String>,
    /// Permitted set.
    #[prost(string, repeated, tag = "4")]
    pub permitted: Vec<String>,
    /// Ambient set.
    #[prost(string, repeated, tag = "5")]
    pub ambient: Vec<String>,
}

/// One resource limit.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PosixRlimit {
    /// Which limit, for example `RLIMIT_NOFILE`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Hard value.
    #[prost(uint64, tag = "2")]
    pub hard: u64,
    /// Soft value.
    #[prost(uint64, tag = "3")]
    pub soft: u64,
}

/// One mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Path in the container.
    #[prost(string, tag = "1")]
    pub destination: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Type of the filesystem, or `bind`.
    #[prost(string, tag = "3")]
    pub kind: String,
    /// Mount options.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// Root filesystem of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Root {
    /// Path in the guest.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Whether it is read-only.
    #[prost(bool, tag = "2")]
    pub readonly: bool,
}

/// Programs run at points of the container's life.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hooks {
    /// Before the first process.
    #[prost(message, repeated, tag = "1")]
    pub prestart: Vec<Hook>,
    /// After the first process has started.
    #[prost(message, repeated, tag = "2")]
    pub poststart: Vec<Hook>,
    /// After the container has ended.
    #[prost(message, repeated, tag = "3")]
    pub poststop: Vec<Hook>,
}

/// One such program.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hook {
    /// Path of the program.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Arguments.
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    /// Environment.
    #[prost(string, repeated, tag = "3")]
    pub env: Vec<String>,
    /// Limit in seconds.
    #[prost(int64, tag = "4")]
    pub timeout: i64,
}

/// What is particular to Linux.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Linux {
    /// Mappings of user ids.
    #[prost(message, repeated, tag = "1")]
    pub uid_mappings: Vec<LinuxIdMapping>,
    /// Mappings of group ids.
    #[prost(message, repeated, tag = "2")]
    pub gid_mappings: Vec<LinuxIdMapping>,
    /// Kernel parameters.
    #[prost(map = "string, string", tag = "3")]
    pub sysctl: HashMap<String, String>,
    /// Limits of the control group.
    #[prost(message, optional, tag = "4")]
    pub resources: Option<LinuxResources>,
    /// Path of the control group.
    #[prost(string, tag = "5")]
    pub cgroups_path: String,
    /// Namespaces to create or to join.
    #[prost(message, repeated, tag = "6")]
    pub namespaces: Vec<LinuxNamespace>,
    /// Device nodes.
    #[prost(message, repeated, tag = "7")]
    pub devices: Vec<LinuxDevice>,
    /// Mount propagation of the root.
    #[prost(string, tag = "9")]
    pub rootfs_propagation: String,
    /// Paths hidden from the container.
    #[prost(string, repeated, tag = "10")]
    pub masked_paths: Vec<String>,
    /// Paths that are read-only.
    #[prost(string, repeated, tag = "11")]
    pub readonly_paths: Vec<String>,
    /// Label of SELinux for mounts.
    #[prost(string, tag = "12")]
    pub mount_label: String,
}

/// A range of mapped ids.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxIdMapping {
    /// First id outside.
    #[prost(uint32, tag = "1")]
    pub host_id: u32,
    /// First id inside.
    #[prost(uint32, tag = "2")]
    pub container_id: u32,
    /// Number of ids.
    #[prost(uint32, tag = "3")]
    pub size: u32,
}

/// A namespace to create or to join.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxNamespace {
    /// Type, for example `network`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Path to join; empty to create one.
    #[prost(string, tag = "2")]
    pub path: String,
}

/// A device node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxDevice {
    /// Path in the container.
    #[prost(string, tag = "1")]
    pub path: String,
    /// `c`, `b`, `u` or `p`.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// Major number.
    #[prost(int64, tag = "3")]
    pub major: i64,
    /// Minor number.
    #[prost(int64, tag = "4")]
    pub minor: i64,
    /// Permission bits.
    #[prost(uint32, tag = "5")]
    pub file_mode: u32,
    /// Owner.
    #[prost(uint32, tag = "6")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "7")]
    pub gid: u32,
}

/// Limits of a control group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxResources {
    /// Rules for devices.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<LinuxDeviceCgroup>,
    /// Limits for memory.
    #[prost(message, optional, tag = "2")]
    pub memory: Option<LinuxMemory>,
    /// Limits for processors.
    #[prost(message, optional, tag = "3")]
    pub cpu: Option<LinuxCpu>,
    /// Limit for processes.
    #[prost(message, optional, tag = "4")]
    pub pids: Option<LinuxPids>,
}

/// A rule for devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxDeviceCgroup {
    /// Whether the rule allows.
    #[prost(bool, tag = "1")]
    pub allow: bool,
    /// Type of device.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// Major number.
    #[prost(int64, tag = "3")]
    pub major: i64,
    /// Minor number.
    #[prost(int64, tag = "4")]
    pub minor: i64,
    /// Letters out of `rwm`.
    #[prost(string, tag = "5")]
    pub access: String,
}

/// Limits for memory, in bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxMemory {
    /// Limit.
    #[prost(int64, tag = "1")]
    pub limit: i64,
    /// Soft limit.
    #[prost(int64, tag = "2")]
    pub reservation: i64,
    /// Limit of memory and swap together.
    #[prost(int64, tag = "3")]
    pub swap: i64,
    /// Limit of kernel memory.
    #[prost(int64, tag = "4")]
    pub kernel: i64,
    /// Limit of kernel memory for TCP.
    #[prost(int64, tag = "5")]
    pub kernel_tcp: i64,
    /// How eagerly pages are swapped.
    #[prost(uint64, tag = "6")]
    pub swappiness: u64,
    /// Whether the out-of-memory killer is off.
    #[prost(bool, tag = "7")]
    pub disable_oom_killer: bool,
}

/// Limits for processors.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxCpu {
    /// Relative weight.
    #[prost(uint64, tag = "1")]
    pub shares: u64,
    /// Microseconds of a period that may be used.
    #[prost(int64, tag = "2")]
    pub quota: i64,
    /// Length of a period in microseconds.
    #[prost(uint64, tag = "3")]
    pub period: u64,
    /// Microseconds of a real-time period that may be used.
    #[prost(int64, tag = "4")]
    pub realtime_runtime: i64,
    /// Length of a real-time period in microseconds.
    #[prost(uint64, tag = "5")]
    pub realtime_period: u64,
    /// List of processors.
    #[prost(string, tag = "6")]
    pub cpus: String,
    /// List of memory nodes.
    #[prost(string, tag = "7")]
    pub mems: String,
}

/// Limit for processes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxPids {
    /// Number of processes.
    #[prost(int64, tag = "1")]
    pub limit: i64,
}

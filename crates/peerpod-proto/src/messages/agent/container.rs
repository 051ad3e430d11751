//! Containers: create, start, change, remove.

use crate::messages::oci::{LinuxResources, Spec};

/// Creates a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainerRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Id of its first process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// User by name.
    #[prost(message, optional, tag = "3")]
    pub string_user: Option<StringUser>,
    /// Devices to hand in.
    #[prost(message, repeated, tag = "4")]
    pub devices: Vec<Device>,
    /// Storage to mount in the guest first.
    #[prost(message, repeated, tag = "5")]
    pub storages: Vec<Storage>,
    /// Specification of the container.
    #[prost(message, optional, tag = "6")]
    pub oci: Option<Spec>,
    /// Whether it joins the process namespace of the sandbox.
    #[prost(bool, tag = "7")]
    pub sandbox_pidns: bool,
    /// Mounts shared between containers.
    #[prost(message, repeated, tag = "8")]
    pub shared_mounts: Vec<SharedMount>,
    /// Port of a stream for standard input.
    #[prost(uint32, tag = "9")]
    pub stdin_port: u32,
    /// Port of a stream for standard output.
    #[prost(uint32, tag = "10")]
    pub stdout_port: u32,
    /// Port of a stream for standard error.
    #[prost(uint32, tag = "11")]
    pub stderr_port: u32,
}

/// A user by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringUser {
    /// User.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Group.
    #[prost(string, tag = "2")]
    pub gid: String,
    /// Further groups.
    #[prost(string, repeated, tag = "3")]
    pub additional_gids: Vec<String>,
}

/// A device to hand in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    /// Id in the guest.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Type of device.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// Path in the guest.
    #[prost(string, tag = "3")]
    pub vm_path: String,
    /// Path in the container.
    #[prost(string, tag = "4")]
    pub container_path: String,
    /// What the type needs.
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
}

/// Storage to mount in the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Storage {
    /// How the storage reaches the guest; `image_guest_pull` for an image.
    #[prost(string, tag = "1")]
    pub driver: String,
    /// What the driver needs.
    #[prost(string, repeated, tag = "2")]
    pub driver_options: Vec<String>,
    /// What is mounted.
    #[prost(string, tag = "3")]
    pub source: String,
    /// Type of the filesystem.
    #[prost(string, tag = "4")]
    pub fstype: String,
    /// Mount options.
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
    /// Where it is mounted.
    #[prost(string, tag = "6")]
    pub mount_point: String,
    /// Group that is to own the files.
    #[prost(message, optional, tag = "7")]
    pub fs_group: Option<FsGroup>,
    /// Whether containers share it.
    #[prost(bool, tag = "8")]
    pub shared: bool,
}

/// Group that is to own the files of a volume.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FsGroup {
    /// Group id.
    #[prost(uint32, tag = "2")]
    pub group_id: u32,
    /// 0 to change always, 1 when the root differs.
    #[prost(int32, tag = "3")]
    pub group_change_policy: i32,
}

/// A mount shared between containers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SharedMount {
    /// Name of the pair.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Container it comes from.
    #[prost(string, tag = "2")]
    pub src_ctr: String,
    /// Path there.
    #[prost(string, tag = "3")]
    pub src_path: String,
    /// Container it goes to.
    #[prost(string, tag = "4")]
    pub dst_ctr: String,
    /// Path there.
    #[prost(string, tag = "5")]
    pub dst_path: String,
}

/// Starts the first process of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartContainerRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Removes a container and ends its processes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveContainerRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Limit in seconds; 0 for none.
    #[prost(uint32, tag = "2")]
    pub timeout: u32,
}

/// Changes the limits of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateContainerRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// New limits.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<LinuxResources>,
}

/// Mounts ephemeral storage again, with new options.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateEphemeralMountsRequest {
    /// The storage.
    #[prost(message, repeated, tag = "1")]
    pub storages: Vec<Storage>,
}

/// Freezes a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PauseContainerRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Thaws a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResumeContainerRequest {
    /// Id of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

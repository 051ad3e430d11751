//! `api.SecureMountService` of the confidential data hub in the guest: opens and mounts encrypted volumes.

use std::collections::HashMap;

/// Name of the service on the wire.
pub const SERVICE: &str = "api.SecureMountService";
/// Opens and mounts a volume: [`SecureMountRequest`] to [`SecureMountResponse`].
pub const SECURE_MOUNT: &str = "SecureMount";

/// Asks for a volume to be opened and mounted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SecureMountRequest {
    /// Kind of volume; `block-device` for a cloud volume.
    #[prost(string, tag = "1")]
    pub volume_type: String,
    /// What the kind needs, for example `devicePath` and `key`.
    #[prost(map = "string, string", tag = "2")]
    pub options: HashMap<String, String>,
    /// Mount flags.
    #[prost(string, repeated, tag = "3")]
    pub flags: Vec<String>,
    /// Where the volume is mounted.
    #[prost(string, tag = "4")]
    pub mount_point: String,
}

/// The volume is mounted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SecureMountResponse {}

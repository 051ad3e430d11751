//! `grpc.Health`: whether the agent serves, and its versions.

/// Name of the service on the wire.
pub const SERVICE: &str = "grpc.Health";
/// Asks whether the agent serves: [`CheckRequest`] to [`HealthCheckResponse`].
pub const CHECK: &str = "Check";
/// Asks for versions: [`CheckRequest`] to [`VersionCheckResponse`].
pub const VERSION: &str = "Version";

/// State of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ServingStatus {
    /// Not known.
    Unknown = 0,
    /// It serves.
    Serving = 1,
    /// It does not serve.
    NotServing = 2,
}

/// Asks about a service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckRequest {
    /// Name of the service; empty for the agent as a whole.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// Tells the state of the service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    /// State, as a [`ServingStatus`].
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub status: i32,
}

/// Tells the versions of the protocol and of the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionCheckResponse {
    /// Version of the protocol.
    #[prost(string, tag = "1")]
    pub grpc_version: String,
    /// Version of the agent.
    #[prost(string, tag = "2")]
    pub agent_version: String,
}

//! `hypervisor.Hypervisor`: what a Kata shim with the remote hypervisor asks of the node daemon.

use std::collections::HashMap;

/// Name of the service on the wire.
pub const SERVICE: &str = "hypervisor.Hypervisor";
/// Creates the records of a sandbox: [`CreateVmRequest`] to [`CreateVmResponse`].
pub const CREATE_VM: &str = "CreateVM";
/// Starts the machine of a sandbox: [`StartVmRequest`] to [`StartVmResponse`].
pub const START_VM: &str = "StartVM";
/// Ends a sandbox: [`StopVmRequest`] to [`StopVmResponse`].
pub const STOP_VM: &str = "StopVM";
/// Asks for the version: [`VersionRequest`] to [`VersionResponse`].
pub const VERSION: &str = "Version";

/// Asks which version of the service answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionRequest {
    /// Version of the caller.
    #[prost(string, tag = "1")]
    pub version: String,
}

/// Tells the version of the service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionResponse {
    /// Version of the service; the existing daemon answers `0.0.0`.
    #[prost(string, tag = "1")]
    pub version: String,
}

/// Announces a sandbox, before its containers are known.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateVmRequest {
    /// Sandbox id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Annotations of the sandbox; both shims send the same nine keys, empty where unset.
    #[prost(map = "string, string", tag = "2")]
    pub annotations: HashMap<String, String>,
    /// Path of the pod's network namespace on the node; empty when there is none.
    #[prost(string, tag = "3")]
    pub network_namespace_path: String,
}

/// Says where the agent of the sandbox will answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateVmResponse {
    /// Path of the agent socket on the node; it may appear later, and may not contain a colon.
    #[prost(string, tag = "1")]
    pub agent_socket_path: String,
}

/// Starts the machine of an announced sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartVmRequest {
    /// Sandbox id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// The machine runs and its agent can be reached.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartVmResponse {}

/// Ends a sandbox; sent up to three times, with a deadline of one second each.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StopVmRequest {
    /// Sandbox id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// The sandbox is ended, or was not known.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StopVmResponse {}

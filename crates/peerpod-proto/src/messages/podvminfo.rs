//! `podvminfo.PodVMInfo`: which instance serves a pod; on the same socket as the hypervisor service.

/// Name of the service on the wire.
pub const SERVICE: &str = "podvminfo.PodVMInfo";
/// Looks an instance up: [`GetInfoRequest`] to [`GetInfoResponse`].
pub const GET_INFO: &str = "GetInfo";

/// Asks for the instance of a pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetInfoRequest {
    /// Name of the pod.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Namespace of the pod.
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
    /// Whether to wait until the instance is known.
    #[prost(bool, tag = "3")]
    pub wait: bool,
}

/// Names the instance of a pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetInfoResponse {
    /// Id of the instance as its provider knows it.
    #[prost(string, tag = "1")]
    pub vm_id: String,
}

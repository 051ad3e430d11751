//! The services of the hypervisor socket: Kata's own, the look-up of instances, and the list for `caactl`.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use peerpod_gateway::SHIM_PID;
use peerpod_proto::{
    CallContext, Code, Service, Status,
    messages::{hypervisor, podvminfo},
    server::{Connection, decode, encode},
};

use crate::{
    sandbox::{Caller, Sandboxes},
    trace,
};

/// Our own service on the same socket, for `caactl`.
pub const NODE_SERVICE: &str = "peerpod.Node";
/// Lists sandboxes: empty request to JSON text.
pub const NODE_LIST: &str = "List";
/// Shows the journal without its secrets: empty request to JSON text.
pub const NODE_JOURNAL: &str = "Journal";
/// Tells everything about sandboxes, for `caactl diagnose`: the beginning of an id to JSON text.
pub const NODE_DIAGNOSE: &str = "Diagnose";
/// What `Version` answers: the existing daemon's constant, which shims only log.
const VERSION: &str = "0.0.0";

/// Answers shims.
pub struct NodeService {
    sandboxes: Sandboxes,
}

impl NodeService {
    /// Serves `sandboxes`.
    pub fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes }
    }

    async fn hypervisor(&self, ctx: &CallContext, method: &str, payload: Bytes) -> Result<Bytes, Status> {
        match method {
            hypervisor::CREATE_VM => {
                let request: hypervisor::CreateVmRequest = decode(payload)?;
                let path = self
                    .sandboxes
                    .create_vm(
                        &request.id,
                        &request.annotations,
                        &request.network_namespace_path,
                        &ctx.cancel,
                    )
                    .await?;
                Ok(encode(&hypervisor::CreateVmResponse { agent_socket_path: path_text(&path) }))
            }
            hypervisor::START_VM => {
                let request: hypervisor::StartVmRequest = decode(payload)?;
                if self.sandboxes.is_closing() {
                    return Err(Status::new(Code::Unavailable, "the daemon is ending: start the pod again"));
                }
                let caller = Caller { pid: shim_pid(ctx), deadline: ctx.deadline, gone: ctx.cancel.clone() };
                self.sandboxes.start_vm_for(&request.id, &caller).await?;
                self.sandboxes.shims().started(ctx.connection.id, &request.id);
                Ok(encode(&hypervisor::StartVmResponse {}))
            }
            hypervisor::STOP_VM => {
                let request: hypervisor::StopVmRequest = decode(payload)?;
                self.sandboxes.shims().forget(&request.id);
                self.sandboxes.stop_vm(&request.id).await;
                Ok(encode(&hypervisor::StopVmResponse {}))
            }
            hypervisor::VERSION => {
                let _: hypervisor::VersionRequest = decode(payload)?;
                Ok(encode(&hypervisor::VersionResponse { version: VERSION.into() }))
            }
            _ => Err(Status::unknown_method(method)),
        }
    }

    async fn pod_vm_info(&self, ctx: &CallContext, method: &str, payload: Bytes) -> Result<Bytes, Status> {
        match method {
            podvminfo::GET_INFO => {
                let request: podvminfo::GetInfoRequest = decode(payload)?;
                let found = self
                    .sandboxes
                    .instance_of(&request.pod_namespace, &request.pod_name, request.wait, &ctx.cancel)
                    .await;
                Ok(encode(&podvminfo::GetInfoResponse { vm_id: found? }))
            }
            _ => Err(Status::unknown_method(method)),
        }
    }
}

#[async_trait]
impl Service for NodeService {
    async fn call(
        &self,
        ctx: CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status> {
        match service {
            hypervisor::SERVICE => {
                let call = Box::pin(self.hypervisor(&ctx, method, payload));
                trace::within(&ctx.metadata, call).await
            }
            podvminfo::SERVICE => self.pod_vm_info(&ctx, method, payload).await,
            NODE_SERVICE if method == NODE_LIST => {
                let text = serde_json::to_vec(&self.sandboxes.list());
                text.map(Bytes::from).map_err(|e| Status::internal(format!("write the list: {e}")))
            }
            NODE_SERVICE if method == NODE_JOURNAL => {
                let records = self.sandboxes.journal().await;
                let records = records.map_err(|e| Status::internal(format!("read the journal: {e:#}")))?;
                let text = serde_json::to_vec(&records);
                text.map(Bytes::from).map_err(|e| Status::internal(format!("write the journal: {e}")))
            }
            NODE_SERVICE if method == NODE_DIAGNOSE => {
                let wanted = std::str::from_utf8(&payload)
                    .map_err(|_| Status::invalid_argument("the id of a sandbox is text"))?;
                let text = serde_json::to_vec(&self.sandboxes.diagnosis(wanted).await);
                text.map(Bytes::from).map_err(|e| Status::internal(format!("write the diagnosis: {e}")))
            }
            NODE_SERVICE => Err(Status::unknown_method(method)),
            _ => Err(Status::unknown_service(service)),
        }
    }

    fn disconnected(&self, connection: &Connection) {
        self.sandboxes.shims().ended(connection.id);
    }
}

/// The process id of the shim: told by the gateway that carries its call, or seen by the kernel.
fn shim_pid(ctx: &CallContext) -> Option<i32> {
    match ctx.metadata.iter().find(|pair| pair.key == SHIM_PID) {
        Some(told) => told.value.parse().ok(),
        None => ctx.connection.peer.and_then(|peer| peer.pid),
    }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

//! What changes between node and agent. Everything that is not named here passes as bytes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use peerpod_proto::messages::agent::{self, CreateContainerRequest, method};
use peerpod_proto::messages::oci::{Linux, LinuxNamespace, Mount};
use peerpod_proto::messages::peer;
use peerpod_proto::relay::{InterceptContext, Interceptor, Rewrite};
use peerpod_proto::server::{decode, encode};
use peerpod_proto::status::{Code, Status};
use peerpod_proto::wire::{Editor, WireError};
use prost::Message;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::binds;
use crate::paths::Paths;
use crate::volumes::{self, Volume, Volumes};

/// Annotation with the sources that something else in the VM mounts.
const TARGET_PATHS: &str = "io.confidentialcontainers.org.peerpodvolumes.target_path";

/// How long such a source may take to be mounted.
const MOUNTED_WITHIN: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

// Fields of the wire: CreateContainerRequest.OCI, and in it Linux and Mounts.
const OCI: u32 = 6;
const OCI_MOUNTS: u32 = 5;
const OCI_LINUX: u32 = 8;
const LINUX_NAMESPACES: u32 = 6;
const MOUNT_SOURCE: u32 = 2;
const MOUNT_TYPE: u32 = 3;
const CREATE_SANDBOX_DNS: u32 = 2;

/// The forwarder's changes.
pub(crate) struct Guest {
    /// Path of the pod's network namespace as the agent is told it.
    pub(crate) netns: String,
    pub(crate) root: Paths,
    pub(crate) bind_source_dirs: Vec<PathBuf>,
    pub(crate) volumes: Arc<Volumes>,
}

#[async_trait]
impl Interceptor for Guest {
    fn wants(&self, service: &str, name: &str) -> bool {
        match service {
            agent::SERVICE => {
                [method::CREATE_CONTAINER, method::CREATE_SANDBOX, method::DESTROY_SANDBOX].contains(&name)
            }
            peer::SERVICE => true,
            _ => false,
        }
    }

    async fn rewrite(
        &self,
        ctx: InterceptContext,
        service: &str,
        name: &str,
        payload: Bytes,
    ) -> Result<Rewrite, Status> {
        self.handle(&ctx.cancel, service, name, payload).await
    }
}

impl Guest {
    /// Changes, answers or passes one request; `cancel` fires when its caller is gone.
    async fn handle(
        &self,
        cancel: &CancellationToken,
        service: &str,
        name: &str,
        payload: Bytes,
    ) -> Result<Rewrite, Status> {
        match (service, name) {
            (agent::SERVICE, method::CREATE_CONTAINER) => self.create_container(cancel, payload).await,
            (agent::SERVICE, method::CREATE_SANDBOX) => {
                // The names of the node's servers would replace those of the VM in its own resolv.conf.
                let mut editor = Editor::new(&payload);
                editor.remove(&[], CREATE_SANDBOX_DNS).map_err(Status::bad_payload)?;
                Ok(Rewrite::Forward(editor.finish().map_err(Status::bad_payload)?.into()))
            }
            (agent::SERVICE, method::DESTROY_SANDBOX) => {
                self.volumes.unmount_all().await;
                Ok(Rewrite::Forward(payload))
            }
            (peer::SERVICE, peer::LEVEL) => level(payload),
            // The agent does not know this service, so its methods end here.
            (peer::SERVICE, name) => Err(Status::unknown_method(name)),
            _ => Ok(Rewrite::Forward(payload)),
        }
    }

    async fn create_container(&self, cancel: &CancellationToken, payload: Bytes) -> Result<Rewrite, Status> {
        let request: CreateContainerRequest = decode(payload.clone())?;
        let oci = request
            .oci
            .ok_or_else(|| Status::invalid_argument("CreateContainer has no OCI specification"))?;
        let linux = oci.linux.ok_or_else(|| {
            Status::invalid_argument("the OCI specification of CreateContainer has no linux section")
        })?;
        let mut mounts = oci.mounts;
        let mut editor = Editor::new(&payload);
        self.join_network(&linux, &mut editor).map_err(Status::bad_payload)?;
        if let Some(text) = oci.annotations.get(volumes::ANNOTATION).filter(|text| !text.is_empty()) {
            let work = self.mount_volumes(text, &request.container_id, &mut mounts, &mut editor);
            cancellable(cancel, work).await?;
        }
        binds::make_sources(&self.root, &self.bind_source_dirs, &mounts);
        if let Some(text) = oci.annotations.get(TARGET_PATHS) {
            cancellable(cancel, self.wait_for_mounts(text, &mounts)).await?;
        }
        info!(container = request.container_id, "container is given the pod's network");
        Ok(Rewrite::Forward(editor.finish().map_err(Status::bad_payload)?.into()))
    }

    /// A relay that repeats a request finds the namespace there already.
    fn join_network(&self, linux: &Linux, editor: &mut Editor<'_>) -> Result<(), WireError> {
        let namespace = LinuxNamespace { kind: "network".to_owned(), path: self.netns.clone() };
        if linux.namespaces.contains(&namespace) {
            return Ok(());
        }
        editor.append(&[OCI, OCI_LINUX], LINUX_NAMESPACES, &namespace.encode_to_vec())
    }

    async fn mount_volumes(
        &self,
        annotation: &str,
        container: &str,
        mounts: &mut [Mount],
        editor: &mut Editor<'_>,
    ) -> Result<(), Status> {
        let volumes =
            Volume::parse_all(annotation).map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        for volume in volumes {
            // A caller that leaves must not leave a half-done mount behind, so the work has a task of its own.
            let work = tokio::spawn({
                let (volumes, volume, container) =
                    (self.volumes.clone(), volume.clone(), container.to_owned());
                async move { volumes.mount(&volume, &container).await }
            });
            let folder = work.await.map_err(|error| Status::internal(error.to_string()))?;
            let folder = folder.map_err(|error| Status::internal(format!("{error:#}")))?;
            let Some(index) = mounts.iter().position(|mount| mount.destination == volume.mount_point) else {
                tracing::warn!(
                    volume = volume.name,
                    mount_point = volume.mount_point,
                    "no mount wants this volume"
                );
                continue;
            };
            let source = folder.to_string_lossy().into_owned();
            let path = [OCI, OCI_MOUNTS];
            editor
                .set_in_element(&path, index, MOUNT_SOURCE, source.as_bytes())
                .map_err(Status::bad_payload)?;
            editor.set_in_element(&path, index, MOUNT_TYPE, b"bind").map_err(Status::bad_payload)?;
            mounts[index].source = source;
            mounts[index].kind = "bind".to_owned();
        }
        Ok(())
    }

    async fn wait_for_mounts(&self, annotation: &str, mounts: &[Mount]) -> Result<(), Status> {
        let targets: HashSet<&str> =
            annotation.split(',').map(str::trim).filter(|target| !target.is_empty()).collect();
        let end = Instant::now() + MOUNTED_WITHIN;
        for mount in mounts.iter().filter(|mount| targets.contains(mount.source.as_str())) {
            while !self.is_mount_point(Path::new(&mount.source))? {
                if Instant::now() >= end {
                    let text =
                        format!("{} was not mounted within {} s", mount.source, MOUNTED_WITHIN.as_secs());
                    return Err(Status::new(Code::DeadlineExceeded, text));
                }
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    fn is_mount_point(&self, path: &Path) -> Result<bool, Status> {
        let table = self.root.at("/proc/thread-self/mounts");
        let text = std::fs::read_to_string(&table)
            .map_err(|error| Status::internal(format!("read {}: {error}", table.display())))?;
        Ok(volumes::mount_source(&text, path).is_some())
    }
}

/// Ends the work when the caller is gone.
async fn cancellable<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(Status::new(Code::Canceled, "the caller is gone")),
    }
}

fn level(payload: Bytes) -> Result<Rewrite, Status> {
    let request: peer::LevelRequest = decode(payload)?;
    info!(
        peer = request.name,
        version = request.version,
        max_level = request.max_level,
        "peer introduced itself"
    );
    Ok(Rewrite::Reply(encode(&peer::LevelResponse {
        name: "agent-protocol-forwarder".to_owned(),
        version: crate::VERSION.to_owned(),
        min_level: peer::MIN_LEVEL,
        max_level: peer::MAX_LEVEL,
        ..peer::LevelResponse::default()
    })))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

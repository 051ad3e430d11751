//! What the node changes in a CreateContainer: annotations that tell the guest of volumes and GPUs.
//!
//! The message is read with the structs that are known and changed on the level of bytes, so that all else of
//! it reaches the agent as the shim wrote it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use peerpod_proto::Status;
use peerpod_proto::messages::agent::{self, CreateContainerRequest, method};
use peerpod_proto::messages::oci::{Mount, Spec};
use peerpod_proto::relay::{InterceptContext, Interceptor, Rewrite};
use peerpod_proto::server::decode;
use peerpod_proto::wire::Editor;
use serde::Serialize;
use tracing::debug;

use crate::spec::{ProxySpec, VolumeEntry};

/// Part of the path of every volume of a CSI driver.
const CSI: &str = "/volumes/kubernetes.io~csi/";

/// Names the mounts that a volume driver in the guest serves.
const TARGET_PATH: &str = "io.confidentialcontainers.org.peerpodvolumes.target_path";

/// Describes the cloud volumes of a container.
const CLOUD_VOLUMES: &str = "io.confidentialcontainers.org.cloud_volumes";

/// The number of GPUs the pod asks for.
const DEFAULT_GPUS: &str = "io.katacontainers.config.hypervisor.default_gpus";

/// Gives the container all GPUs of its machine.
const CDI: (&str, &str) = ("cdi.k8s.io/peer-pods", "nvidia.com/gpu=all");

/// Field numbers: the specification in a CreateContainer, and the annotations in it.
const OCI: u32 = 6;
const ANNOTATIONS: u32 = 7;

/// Changes the CreateContainers of one sandbox; every other call passes as it is.
pub(crate) struct NodeRewrite {
    sandbox_id: String,
    volumes: Vec<VolumeEntry>,
    direct_volumes: PathBuf,
}

impl NodeRewrite {
    pub(crate) fn new(spec: &ProxySpec) -> Self {
        let mut volumes = spec.volumes.clone();
        volumes.sort_by_key(|volume| volume.index);
        Self { sandbox_id: spec.sandbox_id.clone(), volumes, direct_volumes: spec.direct_volumes.clone() }
    }

    async fn create_container(&self, payload: Bytes) -> Result<Bytes, Status> {
        let request: CreateContainerRequest = decode(payload.clone())?;
        let container = &request.container_id;
        let spec = request.oci.as_ref().ok_or_else(|| {
            Status::invalid_argument(format!("CreateContainer of {container:?} carries no OCI specification"))
        })?;
        let changes = self.annotations(spec).await?;
        if changes.is_empty() {
            return Ok(payload);
        }
        let mut editor = Editor::new(&payload);
        for (key, value) in &changes {
            editor.set_map_entry(&[OCI], ANNOTATIONS, key, value).map_err(Status::bad_payload)?;
        }
        let keys: Vec<_> = changes.iter().map(|(key, _)| *key).collect();
        debug!(sandbox_id = %self.sandbox_id, %container, ?keys, "annotations are set for the guest");
        Ok(editor.finish().map_err(Status::bad_payload)?.into())
    }

    /// The annotations to set, in the order the existing programs set them.
    async fn annotations(&self, spec: &Spec) -> Result<Vec<(&'static str, String)>, Status> {
        let mut changes = Vec::new();
        let annotation = |key: &str| spec.annotations.get(key).map(String::as_str).unwrap_or_default();
        let direct = self.direct_mounts(&spec.mounts).await;
        if !direct.is_empty() {
            let existing = Some(annotation(TARGET_PATH)).filter(|existing| !existing.is_empty());
            let all: Vec<_> = existing.into_iter().chain(direct).collect();
            changes.push((TARGET_PATH, all.join(",")));
        }
        // Zero is sent for every pod that wants none.
        if annotation(DEFAULT_GPUS).trim().parse::<u64>().is_ok_and(|count| count > 0) {
            changes.push((CDI.0, CDI.1.to_owned()));
        }
        changes.extend(self.cloud_volumes(&spec.mounts)?.map(|json| (CLOUD_VOLUMES, json)));
        Ok(changes)
    }

    /// The sources of mounts that a CSI driver has described as directly assigned.
    async fn direct_mounts<'a>(&self, mounts: &'a [Mount]) -> Vec<&'a str> {
        let mut found = Vec::new();
        for mount in mounts {
            if !clean(&mount.source).contains(CSI) {
                continue;
            }
            let described = self.direct_volumes.join(URL_SAFE.encode(&mount.source));
            if tokio::fs::metadata(described).await.is_ok_and(|metadata| metadata.is_dir()) {
                found.push(mount.source.as_str());
            }
        }
        found
    }

    /// The description of the cloud volumes that this container mounts.
    fn cloud_volumes(&self, mounts: &[Mount]) -> Result<Option<String>, Status> {
        let mut described = BTreeMap::new();
        for volume in &self.volumes {
            if let Some(mount) = mounts.iter().find(|mount| mount.source == volume.source) {
                let description = CloudVolume {
                    mount_point: &mount.destination,
                    fs_type: &volume.fs_type,
                    lun: volume.index.to_string(),
                    disk_id: &volume.disk_id,
                    encrypt_type: &volume.encrypt_type,
                    key_id: &volume.key_id,
                };
                described.insert(format!("vol-{}", volume.index), description);
            }
        }
        if described.is_empty() {
            return Ok(None);
        }
        serde_json::to_string(&described).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[async_trait::async_trait]
impl Interceptor for NodeRewrite {
    fn wants(&self, service: &str, called: &str) -> bool {
        service == agent::SERVICE && called == method::CREATE_CONTAINER
    }

    async fn rewrite(
        &self,
        _ctx: InterceptContext,
        _service: &str,
        _method: &str,
        payload: Bytes,
    ) -> Result<Rewrite, Status> {
        self.create_container(payload).await.map(Rewrite::Forward)
    }
}

/// One entry of the annotation, with the keys and the order the guest knows.
#[derive(Serialize)]
struct CloudVolume<'a> {
    mount_point: &'a str,
    fs_type: &'a str,
    lun: String,
    disk_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    encrypt_type: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    key_id: &'a str,
}

/// A path without doubled slashes, `.` and `..`, without a look at the disk.
fn clean(path: &str) -> String {
    let mut cleaned = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                cleaned.pop();
            }
            component => cleaned.push(component),
        }
    }
    cleaned.to_string_lossy().into_owned()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

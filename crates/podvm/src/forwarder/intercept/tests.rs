//! Changes of requests, byte for byte.

use std::collections::HashMap;
use std::sync::Mutex;

use anyhow::Result as AnyResult;
use peerpod_proto::messages::oci::Spec;

use super::*;
use crate::volumes::{MountLayer, Patience, Signature};

/// A machine on which every mount succeeds.
#[derive(Default)]
struct Easy {
    calls: Mutex<Vec<String>>,
}

#[async_trait]
impl MountLayer for Easy {
    async fn find_device(&self, volume: &Volume) -> AnyResult<Option<PathBuf>> {
        Ok(Some(format!("/dev/disk{}", volume.lun).into()))
    }

    async fn mounted_from(&self, _: &Path) -> AnyResult<Option<PathBuf>> {
        Ok(None)
    }

    async fn mount(&self, device: &Path, folder: &Path, fs_type: &str) -> AnyResult<()> {
        self.calls.lock().unwrap().push(format!("mount {} {} {fs_type}", device.display(), folder.display()));
        Ok(())
    }

    async fn unmount(&self, folder: &Path) -> AnyResult<()> {
        self.calls.lock().unwrap().push(format!("unmount {}", folder.display()));
        Ok(())
    }

    async fn signature(&self, _: &Path) -> AnyResult<Signature> {
        Ok(Signature::Empty)
    }

    async fn make_file_system(&self, _: &Path, _: &str) -> AnyResult<()> {
        Ok(())
    }

    async fn head(&self, _: &Path) -> AnyResult<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn mapper(&self, _: &str) -> Option<PathBuf> {
        None
    }

    async fn secure_mount(&self, _: &Path, _: &Path, _: &Volume, _: bool) -> AnyResult<()> {
        Ok(())
    }

    async fn close_mapper(&self, _: &str) -> AnyResult<()> {
        Ok(())
    }

    async fn set_group(&self, _: &Path, _: u32) -> AnyResult<()> {
        Ok(())
    }
}

pub(super) struct Fixture {
    root: tempfile::TempDir,
    layer: Arc<Easy>,
    pub(super) guest: Guest,
}

pub(super) fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let layer = Arc::new(Easy::default());
    let volumes = Arc::new(Volumes::new(layer.clone(), "/run/cloud-volumes", Patience::default()));
    let guest = Guest {
        netns: "/run/netns/podns".to_owned(),
        root: Paths::new(root.path()),
        bind_source_dirs: vec!["/run/kata-containers".into()],
        volumes,
    };
    Fixture { root, layer, guest }
}

impl Fixture {
    async fn rewrite(&self, name: &str, payload: &[u8]) -> Result<Rewrite, Status> {
        let payload = Bytes::copy_from_slice(payload);
        self.guest.handle(&CancellationToken::new(), agent::SERVICE, name, payload).await
    }

    async fn forwarded(&self, name: &str, payload: &[u8]) -> Bytes {
        match self.rewrite(name, payload).await.unwrap() {
            Rewrite::Forward(payload) => payload,
            Rewrite::Reply(_) => panic!("{name} was answered"),
        }
    }
}

fn create(spec: Spec) -> Vec<u8> {
    let request = CreateContainerRequest {
        container_id: "c".to_owned(),
        oci: Some(spec),
        ..CreateContainerRequest::default()
    };
    request.encode_to_vec()
}

fn spec() -> Spec {
    Spec { linux: Some(Linux::default()), ..Spec::default() }
}

/// Adds a field that nobody knows yet to a message and to the messages at a path.
fn with_unknown(message: &[u8], path: &[u32]) -> Vec<u8> {
    let mut editor = Editor::new(message);
    for depth in 0..=path.len() {
        editor.append(&path[..depth], 4000 + depth as u32, b"from the future").unwrap();
    }
    editor.finish().unwrap()
}

fn network() -> LinuxNamespace {
    LinuxNamespace { kind: "network".to_owned(), path: "/run/netns/podns".to_owned() }
}

#[tokio::test]
async fn a_container_joins_the_pods_network_and_nothing_else_changes() {
    let fixture = fixture();
    let original = with_unknown(&create(spec()), &[6, 8]);
    let changed = fixture.forwarded(method::CREATE_CONTAINER, &original).await;
    let mut editor = Editor::new(&original);
    editor.append(&[6, 8], 6, &network().encode_to_vec()).unwrap();
    assert_eq!(changed, editor.finish().unwrap());
    let request = CreateContainerRequest::decode(changed.clone()).unwrap();
    assert_eq!(request.oci.unwrap().linux.unwrap().namespaces, [network()]);
    let again = fixture.forwarded(method::CREATE_CONTAINER, &changed).await;
    assert_eq!(again, changed, "a repeated request gets the namespace once");
}

#[tokio::test]
async fn other_network_namespaces_do_not_keep_the_pods_one_out() {
    let fixture = fixture();
    let mut spec = spec();
    let other = LinuxNamespace { kind: "network".to_owned(), path: String::new() };
    spec.linux.as_mut().unwrap().namespaces = vec![other.clone()];
    let changed = fixture.forwarded(method::CREATE_CONTAINER, &create(spec)).await;
    let request = CreateContainerRequest::decode(changed).unwrap();
    assert_eq!(request.oci.unwrap().linux.unwrap().namespaces, [other, network()]);
}

#[tokio::test]
async fn requests_without_their_parts_are_errors_and_never_panics() {
    let fixture = fixture();
    let no_oci = CreateContainerRequest::default().encode_to_vec();
    for (payload, word) in [(no_oci, "OCI"), (create(Spec::default()), "linux"), (vec![0xff; 9], "")] {
        let status = fixture.rewrite(method::CREATE_CONTAINER, &payload).await.unwrap_err();
        assert!(status.message.contains(word), "{status:?}");
    }
    assert!(fixture.rewrite(method::CREATE_SANDBOX, &[0xff; 9]).await.is_err());
}

#[tokio::test]
async fn name_servers_of_the_node_are_removed_and_the_rest_stays() {
    let fixture = fixture();
    let request = agent::CreateSandboxRequest {
        hostname: "pod".to_owned(),
        dns: vec!["nameserver 10.96.0.10".to_owned(), "search x".to_owned()],
        sandbox_id: "s".to_owned(),
        ..Default::default()
    };
    let without = agent::CreateSandboxRequest { dns: Vec::new(), ..request.clone() };
    let changed =
        fixture.forwarded(method::CREATE_SANDBOX, &with_unknown(&request.encode_to_vec(), &[])).await;
    assert_eq!(changed, with_unknown(&without.encode_to_vec(), &[]));
}

#[tokio::test]
async fn a_cloud_volume_replaces_source_and_type_of_its_mount() {
    let fixture = fixture();
    let mut spec = spec();
    let mount = |destination: &str| Mount {
        destination: destination.to_owned(),
        source: format!("/node{destination}"),
        kind: "none".to_owned(),
        options: vec!["rbind".to_owned()],
    };
    spec.mounts = vec![mount("/other"), mount("/data"), mount("/data")];
    let annotation =
        r#"{"vol-0":{"mount_point":"/data","lun":"0"},"vol-1":{"mount_point":"/unwanted","lun":"1"}}"#;
    spec.annotations = HashMap::from([(volumes::ANNOTATION.to_owned(), annotation.to_owned())]);
    let original = with_unknown(&create(spec), &[6]);
    let changed = fixture.forwarded(method::CREATE_CONTAINER, &original).await;
    let mounts = CreateContainerRequest::decode(changed).unwrap().oci.unwrap().mounts;
    assert_eq!((mounts[0].source.as_str(), mounts[0].kind.as_str()), ("/node/other", "none"));
    assert_eq!((mounts[1].source.as_str(), mounts[1].kind.as_str()), ("/run/cloud-volumes/vol-0", "bind"));
    assert_eq!(mounts[1].options, ["rbind"]);
    assert_eq!(mounts[2].source, "/node/data", "only the first mount at the place is the volume's");
    fixture.rewrite(method::DESTROY_SANDBOX, &[]).await.unwrap();
    let calls = fixture.layer.calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 4);
    assert_eq!(calls[2..], ["unmount /run/cloud-volumes/vol-1", "unmount /run/cloud-volumes/vol-0"]);
}

#[tokio::test]
async fn a_bad_volume_annotation_fails_the_request() {
    let fixture = fixture();
    let mut spec = spec();
    spec.annotations = HashMap::from([(volumes::ANNOTATION.to_owned(), "{".to_owned())]);
    let status = fixture.rewrite(method::CREATE_CONTAINER, &create(spec)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn sources_that_are_mounted_by_others_are_waited_for_until_the_caller_leaves() {
    let fixture = fixture();
    let proc = fixture.root.path().join("proc/thread-self");
    std::fs::create_dir_all(&proc).unwrap();
    std::fs::write(proc.join("mounts"), "").unwrap();
    let mut spec = spec();
    spec.mounts = vec![Mount {
        destination: "/data".to_owned(),
        source: "/run/kata-containers/csi".to_owned(),
        kind: "bind".to_owned(),
        options: Vec::new(),
    }];
    spec.annotations = HashMap::from([(TARGET_PATHS.to_owned(), ",/run/kata-containers/csi, ".to_owned())]);
    let payload = create(spec);
    let left = CancellationToken::new();
    left.cancel();
    let status = fixture
        .guest
        .handle(&left, agent::SERVICE, method::CREATE_CONTAINER, payload.clone().into())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Canceled);
    assert!(fixture.root.path().join("run/kata-containers/csi").is_dir(), "the source was missing");
    let waiting = fixture.rewrite(method::CREATE_CONTAINER, &payload);
    let mounting = async {
        tokio::task::yield_now().await;
        std::fs::write(proc.join("mounts"), "csi /run/kata-containers/csi fuse rw 0 0\n").unwrap();
    };
    let (result, ()) = tokio::join!(waiting, mounting);
    assert!(result.is_ok());
}

#[tokio::test]
async fn levels_are_answered_here_and_other_services_are_left_alone() {
    let fixture = fixture();
    assert!(fixture.guest.wants(peer::SERVICE, peer::LEVEL));
    assert!(!fixture.guest.wants(agent::SERVICE, method::START_CONTAINER));
    assert!(!fixture.guest.wants("grpc.Health", "Check"));
    let request = peer::LevelRequest { name: "gateway".to_owned(), ..Default::default() }.encode_to_vec();
    let reply = fixture
        .guest
        .handle(&CancellationToken::new(), peer::SERVICE, peer::LEVEL, request.into())
        .await
        .unwrap();
    let Rewrite::Reply(reply) = reply else { panic!("not answered") };
    let reply = peer::LevelResponse::decode(reply).unwrap();
    assert_eq!((reply.name.as_str(), reply.max_level), ("agent-protocol-forwarder", peer::MAX_LEVEL));
    let unknown = fixture
        .guest
        .handle(&CancellationToken::new(), peer::SERVICE, "Other", Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
}

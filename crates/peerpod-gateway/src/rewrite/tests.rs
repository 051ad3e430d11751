use std::collections::HashMap;

use peerpod_proto::Code;
use peerpod_proto::envelope::Request;
use peerpod_proto::frame::{FrameReader, Inbound};
use prost::Message;
use tempfile::TempDir;

use super::*;

/// The source of a volume of a CSI driver.
fn csi(uid: &str, volume: &str) -> String {
    format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount")
}

/// A field that has a length.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(u64::from(number) << 3 | 2, &mut out);
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

fn entry(key: &str, value: &str) -> Vec<u8> {
    [field(1, key.as_bytes()), field(2, value.as_bytes())].concat()
}

fn mount(destination: &str, source: &str) -> Vec<u8> {
    // A field from the future on this level, too.
    [field(1, destination.as_bytes()), field(2, source.as_bytes()), field(3, b"bind"), field(99, b"mount")]
        .concat()
}

/// A CreateContainer with fields from the future on every level. Returns what comes before the annotations that
/// are added, and what comes after them.
struct Built {
    head: Vec<u8>,
    oci: Vec<u8>,
    tail: Vec<u8>,
}

fn built(mounts: &[(&str, &str)], annotations: &[(&str, &str)]) -> Built {
    let linux =
        [field(6, &[field(1, b"ipc"), field(98, b"namespace")].concat()), field(97, b"linux")].concat();
    let mut oci = field(1, b"1.0.2-dev");
    for (destination, source) in mounts {
        oci.extend(field(5, &mount(destination, source)));
    }
    for (key, value) in annotations {
        oci.extend(field(7, &[entry(key, value), field(96, b"entry")].concat()));
    }
    oci.extend(field(8, &linux));
    oci.extend(field(95, b"specification"));
    let head = [field(1, b"c1"), field(94, b"request")].concat();
    let storage = [field(1, b"image_guest_pull"), field(93, b"storage")].concat();
    Built { head, oci, tail: [field(5, &storage), vec![0x38, 1]].concat() }
}

impl Built {
    fn bytes(&self) -> Bytes {
        [&self.head[..], &field(6, &self.oci), &self.tail].concat().into()
    }

    /// The same with annotations added behind all else of the specification.
    fn with(&self, added: &[(&str, &str)]) -> Bytes {
        let mut oci = self.oci.clone();
        for (key, value) in added {
            oci.extend(field(7, &entry(key, value)));
        }
        [&self.head[..], &field(6, &oci), &self.tail].concat().into()
    }
}

/// The directory in which CSI drivers describe volumes.
struct Described(TempDir);

impl Described {
    fn new(sources: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for source in sources {
            std::fs::create_dir(directory.path().join(URL_SAFE.encode(source))).unwrap();
        }
        Self(directory)
    }

    fn rewrite(&self, volumes: Vec<VolumeEntry>) -> NodeRewrite {
        let spec = ProxySpec::new("s1", "/run/x", ["h:1".into()])
            .with_volumes(volumes)
            .with_direct_volumes(self.0.path());
        NodeRewrite::new(&spec)
    }
}

async fn rewritten(rewrite: &NodeRewrite, payload: Bytes) -> Bytes {
    rewrite.create_container(payload).await.expect("the request is acceptable")
}

#[tokio::test]
async fn without_anything_to_add_every_byte_stays() {
    let container = built(&[("/data", &csi("u1", "pvc-1"))], &[(DEFAULT_GPUS, "0")]);
    let rewrite = Described::new(&[]).rewrite(Vec::new());
    assert_eq!(rewritten(&rewrite, container.bytes()).await, container.bytes());
}

#[tokio::test]
async fn described_csi_volumes_are_named_without_a_leading_comma() {
    let (one, two, other) = (csi("u1", "pvc-1"), csi("u1", "pvc-2"), csi("u1", "pvc-3"));
    let container =
        built(&[("/proc", "proc"), ("/a", &one), ("/b", &two), ("/c", &other), ("/d", "/plain")], &[]);
    let described = Described::new(&[&one, &two, "/plain"]);
    let expected = container.with(&[(TARGET_PATH, &format!("{one},{two}"))]);
    assert_eq!(rewritten(&described.rewrite(Vec::new()), container.bytes()).await, expected);
}

#[tokio::test]
async fn existing_target_paths_are_kept() {
    let source = csi("u1", "pvc-1");
    let container = built(&[("/a", &source)], &[(TARGET_PATH, "/given")]);
    let described = Described::new(&[&source]);
    let got = rewritten(&described.rewrite(Vec::new()), container.bytes()).await;
    let same_but_longer = built(&[("/a", &source)], &[(TARGET_PATH, &format!("/given,{source}"))]);
    assert_eq!(got, same_but_longer.bytes());
}

#[tokio::test]
async fn a_source_is_cleaned_for_the_check_and_looked_up_as_it_is() {
    let odd = "/var/lib//kubelet/./volumes/x/../kubernetes.io~csi/pvc/mount";
    let container = built(&[("/a", odd)], &[]);
    let got = rewritten(&Described::new(&[odd]).rewrite(Vec::new()), container.bytes()).await;
    assert_eq!(got, container.with(&[(TARGET_PATH, odd)]));
    let outside = "/volumes/kubernetes.io~csi/../mount";
    let container = built(&[("/a", outside)], &[]);
    let got = rewritten(&Described::new(&[outside]).rewrite(Vec::new()), container.bytes()).await;
    assert_eq!(got, container.bytes());
}

#[tokio::test]
async fn gpus_are_given_only_for_a_count_above_zero() {
    let rewrite = Described::new(&[]).rewrite(Vec::new());
    for (count, given) in
        [("1", true), (" 8 ", true), ("0", false), ("", false), ("-1", false), ("all", false)]
    {
        let container = built(&[], &[("a", "b"), (DEFAULT_GPUS, count)]);
        let expected = if given { container.with(&[CDI]) } else { container.bytes() };
        assert_eq!(rewritten(&rewrite, container.bytes()).await, expected, "{count:?}");
    }
}

#[tokio::test]
async fn cloud_volumes_are_described_from_the_table() {
    let (one, two) = (csi("u1", "pvc-1"), csi("u1", "pvc-2"));
    // The third volume is attached and not mounted by this container: it keeps its number.
    let table = vec![
        VolumeEntry::new(11, &two, "xfs", "disk-2").with_encryption("luks2", "k/2"),
        VolumeEntry::new(0, &one, "ext4", "disk-1"),
        VolumeEntry::new(1, csi("u1", "pvc-9"), "ext4", "disk-9"),
    ];
    let container = built(&[("/a", &one), ("/b", &two), ("/again", &one)], &[]);
    let json = concat!(
        r#"{"vol-0":{"mount_point":"/a","fs_type":"ext4","lun":"0","disk_id":"disk-1"},"#,
        r#""vol-11":{"mount_point":"/b","fs_type":"xfs","lun":"11","disk_id":"disk-2","encrypt_type":"luks2","key_id":"k/2"}}"#,
    );
    let described = Described::new(&[]);
    let got = rewritten(&described.rewrite(table), container.bytes()).await;
    assert_eq!(got, container.with(&[(CLOUD_VOLUMES, json)]));
    let none = described.rewrite(Vec::new());
    assert_eq!(rewritten(&none, container.bytes()).await, container.bytes());
}

#[tokio::test]
async fn all_changes_come_together_and_nothing_else_moves() {
    let source = csi("u1", "pvc-1");
    let container = built(&[("/a", &source)], &[("x", "y"), (DEFAULT_GPUS, "2")]);
    let described = Described::new(&[&source]);
    let rewrite = described.rewrite(vec![VolumeEntry::new(0, &source, "ext4", "disk")]);
    let json = r#"{"vol-0":{"mount_point":"/a","fs_type":"ext4","lun":"0","disk_id":"disk"}}"#;
    let got = rewritten(&rewrite, container.bytes()).await;
    assert_eq!(got, container.with(&[(TARGET_PATH, &source), CDI, (CLOUD_VOLUMES, json)]));
    let request = CreateContainerRequest::decode(got).unwrap();
    let expected: HashMap<_, _> =
        [("x", "y"), (DEFAULT_GPUS, "2"), (TARGET_PATH, &source), CDI, (CLOUD_VOLUMES, json)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    assert_eq!(request.oci.unwrap().annotations, expected);
}

#[tokio::test]
async fn a_missing_specification_is_an_invalid_argument() {
    let rewrite = Described::new(&[]).rewrite(Vec::new());
    let status = rewrite.create_container(field(1, b"c9").into()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message, "CreateContainer of \"c9\" carries no OCI specification");
    let status = rewrite.create_container(Bytes::from_static(b"\x0a\x7f")).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
}

#[tokio::test]
async fn a_specification_without_a_linux_part_passes() {
    let container: Bytes = [field(1, b"c1"), field(6, &field(1, b"1.0"))].concat().into();
    let rewrite = Described::new(&[]).rewrite(Vec::new());
    assert_eq!(rewritten(&rewrite, container.clone()).await, container);
}

#[tokio::test]
async fn the_recorded_containers_pass_unchanged() {
    let recording =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/kata-4.1.0-runtime-rs/agent.c2s.bin");
    let recorded = std::fs::read(recording).unwrap();
    let mut reader = FrameReader::new(&recorded[..]);
    let rewrite = Described::new(&[]).rewrite(Vec::new());
    let mut seen = 0;
    while let Some(Inbound::Frame(frame)) = reader.read().await.unwrap() {
        let request = Request::decode(frame.payload).unwrap();
        if rewrite.wants(&request.service, &request.method) {
            assert_eq!(rewritten(&rewrite, request.payload.clone()).await, request.payload);
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
}

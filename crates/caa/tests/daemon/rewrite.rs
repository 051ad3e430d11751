//! CreateContainer on its way through the built daemon: what is documented is added, every other byte stays.

use std::{collections::HashMap, fs, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::Bytes;
use peerpod_proto::{
    Client, Code, Status,
    envelope::{Request, Response},
    frame::{Frame, FrameReader, FrameWriter, Inbound},
    messages::{
        agent::{self, CreateContainerRequest, method},
        oci::{Linux, LinuxNamespace, Mount, Spec},
        peer,
    },
    tls::{TlsAcceptor, TlsProfile, server_config},
    wire,
};
use prost::Message as _;
use tokio::{net::UnixStream, sync::mpsc};

use crate::node::{Node, annotations};

const TARGETS: &str = "io.confidentialcontainers.org.peerpodvolumes.target_path";
const VOLUMES: &str = "io.confidentialcontainers.org.cloud_volumes";
const GPUS: &str = "io.katacontainers.config.hypervisor.default_gpus";
const CDI: &str = "cdi.k8s.io/peer-pods";

/// Field numbers in CreateContainerRequest and in the OCI specification.
const OCI: u32 = 6;
const MOUNTS: u32 = 5;
const ANNOTATIONS: u32 = 7;
const LINUX: u32 = 8;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

/// A length-delimited field.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(u64::from(number) << 3 | 2, &mut out);
    varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

/// Fields that no version of the message has, of each wire type.
fn unknown(on: bool, seed: u8) -> Vec<u8> {
    if !on {
        return Vec::new();
    }
    let mut out = field(900 + u32::from(seed), &[seed; 5]);
    varint(901 << 3, &mut out);
    varint(u64::MAX, &mut out);
    varint(902 << 3 | 1, &mut out);
    out.extend([seed; 8]);
    varint(903 << 3 | 5, &mut out);
    out.extend([seed; 4]);
    out
}

/// A request with everything that the gateway looks at, and unknown fields on every level.
fn request(mounts: &[String], gpus: &str, strange: bool) -> Vec<u8> {
    let id = "c1".to_owned();
    let head = CreateContainerRequest {
        container_id: id.clone(),
        exec_id: id,
        sandbox_pidns: true,
        ..Default::default()
    };
    let linux = Linux {
        namespaces: vec![LinuxNamespace { kind: "ipc".into(), path: String::new() }],
        ..Default::default()
    };
    let keep = HashMap::from([("a.b/c".to_owned(), "text with, commas and ü".to_owned())]);
    let mut oci =
        Spec { version: "1.1.0".into(), hostname: "h".into(), annotations: keep, ..Default::default() }
            .encode_to_vec();
    if !gpus.is_empty() {
        let entry = [field(1, GPUS.as_bytes()), field(2, gpus.as_bytes())].concat();
        oci.extend(field(ANNOTATIONS, &entry));
    }
    oci.extend(unknown(strange, 1));
    for (n, source) in mounts.iter().enumerate() {
        let options = vec!["rw".into()];
        let mount =
            Mount { destination: format!("/data/{n}"), source: source.clone(), kind: "bind".into(), options };
        oci.extend(field(MOUNTS, &[mount.encode_to_vec(), unknown(strange, 2)].concat()));
    }
    oci.extend(field(LINUX, &[linux.encode_to_vec(), unknown(strange, 3)].concat()));
    [head.encode_to_vec(), unknown(strange, 4), field(OCI, &oci), unknown(strange, 5)].concat()
}

/// Cuts a request into the bytes of its fields, with the specification taken apart.
fn parts(message: &[u8]) -> Vec<(Vec<u32>, Vec<u8>)> {
    let mut out = Vec::new();
    for found in wire::fields(message) {
        let found = found.unwrap();
        if found.number == OCI {
            for inner in wire::fields(&message[found.value.clone()]) {
                let inner = inner.unwrap();
                out.push((
                    vec![OCI, inner.number],
                    message[found.value.clone()][inner.span.clone()].to_vec(),
                ));
            }
        } else {
            out.push((vec![found.number], message[found.span.clone()].to_vec()));
        }
    }
    out
}

fn describe(dir: &Path, source: &str, info: &str) {
    let folder = dir.join("direct-volumes").join(URL_SAFE.encode(source));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("mountInfo.json"), info).unwrap();
}

/// The forwarder's side: takes the identity that the guest would get and hands out what arrives.
async fn guest(node: &Node, apf: &Path) -> mpsc::UnboundedReceiver<Request> {
    let apf: serde_json::Value = serde_json::from_slice(&fs::read(apf).unwrap()).unwrap();
    let pem = |key: &str| apf[key].as_str().unwrap().as_bytes().to_vec();
    let config = server_config(
        &pem("tls-server-cert"),
        &pem("tls-server-key"),
        &pem("tls-client-ca"),
        &TlsProfile::default(),
    )
    .unwrap();
    let listener = node
        .netns
        .run(|| {
            let listener = std::net::TcpListener::bind("0.0.0.0:15150")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = TlsAcceptor::from(config).accept(stream).await.unwrap();
        let (read, write) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        while let Ok(Some(Inbound::Frame(frame))) = reader.read().await {
            let request = Request::decode(frame.payload).unwrap();
            // As the existing forwarder answers the question for levels.
            let ours = request.service == peer::SERVICE;
            let status = ours.then(|| Status::new(Code::Unimplemented, format!("service {}", peer::SERVICE)));
            let response = Response { status, payload: Bytes::new() };
            writer.write(&[Frame::response(frame.stream_id, response.encode_to_vec().into())]).await.unwrap();
            if !ours {
                let _ = sender.send(request);
            }
        }
    });
    receiver
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_containers_arrive_unchanged_but_for_the_documented_annotations() {
    let node = Node::start_with("scripted", 1, &["-scripted-address", "192.0.2.2", "-scripted-volumes=2"])
        .await
        .unwrap();
    let mount =
        |uid: &str, pvc: &str| format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{pvc}/mount");
    let (mine, sealed, missing) = (mount("u-1", "pvc-1"), mount("u-1", "pvc-2"), mount("u-1", "pvc-3"));
    describe(
        node.dir.path(),
        &mine,
        r#"{"device":"/dev/x","fstype":"xfs","metadata":{"cloud-volume-path":"s-000001"}}"#,
    );
    describe(
        node.dir.path(),
        &sealed,
        r#"{"device":"s-000002","metadata":{"encrypt-type":"luks2","kbs-key-id":"k/1"}}"#,
    );
    describe(node.dir.path(), &mount("u-2", "other"), r#"{"device":"s-000003"}"#);
    let plain = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~configmap/x".to_owned();

    let shim = node.shim("sandbox-1").await.unwrap();
    let said = annotations("web", &[("io.kubernetes.cri.sandbox-uid", "u-1")]);
    let socket = shim.create_vm_with(said, &node.pods[0].netns.path()).await.unwrap();
    let mut arriving = guest(&node, &socket.with_file_name("apf.json")).await;
    shim.start_vm().await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let agent = Client::connect(UnixStream::connect(&socket).await.unwrap());

    let sets =
        [vec![], vec![plain.clone()], vec![mine.clone()], vec![plain, sealed.clone(), missing, mine.clone()]];
    for mounts in &sets {
        for (gpus, strange) in [("", false), ("0", true), ("2", true), ("1", false)] {
            let sent = request(mounts, gpus, strange);
            let metadata =
                vec![peerpod_proto::envelope::KeyValue { key: "traceparent".into(), value: "00-1".into() }];
            let answer = agent
                .request(
                    agent::SERVICE,
                    method::CREATE_CONTAINER,
                    sent.clone().into(),
                    Some(std::time::Duration::from_secs(60)),
                    metadata.clone(),
                )
                .await;
            answer.unwrap();
            let got = arriving.recv().await.unwrap();
            assert_eq!((got.timeout_nano, got.metadata), (60_000_000_000, metadata));

            let mut rest = parts(&got.payload);
            for part in parts(&sent) {
                let at = rest.iter().position(|p| *p == part).unwrap_or_else(|| panic!("{part:?} is lost"));
                // In order: nothing that was sent stands behind what was sent later.
                rest.remove(at);
            }
            assert!(rest.iter().all(|(path, _)| *path == [OCI, ANNOTATIONS]), "{rest:?}");
            let sent_map = CreateContainerRequest::decode(sent.as_slice()).unwrap().oci.unwrap().annotations;
            let mut added =
                CreateContainerRequest::decode(got.payload.clone()).unwrap().oci.unwrap().annotations;
            added.retain(|key, _| !sent_map.contains_key(key));
            assert_eq!(rest.len(), added.len(), "nothing is added twice");

            let described: Vec<&str> =
                mounts.iter().filter(|m| **m == mine || **m == sealed).map(String::as_str).collect();
            assert_eq!(added.remove(TARGETS), (!described.is_empty()).then(|| described.join(",")));
            let wanted_gpu = matches!(gpus, "1" | "2").then(|| "nvidia.com/gpu=all".to_owned());
            assert_eq!(added.remove(CDI), wanted_gpu);
            let volumes: serde_json::Value =
                added.remove(VOLUMES).map_or(serde_json::Value::Null, |t| serde_json::from_str(&t).unwrap());
            let at = |source: &str| mounts.iter().position(|m| m == source).map(|n| format!("/data/{n}"));
            assert_eq!(volumes["vol-0"]["disk_id"].as_str(), at(&mine).map(|_| "s-000001"));
            assert_eq!(volumes["vol-0"]["mount_point"].as_str().map(str::to_owned), at(&mine));
            assert_eq!(volumes["vol-1"]["encrypt_type"].as_str(), at(&sealed).map(|_| "luks2"));
            assert_eq!(volumes["vol-1"]["lun"].as_str(), at(&sealed).map(|_| "1"));
            assert!(added.is_empty(), "{added:?}");
        }
    }
    shim.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_specification_is_an_error_of_that_call_alone() {
    let node = Node::start_with("scripted", 1, &["-scripted-address", "192.0.2.2"]).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    let socket = shim.create_vm("web", &node.pods[0].netns.path()).await.unwrap();
    let mut arriving = guest(&node, &socket.with_file_name("apf.json")).await;
    shim.start_vm().await.unwrap();
    let agent = Client::connect(UnixStream::connect(&socket).await.unwrap());
    let empty = CreateContainerRequest { container_id: "c".into(), ..Default::default() };
    let answer: Result<agent::Empty, Status> =
        agent.call(agent::SERVICE, method::CREATE_CONTAINER, &empty, None).await;
    assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    let start = agent::StartContainerRequest { container_id: "c".into() };
    let answer: Result<agent::Empty, Status> =
        agent.call(agent::SERVICE, method::START_CONTAINER, &start, None).await;
    answer.unwrap();
    assert_eq!(
        arriving.recv().await.unwrap().method,
        method::START_CONTAINER,
        "the other call is the first to arrive"
    );
    shim.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}

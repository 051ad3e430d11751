//! Hostile CreateContainers.

use fuzz_support::proto::{Field, fields};
use fuzz_support::{Seen, Target, recorded};
use prost::Message;

use super::*;

/// A volume of the sandbox whose container is recorded, and one that no mount has.
const SOURCE: &str = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/pvc-1/mount";

const OURS: [&str; 3] = [TARGET_PATH, CDI.0, CLOUD_VOLUMES];

/// The fields of a CreateContainer and of its specifications, without the annotations that the node sets.
///
/// Nothing else may differ between what came and what goes on: not the order, not what nobody knows.
fn rest(bytes: &[u8]) -> Option<Vec<(Field, Option<Vec<Field>>)>> {
    let ours = |field: &Field| {
        let entry = fields(&field.value).unwrap_or_default();
        let key = entry.iter().rfind(|part| part.number == 1 && part.kind == 2);
        let key = key.map(|key| String::from_utf8_lossy(&key.value).into_owned()).unwrap_or_default();
        field.number == u64::from(ANNOTATIONS) && field.kind == 2 && OURS.contains(&key.as_str())
    };
    let split = |field: Field| {
        if field.number != u64::from(OCI) || field.kind != 2 {
            return Some((field, None));
        }
        let inner: Vec<Field> = fields(&field.value)?.into_iter().filter(|field| !ours(field)).collect();
        Some((Field { value: Vec::new(), ..field }, Some(inner)))
    };
    fields(bytes)?.into_iter().map(split).collect()
}

fn mounted() -> Vec<u8> {
    let field = |number, value: &[u8]| Field { number, kind: 2, value: value.to_vec() };
    let message = |parts: &[(u64, &[u8])]| {
        let parts: Vec<Field> = parts.iter().map(|(number, value)| field(*number, value)).collect();
        fuzz_support::proto::message(&parts)
    };
    let mount = message(&[(1, b"/data"), (2, SOURCE.as_bytes()), (3, b"bind"), (99, b"mount")]);
    let gpus = message(&[(1, DEFAULT_GPUS.as_bytes()), (2, b"1")]);
    let given = message(&[(1, TARGET_PATH.as_bytes()), (2, b"/given")]);
    let oci = message(&[(5, &mount), (7, &gpus), (7, &given), (8, b""), (95, b"specification")]);
    message(&[(1, b"c1"), (94, b"request"), (6, &oci), (5, b"\x0a\x01x")])
}

#[test]
fn create_container() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let described = tempfile::tempdir().unwrap();
    std::fs::create_dir(described.path().join(URL_SAFE.encode(SOURCE))).unwrap();
    let table = vec![
        VolumeEntry::new(0, SOURCE, "ext4", "disk-1").with_encryption("luks2", "k"),
        VolumeEntry::new(1, "/elsewhere", "xfs", "disk-2"),
    ];
    let spec = ProxySpec::new("s1", "/run/x", ["h:1".into()])
        .with_volumes(table)
        .with_direct_volumes(described.path());
    let rewrite = NodeRewrite::new(&spec);
    Target::new("create-container")
        .seeds(recorded("CreateContainer"))
        .seed("mounted", mounted())
        .words(&[SOURCE, DEFAULT_GPUS, TARGET_PATH, CLOUD_VOLUMES, CDI.0, CSI, "/../"])
        .proto()
        .run(|input| {
            let out = match runtime.block_on(rewrite.create_container(Bytes::copy_from_slice(input))) {
                Ok(out) => out,
                Err(status) => {
                    let text = &status.message;
                    assert!(!text.is_empty() && text.len() < 2048, "an error of {} bytes", text.len());
                    assert!(
                        CreateContainerRequest::decode(input).is_err()
                            || text.contains("OCI")
                            // The reader of messages takes an entry of a map written in another way, and the
                            // editor does not touch such a message.
                            || text.contains("unexpected wire type")
                            || rest(input).is_none(),
                        "{text}"
                    );
                    return Seen::refused(text);
                }
            };
            let before = CreateContainerRequest::decode(input).unwrap();
            let after = CreateContainerRequest::decode(out.clone()).unwrap();
            let (Some(was), Some(is)) = (rest(input), rest(&out)) else { return Seen::skipped() };
            assert_eq!(was, is, "something else changed");
            let mut expected = before;
            let given = &after.oci.as_ref().expect("it was there before").annotations;
            let oci = expected.oci.as_mut().expect("it is refused without");
            for key in OURS {
                // Each may be set, and none may go.
                assert!(given.contains_key(key) || !oci.annotations.contains_key(key), "{key} is gone");
                if let Some(value) = given.get(key) {
                    oci.annotations.insert(key.to_owned(), value.clone());
                }
            }
            assert_eq!(after, expected);
            let again =
                runtime.block_on(rewrite.create_container(out.clone())).expect("it is taken once more");
            assert_eq!(rest(&again), rest(&out), "a repeated call changes no more than the first one");
            let set = OURS.map(|key| given.contains_key(key));
            Seen::accepted((
                set,
                out.len() == input.len(),
                given.len().min(20),
                after.oci.map(|oci| oci.mounts.len().min(9)),
            ))
        });
}

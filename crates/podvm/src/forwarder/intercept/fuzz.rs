//! Hostile CreateContainers, on their way to the agent.

use fuzz_support::proto::{Field, fields};
use fuzz_support::{Seen, Target, recorded};

use super::tests::fixture;
use super::*;

const NETWORK: &str = "/run/netns/podns";

/// The fields of a CreateContainer down to the namespaces of its specification, without the one of the pod's network.
fn rest(bytes: &[u8], path: &[u64]) -> Option<Vec<(Field, Option<Rest>)>> {
    let network = LinuxNamespace { kind: "network".to_owned(), path: NETWORK.to_owned() }.encode_to_vec();
    let mut found = Vec::new();
    for field in fields(bytes)? {
        match path.split_first() {
            Some((step, path)) if field.number == *step && field.kind == 2 => {
                let inner = rest(&field.value, path)?;
                found.push((Field { value: Vec::new(), ..field }, Some(Rest(inner))));
            }
            None if field.number == u64::from(LINUX_NAMESPACES) && field.value == network => {}
            _ => found.push((field, None)),
        }
    }
    Some(found)
}

#[derive(Debug, PartialEq)]
struct Rest(Vec<(Field, Option<Rest>)>);

#[test]
fn guest_container() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let fixture = fixture();
    let guest = Guest { bind_source_dirs: Vec::new(), ..fixture.guest };
    let path = [u64::from(OCI), u64::from(OCI_LINUX)];
    Target::new("guest-container")
        .seeds(recorded("CreateContainer"))
        .words(&["network", NETWORK, "bind", "/run/kata-containers"])
        .proto()
        .run(|input| {
            let before = CreateContainerRequest::decode(input);
            let waits = before.as_ref().is_ok_and(|request| {
                let oci = request.oci.as_ref();
                oci.is_some_and(|oci| {
                    [TARGET_PATHS, volumes::ANNOTATION].iter().any(|key| oci.annotations.contains_key(*key))
                })
            });
            if waits {
                return Seen::skipped();
            }
            let call = |payload: &[u8]| {
                let payload = Bytes::copy_from_slice(payload);
                runtime.block_on(guest.create_container(&CancellationToken::new(), payload))
            };
            let out = match call(input) {
                Ok(Rewrite::Forward(out)) => out,
                Ok(_) => panic!("CreateContainer was answered"),
                Err(status) => {
                    let text = &status.message;
                    assert!(!text.is_empty() && text.len() < 2048, "an error of {} bytes", text.len());
                    return Seen::refused(text);
                }
            };
            let (mut expected, after) =
                (before.unwrap(), CreateContainerRequest::decode(out.clone()).unwrap());
            let linux =
                expected.oci.as_mut().and_then(|oci| oci.linux.as_mut()).expect("it is refused without");
            let network = LinuxNamespace { kind: "network".to_owned(), path: NETWORK.to_owned() };
            let had = linux.namespaces.contains(&network);
            if !had {
                linux.namespaces.push(network);
            }
            assert_eq!(after, expected);
            if let Some(was) = rest(input, &path) {
                assert_eq!(Some(was), rest(&out, &path), "something else changed");
            }
            match call(&out) {
                Ok(Rewrite::Forward(again)) => assert_eq!(again, out, "the namespace is there already"),
                _ => panic!("what was passed on is refused when it comes again"),
            }
            Seen::accepted((
                had,
                after.oci.map(|oci| (oci.mounts.len().min(9), oci.annotations.len().min(9))),
            ))
        });
}

#[test]
fn cloud_volumes() {
    let given = r#"{"vol-0":{"mount_point":"/a","fs_type":"ext4","lun":"0","disk_id":"d"},
        "vol-11":{"mount_point":"/b","fs_type":"xfs","lun":"11","disk_id":"e","encrypt_type":"luks2","key_id":"k","fs_group":"7"}}"#;
    Target::new("cloud-volumes")
        .seed("two", given)
        .words(&["luks", "fs_group", "..", "/", "vol-0"])
        .json()
        .run(|input| {
            let Ok(text) = std::str::from_utf8(input) else { return Seen::skipped() };
            match Volume::parse_all(text) {
                Ok(volumes) => {
                    for volume in &volumes {
                        // The name becomes a folder below the one of volumes, and the number chooses the device.
                        let folder = Path::new("/run/cloud-volumes").join(&volume.name);
                        assert_eq!(folder.components().count(), 4, "{folder:?}");
                        assert_eq!(folder.file_name().unwrap(), volume.name.as_str());
                        assert!(!volume.mount_point.is_empty());
                    }
                    Seen::accepted((
                        volumes.len().min(4),
                        volumes.iter().any(|volume| volume.key_id.is_some()),
                    ))
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    assert!(text.contains(volumes::ANNOTATION) || text.contains("cloud volume"), "{text}");
                    Seen::refused(&text)
                }
            }
        });
}

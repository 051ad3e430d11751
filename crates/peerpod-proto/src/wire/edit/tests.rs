use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::messages::agent::CreateContainerRequest;
use crate::messages::oci::{Linux, LinuxNamespace, Mount, Spec};
use crate::wire::fields;

/// A field of a made-up message. Lengths and numbers may be written longer than needed.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Varint(u64, usize),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>, usize),
    Message(Vec<(u32, Value)>, usize),
}

/// Writes a number with some needless bytes, as long as it stays within ten.
fn put_padded(out: &mut Vec<u8>, value: u64, padding: usize) {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, value);
    for _ in 0..padding.min(9 - bytes.len().min(9)) {
        *bytes.last_mut().unwrap() |= 0x80;
        bytes.push(0);
    }
    out.extend(bytes);
}

fn encode(message: &[(u32, Value)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in message {
        let tag = |wire_type: u64| u64::from(*number) << 3 | wire_type;
        match value {
            Value::Varint(value, padding) => {
                put_varint(&mut out, tag(0));
                put_padded(&mut out, *value, *padding);
            }
            Value::Fixed64(bytes) => {
                put_varint(&mut out, tag(1));
                out.extend(bytes);
            }
            Value::Fixed32(bytes) => {
                put_varint(&mut out, tag(5));
                out.extend(bytes);
            }
            Value::Bytes(bytes, padding) => {
                put_varint(&mut out, tag(2));
                put_padded(&mut out, bytes.len() as u64, *padding);
                out.extend(bytes);
            }
            Value::Message(fields, padding) => {
                let inner = encode(fields);
                put_varint(&mut out, tag(2));
                put_padded(&mut out, inner.len() as u64, *padding);
                out.extend(inner);
            }
        }
    }
    out
}

fn unknown_field() -> impl Strategy<Value = (u32, Value)> {
    let value = prop_oneof![
        (any::<u64>(), 0..3usize).prop_map(|(value, padding)| Value::Varint(value, padding)),
        any::<[u8; 8]>().prop_map(Value::Fixed64),
        any::<[u8; 4]>().prop_map(Value::Fixed32),
        (prop::collection::vec(any::<u8>(), 0..200), 0..3usize)
            .prop_map(|(bytes, padding)| Value::Bytes(bytes, padding)),
    ];
    (100..2000u32, value)
}

fn unknown_fields() -> impl Strategy<Value = Vec<(u32, Value)>> {
    prop::collection::vec(unknown_field(), 0..4)
}

fn text(value: &str) -> Value {
    Value::Bytes(value.as_bytes().to_vec(), 0)
}

/// A message with unknown fields between its known ones.
fn mixed(known: Vec<(u32, Value)>) -> impl Strategy<Value = Value> {
    (prop::collection::vec(unknown_fields(), known.len() + 1), 0..3usize).prop_map(
        move |(unknown, padding)| {
            let mut unknown = unknown.into_iter();
            let mut fields = unknown.next().unwrap_or_default();
            for (field, more) in known.iter().cloned().zip(unknown) {
                fields.push(field);
                fields.extend(more);
            }
            Value::Message(fields, padding)
        },
    )
}

/// A CreateContainer with unknown fields on every level, whose specification comes in up to three pieces.
fn create_container() -> impl Strategy<Value = Vec<(u32, Value)>> {
    let entry = ("[a-d]", "[a-z]{0,9}").prop_flat_map(|(k, v)| mixed(vec![(1, text(&k)), (2, text(&v))]));
    let mount = ("/[a-z]{1,5}", "/[a-z]{1,5}")
        .prop_flat_map(|(to, from)| mixed(vec![(1, text(&to)), (2, text(&from)), (3, text("bind"))]));
    let namespace = mixed(vec![(1, text("ipc"))]);
    let linux = namespace.prop_flat_map(|namespace| mixed(vec![(6, namespace)]));
    let part =
        (prop::collection::vec(entry, 0..4), prop::collection::vec(mount, 0..4), prop::option::of(linux))
            .prop_flat_map(|(entries, mounts, linux)| {
                let mut fields: Vec<_> = mounts.into_iter().map(|mount| (5, mount)).collect();
                fields.extend(entries.into_iter().map(|entry| (7, entry)));
                fields.extend(linux.map(|linux| (8, linux)));
                mixed(fields)
            });
    prop::collection::vec(part, 1..4).prop_flat_map(|parts| {
        let mut fields = vec![(1, text("container"))];
        fields.extend(parts.into_iter().map(|part| (6, part)));
        mixed(fields).prop_map(|message| match message {
            Value::Message(fields, _) => fields,
            _ => Vec::new(),
        })
    })
}

/// The fields of a message that prost does not know here, in order, level by level.
fn unknown_spans(bytes: &[u8], level: usize, out: &mut Vec<Vec<u8>>) {
    for field in fields(bytes) {
        let field = field.unwrap();
        if field.number >= 100 {
            out.push(bytes[field.span.clone()].to_vec());
        } else if level < 3 && field.wire_type == WireType::Len {
            let inner = field.bytes(bytes);
            if fields(inner).all(|field| field.is_ok()) {
                unknown_spans(inner, level + 1, out);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn without_a_change_every_byte_stays(message in create_container()) {
        let bytes = encode(&message);
        prop_assert_eq!(Editor::new(&bytes).finish().unwrap(), bytes);
    }

    #[test]
    fn changes_are_exactly_those_intended(
        message in create_container(),
        key in "[a-f]",
        value in "[a-z]{0,300}",
        source in "/[a-z]{0,200}",
        pick in any::<prop::sample::Index>(),
    ) {
        let bytes = encode(&message);
        let mut expected = CreateContainerRequest::decode(&bytes[..]).unwrap();
        let spec = expected.oci.get_or_insert_default();
        spec.annotations.insert(key.clone(), value.clone());
        let namespace = LinuxNamespace { kind: "network".into(), path: "/run/netns/podns".into() };
        spec.linux.get_or_insert_default().namespaces.push(namespace.clone());
        expected.container_id = "other".into();

        let mut editor = Editor::new(&bytes);
        editor.set_map_entry(&[6], 7, &key, &value).unwrap();
        editor.append(&[6, 8], 6, &namespace.encode_to_vec()).unwrap();
        editor.set(&[], 1, b"other").unwrap();
        if !spec.mounts.is_empty() {
            let index = pick.index(spec.mounts.len());
            spec.mounts[index].source = source.clone();
            editor.set_in_element(&[6, 5], index, 2, source.as_bytes()).unwrap();
        }
        let edited = editor.finish().unwrap();

        prop_assert_eq!(CreateContainerRequest::decode(&edited[..]).unwrap(), expected);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        unknown_spans(&bytes, 0, &mut before);
        unknown_spans(&edited, 0, &mut after);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn removing_leaves_the_rest(message in create_container()) {
        let bytes = encode(&message);
        let mut editor = Editor::new(&bytes);
        editor.remove(&[6], 5).unwrap();
        let edited = editor.finish().unwrap();
        let mut expected = CreateContainerRequest::decode(&bytes[..]).unwrap();
        expected.oci.get_or_insert_default().mounts.clear();
        prop_assert_eq!(CreateContainerRequest::decode(&edited[..]).unwrap(), expected);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut editor = Editor::new(&bytes);
        if editor.set_map_entry(&[6], 7, "k", "v").is_ok() {
            editor.finish().unwrap();
        }
    }
}

#[test]
fn a_message_in_pieces_is_changed_where_it_wins() {
    let first = Spec { hostname: "one".into(), ..Default::default() };
    let second = Spec { version: "1.0".into(), ..Default::default() };
    let mut bytes = Vec::new();
    put_len_field(&mut bytes, 6, &first.encode_to_vec());
    put_len_field(&mut bytes, 6, &second.encode_to_vec());
    let mut editor = Editor::new(&bytes);
    editor.set(&[6], 4, b"two").unwrap();
    editor.append(&[6, 8], 6, b"").unwrap();
    let spec = CreateContainerRequest::decode(&editor.finish().unwrap()[..]).unwrap().oci.unwrap();
    assert_eq!((spec.hostname.as_str(), spec.version.as_str()), ("two", "1.0"));
    assert_eq!(spec.linux.unwrap().namespaces.len(), 1);
}

#[test]
fn missing_messages_of_a_path_are_made() {
    let mut editor = Editor::new(b"");
    editor
        .append(&[6, 8], 6, &LinuxNamespace { kind: "ipc".into(), ..Default::default() }.encode_to_vec())
        .unwrap();
    let request = CreateContainerRequest::decode(&editor.finish().unwrap()[..]).unwrap();
    assert_eq!(request.oci.unwrap().linux.unwrap().namespaces[0].kind, "ipc");
}

#[test]
fn the_same_entry_set_twice_keeps_the_last_value() {
    for existing in [&b""[..], b"\x32\x08\x3a\x06\x0a\x01k\x12\x01v"] {
        let mut editor = Editor::new(existing);
        editor.set_map_entry(&[6], 7, "k", "one").unwrap();
        editor.set_map_entry(&[6], 7, "k", "two").unwrap();
        let request = CreateContainerRequest::decode(&editor.finish().unwrap()[..]).unwrap();
        assert_eq!(request.oci.unwrap().annotations["k"], "two");
    }
}

#[test]
fn edits_that_overlap_are_refused() {
    let spec = Spec { linux: Some(Linux::default()), mounts: vec![Mount::default()], ..Default::default() };
    let bytes = CreateContainerRequest { oci: Some(spec), ..Default::default() }.encode_to_vec();
    let mut editor = Editor::new(&bytes);
    editor.remove(&[], 6).unwrap();
    editor.set_in_element(&[6, 5], 0, 2, b"/x").unwrap();
    assert!(matches!(editor.finish(), Err(WireError::Overlap { .. })));
}

#[test]
fn an_element_that_is_not_there_is_an_error() {
    let error = Editor::new(b"").set_in_element(&[6, 5], 2, 2, b"x").unwrap_err();
    assert_eq!(error.to_string(), "there is no element 2 at path [6, 5]");
}

#[test]
fn a_path_through_a_number_is_an_error() {
    let error = Editor::new(b"\x30\x01").set(&[6], 4, b"x").unwrap_err();
    assert_eq!(error, WireError::UnexpectedType { field: 6 });
}

#[test]
fn a_length_that_needs_another_byte_grows() {
    let bytes = CreateContainerRequest {
        oci: Some(Spec { hostname: "h".repeat(120), ..Default::default() }),
        ..Default::default()
    }
    .encode_to_vec();
    let mut editor = Editor::new(&bytes);
    editor.set_map_entry(&[6], 7, "key", "value").unwrap();
    let edited = editor.finish().unwrap();
    let spec = CreateContainerRequest::decode(&edited[..]).unwrap().oci.unwrap();
    assert_eq!(spec.annotations["key"], "value");
    assert_eq!(spec.hostname.len(), 120);
}

//! The messages that are sent, and those that are answered with.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, value_parser};
use peerpod_proto::envelope::{Request, RequestView};
use peerpod_proto::frame::{HEADER_LEN, Header, Kind as FrameKind};
use peerpod_proto::messages::{agent, health};
use prost::Message as _;

/// A call to this method makes the agent read nothing more from the connection.
pub(crate) const STALL: &str = "Stall";

/// The kinds of calls.
const KINDS: [&str; 6] = ["check", "copy-file", "read-stdout", "write-stdin", "create-container", "stall"];

/// The option that says which kind, and those that go with it.
pub(crate) fn args() -> [Arg; 3] {
    [
        Arg::new("kind")
            .long("kind")
            .required(true)
            .value_parser(PossibleValuesParser::new(KINDS))
            .help("The call to make"),
        crate::number("payload", "32768", "Bytes of a file's part, or of a stream's"),
        Arg::new("recorded")
            .long("recorded")
            .value_name("PATH")
            .value_parser(value_parser!(PathBuf))
            .help("Frames of a shim: the largest CreateContainer among them is what is sent"),
    ]
}

/// Makes the request that the options describe.
pub(crate) fn request(matches: &ArgMatches) -> Result<Bytes> {
    let kind = matches.get_one::<String>("kind").expect("clap demands it");
    let payload = usize::try_from(crate::given_number(matches, "payload"))?;
    let data = || Bytes::from(vec![0x5a; payload]);
    let (container_id, exec_id) = ("c".repeat(64), "e".repeat(36));
    let (service, method, message) = match kind.as_str() {
        "check" => (health::SERVICE, health::CHECK, health::CheckRequest::default().encode_to_vec()),
        "copy-file" => {
            let message = agent::CopyFileRequest {
                path: "/run/kata-containers/shared/containers/file".to_owned(),
                file_size: i64::try_from(payload)?,
                file_mode: 0o100_644,
                dir_mode: 0o755,
                data: data(),
                ..Default::default()
            };
            (agent::SERVICE, agent::method::COPY_FILE, message.encode_to_vec())
        }
        "read-stdout" => {
            let message = agent::ReadStreamRequest { container_id, exec_id, len: u32::try_from(payload)? };
            (agent::SERVICE, agent::method::READ_STDOUT, message.encode_to_vec())
        }
        "write-stdin" => {
            let message = agent::WriteStreamRequest { container_id, exec_id, data: data() };
            (agent::SERVICE, agent::method::WRITE_STDIN, message.encode_to_vec())
        }
        "create-container" => {
            let file = matches.get_one::<PathBuf>("recorded").context("create-container needs --recorded")?;
            (agent::SERVICE, agent::method::CREATE_CONTAINER, largest_create_container(file)?)
        }
        _ => (agent::SERVICE, STALL, Vec::new()),
    };
    Ok(Request::new(service, method, message.into(), None).to_bytes())
}

/// Finds the largest CreateContainer in a file with the frames that a shim sent.
fn largest_create_container(file: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let (mut rest, mut largest) = (bytes.as_slice(), Vec::new());
    while let Some((header, tail)) = rest.split_first_chunk::<HEADER_LEN>() {
        let header = Header::parse(*header);
        let length = header.length as usize;
        let envelope = tail.get(..length).with_context(|| format!("{} is cut off", file.display()))?;
        rest = &tail[length..];
        if header.kind != FrameKind::Request {
            continue;
        }
        let view = RequestView::parse(envelope)?;
        let payload = &envelope[view.payload_range()];
        if view.method == agent::method::CREATE_CONTAINER && payload.len() > largest.len() {
            largest = payload.to_vec();
        }
    }
    ensure!(!largest.is_empty(), "{} has no CreateContainer", file.display());
    Ok(largest)
}

/// Writes a frame into a buffer, which is emptied first.
pub(crate) fn write_frame(buffer: &mut Vec<u8>, kind: FrameKind, stream_id: u32, payload: &[u8]) {
    let header = Header { length: payload.len() as u32, stream_id, kind, flags: 0 };
    buffer.clear();
    buffer.extend_from_slice(&header.to_bytes());
    buffer.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_recorded_create_container_is_found() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/kata-4.1.0-runtime-rs/agent.c2s.bin");
        let payload = largest_create_container(Path::new(file)).unwrap();
        let request = agent::CreateContainerRequest::decode(payload.as_slice()).unwrap();
        assert!(request.oci.unwrap().linux.is_some());
        let error = largest_create_container(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("no CreateContainer"), "{error}");
    }
}

//! Files from the node: what a shim copies since there is no folder that both share.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use peerpod_proto::messages::agent::{CopyFileRequest, method};
use sha2::{Digest as _, Sha256};
use test_support::{AgentPlayer, spec};

/// Where shims put files; containers get them by bind mounts.
pub(super) const SHARED: &str = "/run/kata-containers/shared/containers";
/// Shims send pieces of this size.
const PIECE: usize = 1 << 20;
const BIG: usize = 16 << 20;
/// A regular file that everybody may read.
const MODE: u32 = 0o100_644;

/// Copies `content` to `path` in the guest, piece by piece.
pub(super) async fn copy(agent: &AgentPlayer, path: &str, content: &[u8]) -> Result<()> {
    for (index, piece) in content.chunks(PIECE).enumerate() {
        let request = CopyFileRequest {
            path: path.to_owned(),
            file_size: i64::try_from(content.len())?,
            file_mode: MODE,
            dir_mode: 0o755,
            offset: i64::try_from(index * PIECE)?,
            data: Bytes::copy_from_slice(piece),
            ..Default::default()
        };
        agent.call(method::COPY_FILE, &request).await.with_context(|| format!("CopyFile, piece {index}"))?;
    }
    Ok(())
}

/// A file of 16 MiB arrives whole and is seen in a container.
pub(super) async fn assess(agent: &AgentPlayer) -> Result<String> {
    // No two pieces are alike, so that one in the wrong place is seen.
    let content: Vec<u8> =
        (0..BIG / 8).flat_map(|n| (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect();
    let source = format!("{SHARED}/big-file");
    copy(agent, &source, &content).await?;
    // A container without an image has the root of its guest, in which this file is there to be mounted over.
    let mut oci = spec(&["sha256sum", "/etc/hosts"]);
    oci.mounts.push(super::bind(&source, "/etc/hosts"));
    agent.start_container_of("big-file", oci).await.context("starting sha256sum failed")?;
    let text = agent.read_stdout("big-file", "").await.context("reading its output")?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let expected: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(text.starts_with(&expected), "the digest is {text:?}, expected {expected}");
    Ok(format!("{} MiB", BIG >> 20))
}

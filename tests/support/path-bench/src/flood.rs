//! Calls whose answers nobody reads.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use clap::{ArgMatches, Command};
use peerpod_proto::frame::Kind;
use serde_json::json;

use crate::message::{self, write_frame};
use crate::stream::connect;

pub(crate) fn command() -> Command {
    Command::new("flood")
        .about(
            "Makes calls and reads no answers, for as long as they can be written, and tells how many when its input ends",
        )
        .arg(crate::path("socket", "Unix socket of the chain"))
        .args(message::args())
        .arg(crate::number("most", "1000000", "The most calls"))
        .arg(
            clap::Arg::new("stalled-agent")
                .long("stalled-agent")
                .action(clap::ArgAction::SetTrue)
                .help("Let the agent read nothing from now on"),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let request = message::request(matches)?;
    let most = u32::try_from(crate::given_number(matches, "most"))?;
    let mut stream = connect(&crate::given_path(matches, "socket"))?;
    let (mut frame, mut id) = (Vec::new(), 1u32);
    if matches.get_flag("stalled-agent") {
        let stall = peerpod_proto::envelope::Request::new(
            peerpod_proto::messages::agent::SERVICE,
            message::STALL,
            bytes::Bytes::new(),
            None,
        );
        write_frame(&mut frame, Kind::Request, id, &stall.to_bytes());
        stream.write_all(&frame).context("the connection is closed")?;
        id += 2;
    }
    write_frame(&mut frame, Kind::Request, id, &request);
    let written = Arc::new(Written::default());
    let count = Arc::clone(&written);
    let flooding = std::thread::spawn(move || {
        for call in 0..most {
            frame[4..8].copy_from_slice(&(id + 2 * call).to_be_bytes());
            stream.write_all(&frame)?;
            count.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
            count.calls.fetch_add(1, Ordering::Relaxed);
        }
        // The connection stays open for as long as the other one is.
        Ok::<_, std::io::Error>(stream)
    });
    // All stays as it is while somebody looks at what this does to others.
    let _ = std::io::stdin().read(&mut [0])?;
    let closed = match flooding.is_finished().then(|| flooding.join()) {
        Some(Ok(Err(error))) => Some(error.to_string()),
        _ => None,
    };
    let (calls, bytes) = (written.calls.load(Ordering::Relaxed), written.bytes.load(Ordering::Relaxed));
    println!("{}", json!({ "calls": calls, "bytes": bytes, "closed": closed }));
    // Also when the other thread still waits in a write.
    Ok(())
}

/// What was written so far.
#[derive(Default)]
struct Written {
    calls: AtomicU64,
    bytes: AtomicU64,
}

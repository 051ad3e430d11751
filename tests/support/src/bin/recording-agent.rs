//! An agent that writes each request it gets to standard error, as hexadecimal digits, and answers nearly all at once.
//!
//! Calls that wait in a real agent (WaitProcess, GetOOMEvent, ReadStdout, ReadStderr) are never answered.

use std::{io::Write as _, sync::Arc};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use peerpod_proto::{
    envelope::{Request, Response},
    frame::{Frame, FrameReader, FrameWriter, Inbound},
};
use prost::Message as _;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Mutex,
};

const WAITING: [&str; 4] = ["WaitProcess", "GetOOMEvent", "ReadStdout", "ReadStderr"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut path = "/run/kata-containers/agent.sock".to_owned();
    while let Some(arg) = args.next() {
        if arg == "--listen" {
            path = args.next().context("--listen needs a path")?;
        }
    }
    let path = path.trim_start_matches("unix://");
    if let Some(folder) = std::path::Path::new(path).parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {path}"))?;
    let console = Arc::new(Mutex::new(()));
    loop {
        let (stream, _) = listener.accept().await?;
        let console = console.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &console).await {
                eprintln!("a connection ended: {error:#}");
            }
        });
    }
}

async fn serve(stream: UnixStream, console: &Mutex<()>) -> Result<()> {
    let (read, write) = stream.into_split();
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    while let Some(inbound) = reader.read().await? {
        let Inbound::Frame(frame) = inbound else { continue };
        let request = Request::decode(frame.payload.clone())?;
        {
            let _turn = console.lock().await;
            let hex: String = frame.payload.iter().map(|byte| format!("{byte:02x}")).collect();
            // One write, so that no line of another process of the guest comes between.
            std::io::stderr().write_all(format!("RECORDED {hex}\n").as_bytes())?;
        }
        if !WAITING.contains(&request.method.as_str()) {
            let response = Response { status: None, payload: Bytes::new() };
            writer.write(&[Frame::response(frame.stream_id, response.encode_to_vec().into())]).await?;
        }
    }
    Ok(())
}

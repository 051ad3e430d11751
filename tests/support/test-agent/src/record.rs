//! Option `--record`: an agent that writes each request it gets to standard error, as hexadecimal digits, and answers nearly
//! all of them at once with nothing.
//!
//! Calls that wait in a real agent (WaitProcess, GetOOMEvent, ReadStdout, ReadStderr) are never answered.

use std::{io::Write as _, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use peerpod_proto::{
    envelope::{Request, Response},
    frame::{Frame, FrameReader, FrameWriter, Inbound},
    messages::agent::method,
};
use prost::Message as _;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Mutex,
};

/// Records whatever any client sends, until the process ends.
pub(crate) async fn record(listener: UnixListener) -> Result<()> {
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
        if !method::WAITING.contains(&request.method.as_str()) {
            let response = Response { status: None, payload: Bytes::new() };
            writer.write(&[Frame::response(frame.stream_id, response.encode_to_vec().into())]).await?;
        }
    }
    Ok(())
}

//! An agent that answers from a buffer.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::{ArgMatches, Command};
use peerpod_proto::Status;
use peerpod_proto::envelope::{RequestView, Response};
use peerpod_proto::frame::Kind;
use peerpod_proto::messages::{agent, health};
use prost::Message as _;

use crate::message::{STALL, write_frame};
use crate::stream::{Frames, send};

/// The most a stream is asked for at once.
const MOST: usize = 4 << 20;

pub(crate) fn command() -> Command {
    Command::new("agent")
        .about("Answers calls from a buffer, one write for each")
        .arg(crate::path("listen", "Unix socket to listen at"))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let path = crate::given_path(matches, "listen");
    let listener = UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
    println!("ready");
    std::io::stdout().flush()?;
    for stream in listener.incoming() {
        let stream = stream.context("accept a connection")?;
        std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            // The other end may leave at any time.
            let _ = serve(stream);
        })?;
    }
    Ok(())
}

fn serve(mut stream: UnixStream) -> Result<()> {
    let mut frames = Frames::new(stream.try_clone()?);
    let (mut answers, mut frame) = (Answers::new(), Vec::with_capacity(64 << 10));
    while let Some((header, envelope)) = frames.next()? {
        if header.kind != Kind::Request {
            continue;
        }
        let view = RequestView::parse(envelope)?;
        if view.method == STALL {
            // Until the other end is gone: nothing is read meanwhile.
            loop {
                std::thread::park();
            }
        }
        let answer = answers.answer(&view, &envelope[view.payload_range()]);
        write_frame(&mut frame, Kind::Response, header.stream_id, answer);
        send(&mut stream, &frame)?;
    }
    Ok(())
}

/// Answers that are encoded already.
struct Answers {
    check: Bytes,
    empty: Bytes,
    unknown: Bytes,
    /// Of a stream, for the length asked for last.
    stream: (usize, Bytes),
    /// To what was written, for the length written last.
    written: (usize, Bytes),
}

fn encode(message: &impl prost::Message) -> Bytes {
    Response::new(Ok(message.encode_to_vec().into())).to_bytes()
}

impl Answers {
    fn new() -> Self {
        let serving = health::HealthCheckResponse { status: health::ServingStatus::Serving as i32 };
        Self {
            check: encode(&serving),
            empty: encode(&agent::Empty::default()),
            unknown: Response::new(Err(Status::unknown_service("of this agent"))).to_bytes(),
            stream: (usize::MAX, Bytes::new()),
            written: (usize::MAX, Bytes::new()),
        }
    }

    fn answer(&mut self, view: &RequestView<'_>, payload: &[u8]) -> &[u8] {
        if view.service == health::SERVICE {
            return &self.check;
        }
        if view.service != agent::SERVICE {
            return &self.unknown;
        }
        match view.method {
            agent::method::READ_STDOUT => {
                let asked = agent::ReadStreamRequest::decode(payload).map_or(0, |request| request.len);
                let length = (asked as usize).min(MOST);
                if self.stream.0 != length {
                    let data = Bytes::from(vec![0xa5; length]);
                    self.stream = (length, encode(&agent::ReadStreamResponse { data }));
                }
                &self.stream.1
            }
            agent::method::WRITE_STDIN => {
                if self.written.0 != payload.len() {
                    let len =
                        agent::WriteStreamRequest::decode(payload).map_or(0, |request| request.data.len());
                    let response = agent::WriteStreamResponse { len: len as u32 };
                    self.written = (payload.len(), encode(&response));
                }
                &self.written.1
            }
            _ => &self.empty,
        }
    }
}

#[cfg(test)]
mod tests {
    use peerpod_proto::envelope::Request;

    use super::*;

    fn ask(answers: &mut Answers, service: &str, method: &str, payload: Vec<u8>) -> Result<Bytes, Status> {
        let envelope = Request::new(service, method, payload.into(), None).to_bytes();
        let view = RequestView::parse(&envelope).unwrap();
        let answer = answers.answer(&view, &envelope[view.payload_range()]);
        Response::decode(answer).unwrap().into_result()
    }

    #[test]
    fn answers_are_those_of_an_agent() {
        let mut answers = Answers::new();
        let answer = ask(&mut answers, health::SERVICE, health::CHECK, vec![]).unwrap();
        assert_eq!(health::HealthCheckResponse::decode(answer).unwrap().status, 1);
        for len in [3, 5] {
            let request = agent::ReadStreamRequest { len, ..Default::default() }.encode_to_vec();
            let answer = ask(&mut answers, agent::SERVICE, agent::method::READ_STDOUT, request).unwrap();
            assert_eq!(agent::ReadStreamResponse::decode(answer).unwrap().data.len(), len as usize);
            let data = Bytes::from(vec![0; len as usize]);
            let request = agent::WriteStreamRequest { data, ..Default::default() }.encode_to_vec();
            let answer = ask(&mut answers, agent::SERVICE, agent::method::WRITE_STDIN, request).unwrap();
            assert_eq!(agent::WriteStreamResponse::decode(answer).unwrap().len, len);
        }
        assert!(ask(&mut answers, "peerpod.Peer", "Level", vec![]).is_err(), "an agent has no such service");
    }
}

//! Frames over a blocking unix socket, with one buffer that is used again and again.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use peerpod_proto::frame::{HEADER_LEN, Header};

/// What one read may bring.
const ROOM: usize = 64 << 10;

/// How long an answer may take before the measurement is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Reads frames.
pub(crate) struct Frames {
    stream: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Frames {
    /// Reads frames of a stream.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: vec![0; ROOM], start: 0, end: 0 }
    }

    /// Returns the next frame, or nothing at the end. The payload is good until the next call.
    pub(crate) fn next(&mut self) -> Result<Option<(Header, &[u8])>> {
        self.start = match self.fill(HEADER_LEN)? {
            Some(start) => start,
            None => return Ok(None),
        };
        let bytes = self.buffer[self.start..].first_chunk().context("a header is ten bytes")?;
        let header = Header::parse(*bytes);
        let whole = HEADER_LEN + header.length as usize;
        let start = self.fill(whole)?.context("the connection ended within a frame")?;
        self.start = start + whole;
        Ok(Some((header, &self.buffer[start + HEADER_LEN..start + whole])))
    }

    /// Reads until so many bytes are there, and returns where they begin; nothing where the connection ended.
    fn fill(&mut self, wanted: usize) -> Result<Option<usize>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start + wanted > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if wanted > self.buffer.len() {
                self.buffer.resize(wanted, 0);
            }
        }
        while self.end - self.start < wanted {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(None),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("no frame comes"),
            }
        }
        Ok(Some(self.start))
    }
}

/// Connects to a socket that may still be about to be made.
pub(crate) fn connect(socket: &Path) -> Result<UnixStream> {
    let end = Instant::now() + SILENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(SILENCE))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("connect to {}", socket.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Writes all of a message with as few calls as the kernel allows: one, unless it takes a part only.
pub(crate) fn send(stream: &mut UnixStream, frame: &[u8]) -> Result<()> {
    match stream.write_all(frame) {
        Ok(()) => Ok(()),
        Err(error) => bail!("a message cannot be written: {error}"),
    }
}

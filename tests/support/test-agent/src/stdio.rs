//! The streams of a process: three pipes, or one terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use nix::errno::Errno;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

/// Which stream to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Out {
    Stdout,
    Stderr,
}

/// The agent's ends of the streams.
pub(crate) struct Streams {
    stdin: Mutex<Option<pipe::Sender>>,
    stdout: Mutex<Option<pipe::Receiver>>,
    stderr: Mutex<Option<pipe::Receiver>>,
    terminal: Option<Terminal>,
}

/// A terminal has one end for reading and writing. Two descriptors keep a pending read from blocking a write.
struct Terminal {
    master: Arc<OwnedFd>,
    reader: Mutex<File>,
    writer: Mutex<File>,
}

impl Streams {
    /// Takes the pipes of a child.
    pub(crate) fn pipes(child: &mut Child) -> Result<Self> {
        let stdin = OwnedFd::from(child.stdin.take().context("no standard input")?);
        let stdout = OwnedFd::from(child.stdout.take().context("no standard output")?);
        let stderr = OwnedFd::from(child.stderr.take().context("no standard error")?);
        Ok(Self {
            stdin: Mutex::new(Some(pipe::Sender::from_owned_fd(stdin)?)),
            stdout: Mutex::new(Some(pipe::Receiver::from_owned_fd(stdout)?)),
            stderr: Mutex::new(Some(pipe::Receiver::from_owned_fd(stderr)?)),
            terminal: None,
        })
    }

    /// Takes the agent's end of a terminal.
    pub(crate) fn terminal(master: OwnedFd) -> Result<Self> {
        let file = || master.try_clone().map(|fd| Mutex::new(File::from_std(fd.into())));
        let (reader, writer) = (file()?, file()?);
        Ok(Self {
            stdin: Mutex::new(None),
            stdout: Mutex::new(None),
            stderr: Mutex::new(None),
            terminal: Some(Terminal { master: Arc::new(master), reader, writer }),
        })
    }

    /// The terminal, for changes of its size.
    pub(crate) fn master(&self) -> Option<&Arc<OwnedFd>> {
        self.terminal.as_ref().map(|terminal| &terminal.master)
    }

    /// Reads at least one byte and at most `limit`; nothing at the end of the stream.
    pub(crate) async fn read(&self, out: Out, limit: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; limit.clamp(1, 1 << 20)];
        let size = match (&self.terminal, out) {
            (Some(terminal), Out::Stdout) => terminal.read(&mut buffer).await?,
            // Both streams of a terminal come out of one end.
            (Some(_), Out::Stderr) => 0,
            (None, out) => {
                let stream = match out {
                    Out::Stdout => &self.stdout,
                    Out::Stderr => &self.stderr,
                };
                match stream.lock().await.as_mut() {
                    Some(pipe) => pipe.read(&mut buffer).await?,
                    None => 0,
                }
            }
        };
        buffer.truncate(size);
        Ok(buffer.into())
    }

    /// Writes all of `data` to standard input.
    pub(crate) async fn write(&self, data: &[u8]) -> io::Result<()> {
        if let Some(terminal) = &self.terminal {
            return terminal.write_all(data).await;
        }
        match self.stdin.lock().await.as_mut() {
            Some(pipe) => pipe.write_all(data).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends standard input. A terminal has no end of its own.
    pub(crate) async fn close_stdin(&self) {
        self.stdin.lock().await.take();
    }
}

impl Terminal {
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.lock().await.read(buffer).await {
            // A terminal whose last user left says so with EIO.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            result => result,
        }
    }

    async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        writer.write_all(data).await?;
        // The file hands writes to another thread; its errors show on the flush.
        writer.flush().await
    }
}

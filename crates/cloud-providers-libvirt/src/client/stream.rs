//! Uploads, and the console of a machine that boots.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cloud_providers::{OpContext, Result};
use uuid::Uuid;
use virt::{
    connect::Connect,
    domain::Domain,
    error::{Error as VirtError, ErrorDomain, ErrorNumber},
    storage_vol::StorageVol,
    stream::Stream,
    sys,
};
use zeroize::Zeroizing;

use super::{CallResult, Client, Failed, Step, Turn, step};

/// How much of a console is kept.
const RING: usize = 16 * 1024;
/// How often a console is read.
const REST: Duration = Duration::from_millis(50);
/// How much is sent at once: less than the largest message of libvirt's protocol.
const CHUNK: usize = 64 * 1024;

impl Client {
    /// Fills the volume that `find` finds with `bytes`.
    pub(crate) async fn upload(
        &self,
        ctx: &OpContext,
        step: Step,
        turn: &Turn,
        bytes: Arc<Zeroizing<Vec<u8>>>,
        find: impl Fn(&Connect) -> CallResult<StorageVol> + Send + Sync + 'static,
    ) -> std::result::Result<(), Failed> {
        let left = Arc::new(AtomicBool::new(false));
        let _leave = SetOnDrop(left.clone());
        self.transfer(ctx, step, turn, move |connection| {
            let volume = find(connection)?;
            let stream = Stream::new(connection, 0)?;
            volume.upload(&stream, 0, bytes.len() as u64, 0)?;
            match send(&stream, &bytes, &left) {
                Ok(true) => Ok(stream.finish()?),
                Ok(false) => {
                    let _ = stream.abort();
                    Ok(())
                }
                Err(error) => {
                    let _ = stream.abort();
                    Err(error.into())
                }
            }
        })
        .await
    }

    /// Opens the console of the domain with this UUID and keeps its last lines until the value is dropped.
    pub(crate) async fn console(&self, ctx: &OpContext, uuid: Uuid) -> Result<Console> {
        self.read(ctx, step("virDomainOpenConsole", "cannot open the console"), move |connection| {
            let domain = Domain::lookup_by_uuid(connection, uuid)?;
            let stream = Stream::new(connection, sys::VIR_STREAM_NONBLOCK)?;
            domain.open_console(None, &stream, 0)?;
            let console = Console::default();
            let (ring, closed) = (console.ring.clone(), console.closed.0.clone());
            let thread = std::thread::Builder::new().name("libvirt-console".into());
            thread.spawn(move || read_until_closed(stream, &ring, &closed)).map_err(|e| {
                cloud_providers::Error::internal("cannot start a console's thread").with_source(e)
            })?;
            Ok(console)
        })
        .await
    }
}

/// Sends everything, or stops when the caller has left; returns whether all was sent.
fn send(stream: &Stream, bytes: &[u8], left: &AtomicBool) -> std::result::Result<bool, VirtError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        if left.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let sent = stream.send(&rest[..rest.len().min(CHUNK)])?;
        rest = &rest[sent..];
    }
    Ok(true)
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Default for SetOnDrop {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }
}

/// The last part of what a machine wrote to its console.
#[derive(Default)]
pub(crate) struct Console {
    ring: Arc<Mutex<VecDeque<u8>>>,
    closed: SetOnDrop,
}

impl Console {
    /// Returns the last `lines` lines as plain text.
    pub(crate) fn tail(&self, lines: usize) -> Vec<String> {
        let bytes: Vec<u8> =
            self.ring.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        last_lines(&bytes, lines)
    }
}

fn read_until_closed(stream: Stream, ring: &Mutex<VecDeque<u8>>, closed: &AtomicBool) {
    let mut buffer = vec![0; 4096];
    while !closed.load(Ordering::SeqCst) {
        match stream.recv(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
                ring.extend(&buffer[..read]);
                let excess = ring.len().saturating_sub(RING);
                ring.drain(..excess);
            }
            Err(error) if would_block(&error) => std::thread::sleep(REST),
            // The machine or the connection ended; what was read stays.
            Err(_) => break,
        }
    }
    let _ = stream.abort();
}

/// Tells "nothing to read now" from an error: the wrapper makes an error without origin of it.
fn would_block(error: &VirtError) -> bool {
    error.domain() == ErrorDomain::None && error.code() == ErrorNumber::InternalError
}

/// Takes control characters and terminal sequences out and returns the last lines that say something.
fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            // CSI sequences end with a letter or one of `@[\]^_`{|}~`.
            '\u{1b}' if characters.peek() == Some(&'[') => {
                characters.next();
                for c in characters.by_ref() {
                    if ('\u{40}'..='\u{7e}').contains(&c) {
                        break;
                    }
                }
            }
            '\u{1b}' => {
                characters.next();
            }
            '\n' | '\r' => plain.push('\n'),
            '\t' => plain.push(' '),
            c if c.is_control() || c == char::REPLACEMENT_CHARACTER => {}
            c => plain.push(c),
        }
    }
    let lines: Vec<&str> = plain.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|l| (*l).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_tail_is_plain_text() {
        let text =
            b"\x1bc\x1b[?7l\x1b[2JSeaBIOS\r\n\r\n\x1b[1;31mpanic:\x1b[0m no \xffroot\x07\r\n  done\t1\r\n";
        assert_eq!(last_lines(text, 9), ["SeaBIOS", "panic: no root", "done 1"]);
        assert_eq!(last_lines(text, 1), ["done 1"]);
        assert!(last_lines(b"\x1b", 3).is_empty() && last_lines(b"\x1b[", 3).is_empty());
    }
}

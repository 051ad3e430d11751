//! Uploads, and the console of a machine that boots.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cloud_providers::{ConsoleTail, OpContext, Result};
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
/// How often it is read of a machine that has booted; libvirt keeps for us what comes meanwhile.
const LATE_REST: Duration = Duration::from_millis(500);
/// When that is.
const LATE: Duration = Duration::from_secs(60);
/// How long a console is read: a guest that has not come up by then has been given up by everybody.
const KEEP: Duration = Duration::from_secs(15 * 60);
/// Of how many machines it is kept; the oldest go first.
const KEPT: usize = 64;
/// How long what a console has to say is waited for, when it was not read from the beginning.
const LISTEN: Duration = Duration::from_millis(400);
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
    ///
    /// Whoever reads it already keeps it, unless `force` takes it away.
    pub(crate) async fn console(&self, ctx: &OpContext, uuid: Uuid, force: bool) -> Result<Console> {
        let flags = if force { sys::VIR_DOMAIN_CONSOLE_FORCE } else { 0 };
        self.read(ctx, step("virDomainOpenConsole", "cannot open the console"), move |connection| {
            let domain = Domain::lookup_by_uuid(connection, uuid)?;
            let stream = Stream::new(connection, sys::VIR_STREAM_NONBLOCK)?;
            domain.open_console(None, &stream, flags)?;
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
        self.end(RING).lines(lines).into_iter().map(|line| line.trim().to_owned()).collect()
    }

    /// Returns the last `limit` bytes as plain text.
    fn end(&self, limit: usize) -> ConsoleTail {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = ring.iter().copied().collect();
        let tail = ConsoleTail::new(&bytes, limit);
        if bytes.len() == RING { tail.with_more_before() } else { tail }
    }
}

/// Consoles of machines that were started here, read from their first byte: QEMU throws away what nobody reads.
#[derive(Default)]
pub(crate) struct Consoles(Mutex<VecDeque<(Uuid, Console)>>);

impl fmt::Debug for Consoles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Consoles").field(&self.lock().len()).finish()
    }
}

impl Consoles {
    /// Keeps one.
    pub(crate) fn keep(&self, uuid: Uuid, console: Console) {
        let mut kept = self.lock();
        kept.retain(|(known, _)| *known != uuid);
        kept.push_back((uuid, console));
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }

    /// Closes that of a machine that goes.
    pub(crate) fn forget(&self, uuid: Uuid) {
        self.lock().retain(|(known, _)| *known != uuid);
    }

    /// Returns the end of one that is kept.
    fn end(&self, uuid: Uuid, limit: usize) -> Option<ConsoleTail> {
        self.lock().iter().find(|(known, _)| *known == uuid).map(|(_, console)| console.end(limit))
    }

    /// Returns the end of the machine's console; of one that an earlier process started, what it says now.
    pub(crate) async fn read(
        &self,
        ctx: &OpContext,
        client: &Client,
        uuid: Uuid,
        limit: usize,
    ) -> Result<ConsoleTail> {
        if let Some(end) = self.end(uuid, limit) {
            return Ok(end);
        }
        // The process that started the machine, or its successor, may read it still.
        let console = client.console(ctx, uuid, true).await?;
        ctx.sleep(LISTEN).await?;
        Ok(console.end(limit).with_more_before())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Uuid, Console)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_until_closed(stream: Stream, ring: &Mutex<VecDeque<u8>>, closed: &AtomicBool) {
    let mut buffer = vec![0; 4096];
    let begun = Instant::now();
    while !closed.load(Ordering::SeqCst) && begun.elapsed() < KEEP {
        match stream.recv(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
                ring.extend(&buffer[..read]);
                let excess = ring.len().saturating_sub(RING);
                ring.drain(..excess);
            }
            Err(error) if would_block(&error) => {
                std::thread::sleep(if begun.elapsed() < LATE { REST } else { LATE_REST });
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_tail_is_plain_text() {
        let console = Console::default();
        let text = b"\x1bc\x1b[?7l\x1b[2JSeaBIOS\r\n\r\n\x1b[1;31mpanic:\x1b[0m no root\x07\r\n  done\t1\r\n";
        console.ring.lock().unwrap().extend(text);
        assert_eq!(console.tail(9), ["SeaBIOS", "panic: no root", "done 1"]);
        assert_eq!(console.tail(1), ["done 1"]);
        assert!(!console.end(99).is_cut() && console.end(9).is_cut());
    }

    #[test]
    fn consoles_of_the_machines_that_came_last_are_kept() {
        let consoles = Consoles::default();
        let uuid = |n: usize| Uuid::from_u128(n as u128);
        for n in 0..=KEPT {
            let console = Console::default();
            console.ring.lock().unwrap().extend(format!("machine {n}").bytes());
            consoles.keep(uuid(n), console);
        }
        assert!(consoles.end(uuid(0), 99).is_none());
        assert_eq!(consoles.end(uuid(KEPT), 99).unwrap().text(), format!("machine {KEPT}"));
        consoles.forget(uuid(KEPT));
        assert!(consoles.end(uuid(KEPT), 99).is_none());
    }
}

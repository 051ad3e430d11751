//! A bounded pool of threads that each own a connection.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cloud_providers::{Error, Result};
use virt::{connect::Connect, error::Error as VirtError};

/// The most threads, and with them connections, of one provider.
const WORKERS: usize = 4;
/// A silent connection is asked for a sign of life this often (seconds) and given up after [`KEEP_ALIVE_COUNT`]
/// silences, so a server that vanished is noticed within half a minute.
const KEEP_ALIVE_INTERVAL: i32 = 5;
const KEEP_ALIVE_COUNT: u32 = 5;

/// Work for a thread of the pool.
pub(super) type Job = Box<dyn FnOnce(&mut Line) + Send>;

/// The threads and their queue.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    uri: String,
    queue: Mutex<Queue>,
    ready: Condvar,
    /// Told when a thread ends.
    ended: Condvar,
    epoch: AtomicU64,
    connected: AtomicBool,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    workers: usize,
    closed: bool,
}

impl Pool {
    pub(super) fn new(uri: String) -> Self {
        Self(Arc::new(Shared {
            uri,
            queue: Mutex::default(),
            ready: Condvar::new(),
            ended: Condvar::new(),
            epoch: AtomicU64::new(0),
            connected: AtomicBool::new(false),
        }))
    }

    pub(super) fn uri(&self) -> &str {
        &self.0.uri
    }

    /// Counts the times that a connection was found broken: what was learnt before may be different now.
    pub(super) fn epoch(&self) -> u64 {
        self.0.epoch.load(Ordering::SeqCst)
    }

    /// Returns whether there was ever a connection.
    pub(super) fn was_connected(&self) -> bool {
        self.0.connected.load(Ordering::SeqCst)
    }

    /// Hands `job` to a thread, and starts one more when all are busy and there may be more.
    pub(super) fn submit(&self, job: Job) -> Result<()> {
        let mut queue = self.0.lock();
        if queue.closed {
            return Err(Error::internal("the provider was torn down and makes no more calls"));
        }
        queue.jobs.push_back(job);
        if queue.jobs.len() > queue.idle && queue.workers < WORKERS {
            let shared = self.0.clone();
            let thread = std::thread::Builder::new().name("libvirt-call".into());
            match thread.spawn(move || shared.work()) {
                Ok(_) => queue.workers += 1,
                // The other threads get to it.
                Err(_) if queue.workers > 0 => {}
                Err(error) => {
                    queue.jobs.pop_back();
                    return Err(
                        Error::internal("cannot start a thread for calls to libvirt").with_source(error)
                    );
                }
            }
        }
        drop(queue);
        self.0.ready.notify_one();
        Ok(())
    }

    /// Ends the threads and with them the connections. Calls under way are finished first.
    pub(super) fn close(&self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        drop(queue);
        self.0.ready.notify_all();
    }

    /// Waits until the threads have ended; returns whether they did within `limit`.
    pub(super) fn wait_closed(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut queue = self.0.lock();
        while queue.workers > 0 {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            queue = self.0.ended.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(self: Arc<Self>) {
        let mut line = Line { shared: self.clone(), open: None };
        loop {
            let mut queue = self.lock();
            let job = loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break Some(job);
                }
                if queue.closed {
                    break None;
                }
                queue.idle += 1;
                queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            };
            drop(queue);
            let Some(job) = job else { break };
            // A panic in one call ends neither the thread nor the others' calls; its caller sees the reply vanish.
            if catch_unwind(AssertUnwindSafe(|| job(&mut line))).is_err() {
                line.open = None;
            }
        }
        drop(line);
        let mut queue = self.lock();
        queue.workers -= 1;
        drop(queue);
        self.ended.notify_all();
    }
}

/// The connection of one thread, opened when it is first needed.
pub(super) struct Line {
    shared: Arc<Shared>,
    open: Option<Open>,
}

/// A connection and when it was opened. Dropping it closes it, which `Connect` alone does not do: each reconnect and each
/// thread that ends would leave a client of the server behind.
struct Open {
    connection: Connect,
    epoch: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        // One that is broken already is closed all the same.
        let _ = self.connection.close();
    }
}

impl Line {
    /// Returns a connection that is alive as far as one can tell without asking the server.
    pub(super) fn connection(&mut self) -> Result<&Connect, VirtError> {
        if !self.is_alive() {
            self.hang_up();
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let connection = Connect::open(Some(&self.shared.uri))?;
                // Drivers without a server between have no such thing.
                let _ = connection.set_keep_alive(KEEP_ALIVE_INTERVAL, KEEP_ALIVE_COUNT);
                self.shared.connected.store(true, Ordering::SeqCst);
                Open { connection, epoch: self.shared.epoch.load(Ordering::SeqCst) }
            }
        };
        Ok(&self.open.insert(open).connection)
    }

    /// Returns whether the connection is there and not known to be broken.
    pub(super) fn is_alive(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.connection.is_alive().unwrap_or(false))
    }

    /// Drops the connection. Several that broke together count once.
    pub(super) fn hang_up(&mut self) {
        if let Some(open) = self.open.take() {
            let epoch = open.epoch;
            let _ = self.shared.epoch.compare_exchange(epoch, epoch + 1, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}

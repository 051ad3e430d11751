//! Threads for sandboxes: each carries the connections of a few, and no task of theirs ever moves to another.
//!
//! Within one thread no task has to wake another processor, which costs more than forwarding a small message does. And
//! the kernel gives a thread that was idle its turn at once, so that a busy sandbox hardly delays those of other threads.

use std::io;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The fewest threads at the most. More keep sandboxes further apart, and each takes memory of its own.
const LEAST: usize = 8;

/// What runs on a thread has shallow stacks, and memory that is not touched costs nothing.
const STACK: usize = 512 << 10;

/// The files of sandboxes are looked at when a container is made.
const BLOCKING: usize = 4;

/// The threads of a gateway, started as they are needed.
#[derive(Debug)]
pub(crate) struct Threads {
    most: usize,
    started: Mutex<Vec<Weak<OwnThread>>>,
}

impl Default for Threads {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, NonZero::get);
        Self { most: processors.max(LEAST), started: Mutex::default() }
    }
}

impl Threads {
    /// Returns a new thread, or the one with the fewest sandboxes once there are enough. It ends with its last holder.
    ///
    /// # Errors
    ///
    /// When the system gives no thread, or no descriptors for its events.
    pub(crate) fn take(&self) -> io::Result<Arc<OwnThread>> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.retain(|thread| thread.strong_count() > 0);
        if started.len() >= self.most
            && let Some(thread) = started.iter().min_by_key(|thread| thread.strong_count())
            && let Some(thread) = thread.upgrade()
        {
            return Ok(thread);
        }
        let thread = Arc::new(OwnThread::start()?);
        started.push(Arc::downgrade(&thread));
        Ok(thread)
    }
}

/// A thread with a runtime of its own, which ends with the value. Tasks that are left then are dropped.
#[derive(Debug)]
pub(crate) struct OwnThread {
    handle: Handle,
    _stop: DropGuard,
}

impl OwnThread {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        std::thread::Builder::new().name("sandboxes".to_owned()).stack_size(STACK).spawn(move || {
            runtime.block_on(stopped.cancelled());
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _stop: stop.drop_guard() })
    }

    /// Where tasks are started.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_run_on_the_thread_and_end_with_it() {
        let own = Threads::default().take().unwrap();
        let name = own.handle().spawn(async { std::thread::current().name().map(str::to_owned) }).await;
        assert_eq!(name.unwrap().as_deref(), Some("sandboxes"));
        let forever = own.handle().spawn(std::future::pending::<()>());
        drop(own);
        assert!(forever.await.unwrap_err().is_cancelled());
    }

    #[test]
    fn sandboxes_are_spread_evenly_over_so_many_threads() {
        let threads = Threads { most: 2, started: Mutex::default() };
        let taken: Vec<_> = (0..6).map(|_| threads.take().unwrap()).collect();
        for thread in &taken[..2] {
            assert_eq!(Arc::strong_count(thread), 3);
        }
        drop(taken);
        let (one, two) = (threads.take().unwrap(), threads.take().unwrap());
        assert!(!Arc::ptr_eq(&one, &two), "threads that ended leave room for new ones");
    }
}

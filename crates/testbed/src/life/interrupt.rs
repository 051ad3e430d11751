//! Ctrl-C: the first time what is under way is undone and saved, the second time the program ends at once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

use cloud_providers::CancellationToken;
use tokio::signal::unix::{SignalKind, signal};

/// Watches for the signals that ask a program to end.
#[derive(Clone, Debug)]
pub struct Interrupt {
    signal: Arc<AtomicI32>,
}

impl Interrupt {
    /// Starts to watch: the first SIGINT, SIGTERM or SIGHUP cancels `token` and calls `told` with the signal's name, the
    /// second ends the process.
    ///
    /// # Errors
    ///
    /// When the system refuses the handlers.
    pub fn watch(token: CancellationToken, told: impl Fn(&str) + Send + 'static) -> io::Result<Self> {
        let mut int = signal(SignalKind::interrupt())?;
        let mut term = signal(SignalKind::terminate())?;
        let mut hup = signal(SignalKind::hangup())?;
        let this = Self { signal: Arc::default() };
        let seen = this.signal.clone();
        tokio::spawn(async move {
            loop {
                let (name, number) = tokio::select! {
                    _ = int.recv() => ("SIGINT", 2),
                    _ = term.recv() => ("SIGTERM", 15),
                    _ = hup.recv() => ("SIGHUP", 1),
                };
                if seen.swap(number, Ordering::SeqCst) != 0 {
                    // The state was written at every step, so that nothing is lost that was known.
                    std::process::exit(128 + number);
                }
                told(name);
                token.cancel();
            }
        });
        Ok(this)
    }

    /// Returns the number of the signal that came.
    pub fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|number| *number != 0)
    }
}

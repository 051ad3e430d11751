//! The signals that ask a task to end.

use anyhow::{Context as _, Error, Result, anyhow};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Watches from its making on, so that a task which makes it before anything else leaves nothing behind: a signal
/// that comes while nobody waits is told to the next one who does.
#[derive(Debug)]
pub(crate) struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    /// Begins to watch. The signals no longer end the process by themselves.
    ///
    /// # Errors
    ///
    /// When the system refuses a handler.
    pub(crate) fn watch(runtime: &Runtime) -> Result<Self> {
        let _guard = runtime.enter();
        let watch = |kind| signal(kind).context("cannot watch for signals");
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal and returns what to say of it.
    pub(crate) async fn told(&mut self) -> Error {
        tokio::select! {
            _ = self.interrupt.recv() => anyhow!("interrupted"),
            _ = self.terminate.recv() => anyhow!("told to end"),
            _ = self.hangup.recv() => anyhow!("the terminal is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_signal_that_comes_before_anybody_waits_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut ends = Ends::watch(&runtime).unwrap();
        for (signal, said) in [
            (nix::sys::signal::Signal::SIGINT, "interrupted"),
            (nix::sys::signal::Signal::SIGTERM, "told to end"),
            (nix::sys::signal::Signal::SIGHUP, "the terminal is gone"),
        ] {
            nix::sys::signal::raise(signal).unwrap();
            let told = async { tokio::time::timeout(Duration::from_secs(5), ends.told()).await };
            assert_eq!(runtime.block_on(told).unwrap().to_string(), said);
        }
    }
}

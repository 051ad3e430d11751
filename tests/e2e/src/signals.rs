//! The signals that ask the program to end: the machine is given back first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Whether the program was told to end.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<AtomicBool>);

impl Told {
    /// Watches from now on: interrupt, terminate and hang-up no longer end the process by themselves. A terminal sends
    /// them to the programs that this one waits for, too.
    ///
    /// # Errors
    ///
    /// When the system refuses a handler or a thread.
    pub fn watch() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let watch = |kind| signal(kind).context("cannot watch for signals");
        let mut interrupt = watch(SignalKind::interrupt())?;
        let mut terminate = watch(SignalKind::terminate())?;
        let mut hangup = watch(SignalKind::hangup())?;
        drop(guard);
        let told = Self::default();
        let flag = told.clone();
        let wait = move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    flag.0.store(true, Ordering::Relaxed);
                }
            });
        };
        thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
        Ok(told)
    }

    /// Lets work begin as long as nobody asked for the end.
    ///
    /// # Errors
    ///
    /// When somebody did.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("told to end");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_signal_is_told_and_ends_nothing_by_itself() {
        let told = Told::watch().unwrap();
        told.check().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        test_support::wait_for("the signal", Duration::from_secs(10), || told.check().is_err().then_some(()))
            .unwrap();
    }
}

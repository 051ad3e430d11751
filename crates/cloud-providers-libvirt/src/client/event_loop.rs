//! The one thread that runs libvirt's event loop.

use std::sync::OnceLock;

use cloud_providers::{Error, ErrorKind, Result};

/// Loads libvirt and starts the thread, once for the whole process and before any connection is opened.
///
/// libvirt sends and answers keep-alive messages from this loop, so a connection opened before it would never notice
/// that its other end is gone.
///
/// # Errors
///
/// When the library of libvirt cannot be loaded, the loop not be registered or the thread not be started; every later
/// call returns the same error.
pub(crate) fn start() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            super::library::load()?;
            // Otherwise the library prints every error to the standard error of the program.
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl().map_err(|e| {
                crate::error::virt_error(
                    "virEventRegisterDefaultImpl",
                    "cannot register the event loop of libvirt",
                    &e,
                )
            })?;
            let run = || {
                loop {
                    if let Err(error) = virt::event::event_run_default_impl() {
                        tracing::warn!(provider = crate::NAME, %error, "the event loop of libvirt failed once");
                        // A loop that fails at every turn must not take a whole processor.
                        std::thread::sleep(std::time::Duration::from_millis(100));
                    }
                }
            };
            std::thread::Builder::new().name("libvirt-events".into()).spawn(run).map(drop).map_err(|e| {
                Error::new(ErrorKind::Internal, "cannot start the thread of libvirt's events").with_source(e)
            })
        })
        .clone()
}

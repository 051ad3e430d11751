//! The conformance suite on real machines of a real libvirtd, as root.
//!
//! Two libvirtd take turns with the cases, so that two run at a time. Their machines are boot sectors that ask for an
//! address, since a whole system would make the suite ten times as long.

mod account;
#[path = "../common/mod.rs"]
mod common;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers_conformance::{Harness, Obstacle, Suite};

use crate::{account::Account, common::Setup};

/// How many libvirtd there are, and with them cases at a time. More machines than processors only wait for each other.
const AT_ONCE: usize = 2;

fn main() -> ExitCode {
    let free: Arc<Mutex<Vec<Setup>>> = Arc::default();
    let suite = Suite::new("libvirt")
        .allowed_skips(include_str!("../conformance-skips.toml"))
        .at_once(AT_ONCE)
        .case_limit(Duration::from_secs(240));
    let setups = free.clone();
    let code = suite.main(move |case| {
        let free = setups.clone();
        async move {
            let waiting = free.lock().expect("nobody panics with the lock").pop();
            let setup = match waiting {
                Some(setup) => setup,
                None => tokio::task::spawn_blocking(Setup::start)
                    .await
                    .map_err(|e| Obstacle::failed(e.to_string()))?
                    .map_err(|e| Obstacle::failed(format!("{e:#}")))?,
            };
            Ok(Arc::new(Account::new(case, setup, free)) as Arc<dyn Harness>)
        }
    });
    // Ends them in order: `main` does not return to drop what is left behind by threads.
    free.lock().expect("nobody panics with the lock").clear();
    code
}

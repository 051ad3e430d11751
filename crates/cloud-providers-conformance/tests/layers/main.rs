//! The suite on the scripted provider with every layer around it: what a program uses keeps every rule as well.

#[path = "../support/mod.rs"]
mod support;

use std::{process::ExitCode, sync::Arc, time::Duration};

use cloud_providers::layers::{LayerSettings, NoObserver, Timeouts, standard};
use cloud_providers_conformance::Harness;

use crate::support::{InMemory, suite};

fn main() -> ExitCode {
    suite().allowed_skips(include_str!("../conformance-skips.toml")).main(|_| async {
        let mut account = InMemory::new();
        account.dress = |provider, _| {
            // Within what the suite waits for.
            let limits = Timeouts::default().with_create(Duration::from_secs(600));
            let settings = LayerSettings::default().with_timeouts(limits);
            standard("scripted", provider, &settings, Arc::new(NoObserver))
        };
        Ok(Arc::new(account) as Arc<dyn Harness>)
    })
}

//! The suite on the scripted provider, whose remote calls all fail, hang and lose their replies.

#[path = "../support/mod.rs"]
mod support;

use std::{process::ExitCode, sync::Arc};

use cloud_providers_conformance::Harness;

use crate::support::{InMemory, suite};

fn main() -> ExitCode {
    suite()
        .allowed_skips(include_str!("../conformance-skips.toml"))
        .main(|_| async { Ok(Arc::new(InMemory::new()) as Arc<dyn Harness>) })
}

//! The conformance suite on real namespaces, as root, each case in a network namespace and a data folder of its own.
//!
//! The program is also the first program of the instances (`guest`).

#[path = "../instances/guest.rs"]
mod guest;
mod harness;
#[path = "../instances/setup.rs"]
#[expect(dead_code, reason = "what it shares with the program `instances` is more than it needs")]
mod setup;

use std::{process::ExitCode, sync::Arc};

use cloud_providers_conformance::{Harness, Suite};

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|a| a == guest::ROLE) {
        guest::main();
    }
    Suite::new("local")
        .allowed_skips(include_str!("../conformance-skips.toml"))
        .main(|_| async { Ok(Arc::new(harness::Local::new()?) as Arc<dyn Harness>) })
}

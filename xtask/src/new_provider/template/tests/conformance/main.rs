//! The conformance suite over the real calls, against an emulator or an account of tests.

mod account;

use std::{process::ExitCode, sync::Arc};

use cloud_providers_conformance::{Harness, Suite};

use crate::account::Account;

fn main() -> ExitCode {
    Suite::new(cloud_providers___ident__::NAME)
        .at_once(4)
        .allowed_skips(include_str!("../conformance-skips.toml"))
        .main(|_case| async { Ok(Arc::new(Account::begin().await?) as Arc<dyn Harness>) })
}

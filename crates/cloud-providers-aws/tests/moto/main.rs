//! The conformance suite over the vendor's SDK, against the emulator moto behind a proxy that behaves as EC2 where moto does
//! not. The page docs/providers/aws.md says what that proves and what it does not.

mod account;
mod faulty;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cloud_providers_conformance::{Harness, Suite};
use test_support::Moto;

use crate::account::Account;

/// With this variable a run has the cases of [`SHORT`] alone: the emulator answers one question at a time, and the whole
/// suite takes ten minutes.
const SHORT_VARIABLE: &str = "CLOUD_PROVIDERS_SHORT_CONFORMANCE";

/// One case at least of each group of rules, of those that ask an account tens of times and not hundreds of times.
const SHORT: &[&str] = &[
    "create/idempotent",
    "create/lost-reply-gives-one",
    "create/records-before-next-call",
    "create/foreign-name-is-conflict",
    "delete/missing-is-ok",
    "delete/no-leftovers",
    "delete/volumes-stay",
    "delete/foreign-is-refused",
    "delete/recorded-name-is-accepted",
    "list/says-when-incomplete",
    "list/other-scopes-are-not-shown",
    "release/nothing-is-ok",
    "tags/plain-values",
    "teardown/instances-stay",
    "verify/changes-nothing",
    "waits/cancellable",
];

fn main() -> ExitCode {
    // One server for all cases, and an account of its own for each: an emulator takes seconds to start.
    let moto = match Moto::start() {
        Ok(moto) => moto,
        Err(error) => {
            eprintln!("the emulator does not start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let url = moto.url();
    let cases = if std::env::var_os(SHORT_VARIABLE).is_some() { SHORT } else { &[] };
    let suite = Suite::new(cloud_providers_aws::NAME)
        .only(cases.iter().copied())
        .at_once(4)
        // Calls that hang are given up one after the other, each after its own limit.
        .case_limit(Duration::from_secs(1500))
        .allowed_skips(include_str!("../moto-skips.toml"));
    let done = suite.main(move |case| {
        // These let every call of every operation hang, for as long as a call may take: an hour by a real clock.
        let hangs = !case.starts_with("waits/");
        let url = url.clone();
        async move { Ok(Arc::new(Account::begin(&url, hangs).await?) as Arc<dyn Harness>) }
    });
    drop(moto);
    done
}

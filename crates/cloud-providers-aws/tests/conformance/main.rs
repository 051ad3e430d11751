//! The conformance suite over EC2 in memory, once for each way in which an instance comes to be.

mod account;

use std::{process::ExitCode, sync::Arc};

use cloud_providers_conformance::{Harness, Suite};
use tokio::runtime::Builder;

use crate::account::{Account, Kind};

fn main() -> ExitCode {
    let plain = include_str!("../conformance-skips.toml");
    let waiting = include_str!("../conformance-skips-waiting.toml");
    let mut worst = ExitCode::SUCCESS;
    for (kind, skips) in [(Kind::Plain, plain), (Kind::Public, waiting), (Kind::Parts, waiting)] {
        println!("instances of kind {kind:?}");
        let suite = Suite::new(cloud_providers_aws::NAME)
            .at_once(2)
            .runtime(|| Builder::new_current_thread().enable_all().start_paused(true).build())
            .allowed_skips(skips);
        let done = suite.main(move |case| async move {
            // After a launch that says everything no call is left that could fail and be undone.
            let kind = if case == "create/leftovers-are-told" { Kind::Parts } else { kind };
            Ok(Arc::new(Account::new(kind)) as Arc<dyn Harness>)
        });
        if done != ExitCode::SUCCESS {
            worst = done;
        }
    }
    worst
}

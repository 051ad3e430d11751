//! Whatever happens in whatever order: a destroy at the end leaves nothing.

use cloud_providers::{
    CancellationToken, Error, ErrorKind,
    scripted::{Fault, Lag},
};
use proptest::prelude::*;

use crate::setup::User;

#[derive(Clone, Debug)]
enum Step {
    Init(usize),
    Destroy,
    /// The next commands meet this: the n-th call fails, is lost, or never ends and the command is killed.
    Fault(u64, u8),
    /// The environment's folder is removed.
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..5).prop_map(Step::Init),
        1 => Just(Step::Destroy),
        4 => (1u64..40, 0u8..4).prop_map(|(nth, how)| Step::Fault(nth, how)),
        1 => Just(Step::Forget),
    ]
}

async fn play(steps: Vec<Step>, lag: u64) -> Result<(), TestCaseError> {
    let mut user = User::new();
    user.world.set_lag(Lag::calls(lag));
    let mut kill = CancellationToken::new();
    for step in &steps {
        match step {
            Step::Init(machines) => {
                tokio::select! {
                    result = user.init(*machines) => if result.is_ok() {
                        let there = user.there();
                        for n in 1..=*machines {
                            prop_assert_eq!(there.get(&format!("node-{n}")), Some(&1), "{:?}", there);
                        }
                    },
                    () = kill.cancelled() => kill = CancellationToken::new(),
                }
            }
            Step::Destroy => {
                tokio::select! {
                    result = user.destroy() => if result.is_ok() {
                        prop_assert!(user.is_empty(), "{:?}", user.world.resources());
                    },
                    () = kill.cancelled() => kill = CancellationToken::new(),
                }
            }
            Step::Fault(nth, how) => {
                let fault = Fault::on_call(*nth);
                user.world.script(match how {
                    0 => fault.before(Error::new(ErrorKind::Permission, "no")),
                    1 => fault.lost_reply(),
                    2 => fault.hang_before().telling(kill.clone()),
                    _ => fault.hang_after().telling(kill.clone()),
                });
            }
            // What nobody remembers and no list shows yet cannot be found; a cloud whose lists are late needs its state.
            Step::Forget if lag == 0 => user = user.forgetful(),
            Step::Forget => {}
        }
    }
    user.world.clear_faults();
    user.destroy().await.map_err(|e| TestCaseError::fail(e.report()))?;
    prop_assert!(user.is_empty(), "{:?}", user.world.resources());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]
    #[test]
    fn a_destroy_leaves_nothing_whatever_was_before(
        steps in proptest::collection::vec(step(), 1..12),
        lag in 0u64..3,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(steps, lag))?;
    }
}

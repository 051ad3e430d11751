//! A storm over EC2's emulator leaves nothing, and a quiet run makes no more calls than are meant.

use storm::{Aws, Options, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_over_the_sdk_leaves_nothing() {
    let options = Options::storm(40);
    let sky = Aws::start(&options).await.unwrap();
    let report = run(&sky, &options).await.unwrap();
    assert_eq!(report.problems(), [""; 0], "{report}");
    // The faults were there: each try of a call that failed is one more call.
    assert!(report.create_calls["RunInstances"] > 40, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_run_makes_no_more_calls_than_are_meant() {
    let options = Options::quiet(30);
    let sky = Aws::start(&options).await.unwrap();
    let report = run(&sky, &options).await.unwrap();
    assert_eq!(report.quiet_problems(), [""; 0], "{report}");
}

//! A storm over the scripted cloud leaves nothing, and is noticed where it does.

use storm::{Options, Scripted, Sky as _, run};

#[tokio::test(start_paused = true)]
async fn a_storm_over_the_scripted_provider_leaves_nothing() {
    let sky = Scripted::new();
    let report = run(&sky, &Options::storm(60)).await.unwrap();
    assert_eq!(report.problems(), [""; 0], "{report}");
    // A few may give up after many tries in a row; they leave nothing either.
    assert!(report.failed <= 3, "{report}");
    // The faults were there.
    assert!(report.create_calls_per_pod() > 1.2 && report.peak_per_second > 0, "{report}");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_told() {
    let sky = Scripted::new();
    // Nobody gets through: deleting gives up at its limit, and what was made stays.
    let mut options = Options::storm(5);
    options.throttled = 0.0;
    options.faults = 0.0;
    let calm = run(&sky, &options).await.unwrap();
    assert_eq!((calm.created, calm.leftovers.len()), (5, 0));
    options.faults = 1.0;
    options.limit = std::time::Duration::from_secs(60);
    let lost = run(&sky, &options).await.unwrap();
    assert_eq!(lost.created, 0, "{lost}");
    assert!(lost.problems().iter().any(|problem| problem.contains("not one")), "{lost}");
    assert!(sky.calls().values().sum::<u64>() > 0);
}

//! How many calls, and of which kind.

use std::time::Duration;

use cloud_providers::{ErrorKind, InstanceId, OpContext};
use cloud_providers_aws::scripted::Fault;
use futures_util::future::join_all;

use crate::setup::*;

#[tokio::test(start_paused = true)]
async fn a_plain_create_is_two_calls_and_a_plain_delete_asks_and_terminates() {
    let (world, provider) = fixture(&[]).await;
    let instance = create(&provider, &request("u1")).await.unwrap();
    assert_eq!(world.operations(), ["DescribeInstances", "RunInstances"]);
    world.clear_calls();
    delete(&provider, &instance).await.unwrap();
    let calls = world.operations();
    assert_eq!(calls[..2], ["DescribeInstances", "TerminateInstances"]);
    assert!(calls[2..].iter().all(|c| *c == "DescribeInstances"), "{calls:?}");
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_pods_that_wait_share_their_questions() {
    let (world, provider) = fixture(&[("USE_PUBLIC_IP", "true")]).await;
    world.set_boot_time(Duration::from_secs(10));
    let requests: Vec<_> = (0..100).map(|n| request(&format!("unit-{n}"))).collect();
    let made = join_all(requests.iter().map(|r| create(&provider, r))).await;
    let made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
    // One look for each token, and one question a second for all.
    let questions = count(&world, "DescribeInstances") - 100;
    assert!((9..=14).contains(&questions), "{questions}");
    world.clear_calls();
    let gone = join_all(made.iter().map(|i| delete(&provider, i))).await;
    assert!(gone.iter().all(Result::is_ok), "{gone:?}");
    assert_eq!(count(&world, "TerminateInstances"), 100);
    let questions = count(&world, "DescribeInstances");
    assert!(questions <= 8, "{questions}");
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn throttling_makes_nothing_and_says_when_to_come_again() {
    let (world, provider) = fixture(&[]).await;
    world.script(Fault::on("RunInstances").code("RequestLimitExceeded"));
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Throttled);
    assert!(error.leftovers().is_empty());
    create(&provider, &request("u1")).await.unwrap();
    assert_eq!(of_kind(&world, "instance").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_console_is_read_of_types_that_tell_it_late_and_of_no_instance_that_is_gone() {
    let (world, provider) = fixture(&[]).await;
    let instance = create(&provider, &request("u1")).await.unwrap();
    let read = async || provider.console(&OpContext::new(), &instance.id, 4096).await;
    world.set_console("one\r\n\x1b[31mtwo\n", true);
    assert_eq!(read().await.unwrap().lines(5), ["one", "two"]);
    assert!(!read().await.unwrap().is_cut());
    world.set_console("early\n", false);
    assert_eq!(read().await.unwrap().text(), "early\n");
    // EC2 keeps no more than this, so there was more.
    world.set_console("x".repeat(64 * 1024), true);
    assert!(provider.console(&OpContext::new(), &instance.id, 1 << 20).await.unwrap().is_cut());
    delete(&provider, &instance).await.unwrap();
    for id in [instance.id.as_str(), "i-0123456789abcdef0", "vm-7"] {
        let error = provider.console(&OpContext::new(), &InstanceId::new(id), 100).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::NotFound, "{id}");
    }
    world.script(Fault::on("GetConsoleOutput").code("UnauthorizedOperation"));
    let other = create(&provider, &request("u2")).await.unwrap();
    let error = provider.console(&OpContext::new(), &other.id, 100).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Permission);
    delete(&provider, &other).await.unwrap();
}

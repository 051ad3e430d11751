//! Deletions.

use std::time::Duration;

use cloud_providers::{ErrorKind, InstanceId, OpContext, Ownership};
use cloud_providers_aws::scripted::Fault;

use crate::setup::*;

const PUBLIC: (&str, &str) = ("USE_PUBLIC_IP", "true");

#[tokio::test(start_paused = true)]
async fn a_missing_instance_is_deleted() {
    let (_, provider) = fixture(&[]).await;
    for id in ["i-0123456789abcdef0", "vm-7", ""] {
        provider.delete_instance(&OpContext::new(), &InstanceId::new(id), &ours()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_returns_when_ec2_says_terminated() {
    let (world, provider) = fixture(&[]).await;
    world.set_shutdown_time(Duration::from_secs(30));
    let instance = create(&provider, &request("u1")).await.unwrap();
    let start = tokio::time::Instant::now();
    delete(&provider, &instance).await.unwrap();
    assert!((30..35).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_was_not_released_is_found_by_the_repetition() {
    let (world, provider) = fixture(&[PUBLIC]).await;
    for forgotten in [false, true] {
        let instance = create(&provider, &two_networks("u1")).await.unwrap();
        world.script(Fault::on("ReleaseAddress").code("UnauthorizedOperation"));
        let error = delete(&provider, &instance).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Permission);
        assert_eq!(error.leftovers().iter().map(|r| r.kind.as_str()).collect::<Vec<_>>(), ["address"]);
        assert!(of_kind(&world, "instance").is_empty() && of_kind(&world, "address").len() == 1);
        if forgotten {
            world.forget(instance.id.as_str());
        }
        delete(&provider, &instance).await.unwrap();
        assert_nothing_is_left(&world);
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_ec2_does_not_show_yet_is_deleted_all_the_same() {
    let (world, provider) = fixture(&[]).await;
    world.set_lag(Duration::from_secs(4));
    let instance = create(&provider, &request("u1")).await.unwrap();
    delete(&provider, &instance).await.unwrap();
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn what_the_existing_programs_made_goes_by_its_recorded_name() {
    let (world, provider) = fixture(&[]).await;
    let id = world.add_instance("podvm-web-01234567", &[]);
    world.add_interface(&id, 1, &[("Name", &format!("nic-{id}"))]);
    world.add_address(&id, &[("Name", &format!("eip-{id}"))]);
    world.add_address(&id, &[("Name", "somebody's")]);
    let (ctx, id) = (OpContext::new(), InstanceId::new(id));
    for refused in [ours(), Ownership::Recorded { name: "podvm-web-89abcdef".into() }] {
        let error = provider.delete_instance(&ctx, &id, &refused).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Permission);
    }
    let recorded = Ownership::Recorded { name: "podvm-web-01234567".into() };
    provider.delete_instance(&ctx, &id, &recorded).await.unwrap();
    let left = world.things();
    assert!(left.len() == 1 && left[0].kind == "address" && left[0].tags["Name"] == "somebody's", "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn lists_go_over_pages_of_everything_and_say_when_one_is_missing() {
    let (world, provider) = fixture(&[PUBLIC]).await;
    world.set_page_size(1);
    for unit in ["u1", "u2", "u3"] {
        create(&provider, &two_networks(unit)).await.unwrap();
    }
    let list = provider.list_owned(&OpContext::new(), &scope()).await.unwrap();
    assert!(list.complete && list.entries.len() == 3);
    for entry in &list.entries {
        let kinds: Vec<&str> = entry.resources.iter().map(|r| r.kind.as_str()).collect();
        for kind in ["instance", "network_interface", "address", "volume"] {
            assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
        }
        assert!(entry.token.is_some() && entry.created_unix.is_some());
    }
    world.script(Fault::on("DescribeAddresses").code("UnauthorizedOperation"));
    let list = provider.list_owned(&OpContext::new(), &scope()).await.unwrap();
    assert!(!list.complete && list.entries.len() == 3);
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_a_template_lets_stay_goes_all_the_same_and_a_foreign_one_stays() {
    let (world, provider) = fixture(&[]).await;
    for by_release in [false, true] {
        let instance = create(&provider, &request("u1")).await.unwrap();
        world.let_interfaces_stay(instance.id.as_str());
        let foreign = world.add_interface(instance.id.as_str(), 3, &[("owner", "somebody")]);
        match by_release {
            false => delete(&provider, &instance).await.unwrap(),
            true => provider.release(&OpContext::new(), &request("u1").token).await.unwrap(),
        }
        assert_nothing_is_left(&world);
        assert!(of_kind(&world, "network_interface").iter().any(|i| i.id == foreign));
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_be_terminated_keeps_its_volumes() {
    let (world, provider) = fixture(&[]).await;
    let volume = world.add_volume("zone-a", false);
    let mut wanted = request("u1");
    wanted.spec.volumes = vec![cloud_providers::VolumeRequest::new(&volume)];
    let instance = create(&provider, &wanted).await.unwrap();
    world.deny(&["TerminateInstances"]);
    let error = delete(&provider, &instance).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Permission);
    assert_eq!(world.user_volumes(), [(volume, Some(instance.id.as_str().to_owned()))]);
}

#[tokio::test(start_paused = true)]
async fn a_delete_during_a_create_leaves_nothing() {
    let (world, provider) = fixture(&[PUBLIC]).await;
    let launched = cloud_providers::CancellationToken::new();
    world.script(Fault::on("DescribeInstances").nth(2).telling(launched.clone()));
    let wanted = two_networks("u1");
    let remove = async {
        launched.cancelled().await;
        let id = of_kind(&world, "instance")[0].id.clone();
        provider.delete_instance(&OpContext::new(), &InstanceId::new(id), &ours()).await
    };
    let (made, removed) = tokio::join!(create(&provider, &wanted), remove);
    made.unwrap();
    removed.unwrap();
    assert_nothing_is_left(&world);
}

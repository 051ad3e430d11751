//! Volumes of the user.

use std::time::Duration;

use cloud_providers::{CreateRequest, ErrorKind, VolumeRequest};
use cloud_providers_aws::scripted::Fault;

use crate::setup::*;

fn with_volumes(unit: &str, volumes: &[&String]) -> CreateRequest {
    let mut request = request(unit);
    request.spec.volumes = volumes.iter().map(|id| VolumeRequest::new(*id)).collect();
    request
}

#[tokio::test(start_paused = true)]
async fn volumes_are_attached_side_by_side_and_free_at_the_end() {
    let (world, provider) = fixture(&[]).await;
    let volumes: Vec<String> = (0..4).map(|_| world.add_volume("zone-a", false)).collect();
    world.set_latency(Duration::from_secs(1));
    world.set_boot_time(Duration::ZERO);
    let start = tokio::time::Instant::now();
    let wanted = with_volumes("u1", &volumes.iter().collect::<Vec<_>>());
    let instance = create(&provider, &wanted).await.unwrap();
    // Look, volumes, launch, running, attach, attached: one after the other they would take four times as long.
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    let holder = Some(instance.id.as_str().to_owned());
    assert!(world.user_volumes().iter().all(|(_, of)| *of == holder));
    delete(&provider, &instance).await.unwrap();
    let after = world.user_volumes();
    assert!(after.len() == 4 && after.iter().all(|(_, of)| of.is_none()), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_decides_the_zone_and_one_that_is_nowhere_near_is_refused_before_the_launch() {
    let (world, provider) = fixture(&[("AWS_SUBNET_ID", "subnet-a,subnet-b")]).await;
    let (b, c) = (world.add_volume("zone-b", false), world.add_volume("zone-c", false));
    let instance = create(&provider, &with_volumes("u1", &[&b])).await.unwrap();
    let launch = world.launch_of(instance.id.as_str()).unwrap();
    assert_eq!(launch.interfaces[0].subnet.as_deref(), Some("subnet-b"));
    world.clear_calls();
    let used = b.clone();
    let missing = "vol-00000000".to_owned();
    for (volumes, part) in [
        (vec![&c], "zone-c"),
        (vec![&b, &c], "different zones"),
        (vec![&used], "in-use of i-"),
        (vec![&missing], "InvalidVolume.NotFound"),
    ] {
        let error = create(&provider, &with_volumes("u2", &volumes)).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(part), "{part} is not in {error}");
    }
    assert_eq!(count(&world, "RunInstances"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_several_instances_counts_as_attached_only_when_this_one_has_it() {
    let (world, provider) = fixture(&[]).await;
    let shared = world.add_volume("zone-a", true);
    let first = create(&provider, &with_volumes("u1", &[&shared])).await.unwrap();
    world.clear_calls();
    let second = create(&provider, &with_volumes("u2", &[&shared])).await.unwrap();
    assert_eq!(count(&world, "AttachVolume"), 1);
    delete(&provider, &first).await.unwrap();
    assert_eq!(world.user_volumes(), [(shared.clone(), Some(second.id.as_str().to_owned()))]);
    delete(&provider, &second).await.unwrap();
    assert_eq!(world.user_volumes(), [(shared, None)]);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_be_attached_leaves_no_instance_and_no_attachment() {
    let (world, provider) = fixture(&[]).await;
    let volumes: Vec<String> = (0..2).map(|_| world.add_volume("zone-a", false)).collect();
    world.script(Fault::on("AttachVolume").nth(2).code("AttachmentLimitExceeded"));
    let wanted = with_volumes("u1", &volumes.iter().collect::<Vec<_>>());
    let error = create(&provider, &wanted).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Quota);
    assert!(error.leftovers().is_empty(), "{error:?}");
    assert_nothing_is_left(&world);
    assert!(world.user_volumes().iter().all(|(_, of)| of.is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_an_attachment_is_no_foreign_attachment() {
    let (world, provider) = fixture(&[]).await;
    let volume = world.add_volume("zone-a", false);
    world.script(Fault::on("AttachVolume").lost_reply());
    let instance = create(&provider, &with_volumes("u1", &[&volume])).await.unwrap();
    assert_eq!(world.user_volumes(), [(volume, Some(instance.id.as_str().to_owned()))]);
}

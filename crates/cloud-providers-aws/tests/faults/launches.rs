//! Launches: what they say, what becomes of them, and that there is one.

use std::{io::Read as _, time::Duration};

use cloud_providers::{Confidential, ConfidentialType, ErrorKind, OpContext};
use cloud_providers_aws::scripted::Fault;

use crate::setup::*;

#[tokio::test(start_paused = true)]
async fn a_launch_says_everything_that_a_launch_can_say() {
    let env = [
        ("DISABLECVM", "false"),
        ("PODVM_INSTANCE_TYPE", "m6a.large"),
        ("TAGS", "team=a"),
        ("USE_PUBLIC_IP", "true"),
    ];
    let (world, provider) = fixture(&env).await;
    let instance = create(&provider, &request("u1")).await.unwrap();
    let launch = world.launch_of(instance.id.as_str()).unwrap();
    assert_eq!(launch.client_token.len(), 64);
    assert_eq!(
        (launch.image.as_deref(), launch.instance_type.as_deref()),
        (Some("ami-1"), Some("m6a.large"))
    );
    assert_eq!(launch.key_name.as_deref(), Some("key-1"));
    let [interface] = &launch.interfaces[..] else { panic!("{:?}", launch.interfaces) };
    assert_eq!((interface.subnet.as_deref(), interface.public), (Some("subnet-a"), Some(true)));
    assert!(interface.groups == ["sg-1"] && interface.delete_on_termination);
    let root = launch.root_volume.unwrap();
    assert_eq!((root.device.as_str(), root.size_gib), ("/dev/xvda", Some(30)));
    let metadata = launch.metadata.unwrap();
    assert!(metadata.tokens_required && metadata.hop_limit == 1);
    assert!(launch.sev_snp && !launch.spot && launch.terminate_on_shutdown);
    assert_eq!(launch.tags["Name"], instance.name);
    assert_eq!(launch.tags["team"], "a");
    assert!(
        ["peerpod-token", "peerpod-scope", "peerpod-holder"].iter().all(|k| launch.tags.contains_key(*k))
    );
    // The public address is the one to dial.
    assert!(instance.addresses[0].to_string().starts_with("203.0."), "{:?}", instance.addresses);
}

#[tokio::test(start_paused = true)]
async fn a_root_volume_is_as_large_as_asked_and_never_smaller_than_the_image() {
    let (world, provider) = fixture(&[]).await;
    // Its first device is no volume, and its root is called otherwise.
    world.add_image("ami-big", 80);
    world.change_image("ami-big", |image| {
        image.root_device = Some("/dev/sda1".into());
        image.mappings[1].device = "/dev/sda1".into();
    });
    for (unit, image, wanted, expected) in [
        ("u1", None, None, 30),
        ("u2", None, Some(50), 50),
        ("u3", Some("ami-big"), None, 80),
        ("u4", Some("ami-big"), Some(100), 100),
    ] {
        let mut request = request(unit);
        request.spec.image = image.map(str::to_owned);
        request.spec.root_disk_gib = wanted;
        let instance = create(&provider, &request).await.unwrap();
        let root = world.launch_of(instance.id.as_str()).unwrap().root_volume.unwrap();
        assert_eq!(root.size_gib, Some(expected), "{unit}");
        assert_eq!(root.device, if image.is_some() { "/dev/sda1" } else { "/dev/xvda" });
    }
    let (world, provider) = fixture(&[("ROOT_VOLUME_SIZE", "0")]).await;
    let instance = create(&provider, &request("u5")).await.unwrap();
    assert_eq!(world.launch_of(instance.id.as_str()).unwrap().root_volume.unwrap().size_gib, None);
}

#[tokio::test(start_paused = true)]
async fn user_data_is_packed_where_it_must_be_and_refused_where_that_is_not_enough() {
    let (world, provider) = fixture(&[]).await;
    let text = "x".repeat(100_000);
    let instance = create(&provider, &request("u1").with_user_data(text.clone())).await.unwrap();
    let sent = world.launch_of(instance.id.as_str()).unwrap().user_data;
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(sent.as_bytes()).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, text);
    world.clear_calls();
    let mut state = 7u32;
    let noise: Vec<u8> = (0..40_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let error = create(&provider, &request("u2").with_user_data(noise)).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("bytes: 40000"), "{error}");
    assert!(world.calls().is_empty(), "it is refused before the first call");
}

#[tokio::test(start_paused = true)]
async fn a_launch_whose_reply_is_lost_is_made_again_with_the_same_value_and_gives_one_instance() {
    let (world, provider) = fixture(&[]).await;
    world.script(Fault::on("RunInstances").lost_reply());
    let instance = create(&provider, &request("u1")).await.unwrap();
    assert_eq!(count(&world, "RunInstances"), 2);
    let there = of_kind(&world, "instance");
    assert!(there.len() == 1 && there[0].id == instance.id.as_str());
    let again = create(&provider, &request("u1")).await.unwrap();
    assert_eq!(again.id, instance.id);
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_is_never_answered_leaves_nothing_also_when_lists_lag() {
    let (world, provider) = fixture(&[("AWS_CALL_TIMEOUT", "2s")]).await;
    world.set_lag(Duration::from_secs(3));
    for nth in 1..=3 {
        world.script(Fault::on("RunInstances").nth(nth).hang_after());
    }
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient);
    assert!(error.leftovers().is_empty(), "{error:?}");
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn another_process_finds_the_instance_although_lists_lag() {
    let (world, first) = fixture(&[]).await;
    let second = provider(&world, &[]).await;
    world.set_lag(Duration::from_secs(3));
    let instance = create(&first, &request("u1")).await.unwrap();
    // The look finds nothing yet; the idempotency value does.
    let again = create(&second, &request("u1")).await.unwrap();
    assert_eq!(again.id, instance.id);
    assert_eq!(of_kind(&world, "instance").len(), 1);
    let mut other = request("u1");
    other.spec.root_disk_gib = Some(99);
    let error = create(&second, &other).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Conflict);
    assert_eq!(of_kind(&world, "instance").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_instance_is_gone_gets_another_one() {
    let (world, provider) = fixture(&[]).await;
    let first = create(&provider, &request("u1")).await.unwrap();
    delete(&provider, &first).await.unwrap();
    let second = create(&provider, &request("u1")).await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(of_kind(&world, "instance").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_ends_while_it_starts_says_why_and_is_undone() {
    let (world, provider) = fixture(&[("USE_PUBLIC_IP", "true")]).await;
    world.set_boot_failure(Some(("Client.VolumeLimitExceeded", "Volume limit exceeded")));
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Quota);
    assert_eq!(error.code(), Some("Client.VolumeLimitExceeded"));
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_its_public_address_is_waited_for_and_then_undone() {
    let (world, provider) = fixture(&[("USE_PUBLIC_IP", "true"), ("AWS_STATE_TIMEOUT", "20s")]).await;
    world.set_boot_time(Duration::from_secs(1_000));
    let start = tokio::time::Instant::now();
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient);
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_call_ends_its_waits_and_not_its_undo() {
    let (world, provider) = fixture(&[("USE_PUBLIC_IP", "true")]).await;
    world.set_boot_time(Duration::from_secs(1_000));
    let ctx = OpContext::new().with_timeout(Duration::from_secs(5));
    let error = provider.create_instance(&ctx, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Cancelled);
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn other_kinds_of_confidential_machines_are_refused() {
    let (world, provider) = fixture(&[("PODVM_INSTANCE_TYPE", "m6a.large")]).await;
    let mut tdx = request("u1");
    tdx.spec.confidential = Confidential::Type(ConfidentialType::Tdx);
    assert_eq!(*create(&provider, &tdx).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let mut snp = request("u2");
    snp.spec.confidential = Confidential::Type(ConfidentialType::SevSnp);
    let instance = create(&provider, &snp).await.unwrap();
    assert!(world.launch_of(instance.id.as_str()).unwrap().sev_snp);
    // The operator said that machines are not confidential; who asks for nothing gets that.
    let plain = create(&provider, &request("u3")).await.unwrap();
    assert!(!world.launch_of(plain.id.as_str()).unwrap().sev_snp);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_somebody_stopped_is_not_handed_out_and_not_deleted() {
    let (world, provider) = fixture(&[]).await;
    let instance = create(&provider, &request("u1")).await.unwrap();
    world.stop(instance.id.as_str());
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Conflict);
    assert_eq!(of_kind(&world, "instance").len(), 1);
    let list = provider.list_owned(&OpContext::new(), &scope()).await.unwrap();
    assert!(list.entries[0].state.is_over());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_read_leaves_nothing() {
    let (world, provider) = fixture(&[]).await;
    world.script(
        Fault::on("RunInstances")
            .after(cloud_providers_aws::error::incomplete("RunInstances", "instancesSet")),
    );
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Internal);
    assert!(error.leftovers().is_empty(), "{error:?}");
    assert_nothing_is_left(&world);
}

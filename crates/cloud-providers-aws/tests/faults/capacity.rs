//! Places without room.

use cloud_providers::{ErrorKind, Retry};

use crate::setup::*;

const SUBNETS: (&str, &str) = ("AWS_SUBNET_ID", "subnet-a,subnet-b,subnet-c");

#[tokio::test(start_paused = true)]
async fn the_next_subnet_is_tried_and_the_full_one_left_alone_for_a_while() {
    let (world, provider) = fixture(&[SUBNETS, ("AWS_CAPACITY_MEMORY", "60s")]).await;
    world.shortage("subnet-a", "InsufficientInstanceCapacity");
    let first = create(&provider, &request("u1")).await.unwrap();
    let subnet = |id: &str| world.launch_of(id).unwrap().interfaces[0].subnet.clone().unwrap();
    assert_eq!(subnet(first.id.as_str()), "subnet-b");
    assert_eq!(count(&world, "RunInstances"), 2);
    let second = create(&provider, &request("u2")).await.unwrap();
    assert_eq!(subnet(second.id.as_str()), "subnet-b");
    assert_eq!(count(&world, "RunInstances"), 3, "the full subnet was not asked again");
    world.clear_faults();
    tokio::time::advance(std::time::Duration::from_secs(61)).await;
    let third = create(&provider, &request("u3")).await.unwrap();
    assert_eq!(subnet(third.id.as_str()), "subnet-a");
    // A repetition finds the instance where it is, whatever place comes first now.
    assert_eq!(create(&provider, &request("u1")).await.unwrap().id, first.id);
    assert_eq!(of_kind(&world, "instance").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_subnet_without_addresses_is_left_for_the_next() {
    let (world, provider) = fixture(&[SUBNETS]).await;
    world.shortage("subnet-a", "InsufficientFreeAddressesInSubnet");
    create(&provider, &request("u1")).await.unwrap();
    assert_eq!(count(&world, "RunInstances"), 2);
}

#[tokio::test(start_paused = true)]
async fn fallback_types_are_tried_in_order_and_only_those_that_fit() {
    let types = [
        ("PODVM_INSTANCE_TYPE", "m6a.large"),
        ("PODVM_FALLBACK_INSTANCE_TYPES", "t3.small,m6g.large,m6a.xlarge"),
    ];
    let (world, provider) = fixture(&types).await;
    world.shortage("m6a.large", "InsufficientInstanceCapacity");
    let instance = create(&provider, &request("u1")).await.unwrap();
    // The first is smaller than what the pod would have had, the second is of another architecture than the image.
    assert_eq!(instance.instance_type.as_deref(), Some("m6a.xlarge"));
    assert_eq!(count(&world, "RunInstances"), 2);
    let mut named = request("u2");
    named.spec.instance_type = Some("m6a.large".into());
    let error = create(&provider, &named).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Capacity { .. }),
        "who names a type gets it or an error: {error}"
    );
}

#[tokio::test(start_paused = true)]
async fn spot_comes_first_and_on_demand_where_there_is_none() {
    let (world, provider) = fixture(&[SUBNETS, ("AWS_PURCHASE_OPTION", "spot-then-on-demand")]).await;
    let spot = create(&provider, &request("u1")).await.unwrap();
    assert!(world.launch_of(spot.id.as_str()).unwrap().spot);
    world.shortage(" spot ", "MaxSpotInstanceCountExceeded");
    let bought = create(&provider, &request("u2")).await.unwrap();
    assert!(!world.launch_of(bought.id.as_str()).unwrap().spot);
    // The limit counts for the account, so one subnet was enough to hear of it.
    assert_eq!(count(&world, "RunInstances"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_confidential_pod_never_becomes_a_plain_one() {
    let env = [
        ("DISABLECVM", "false"),
        ("PODVM_INSTANCE_TYPE", "m6a.large"),
        ("PODVM_FALLBACK_INSTANCE_TYPES", "t3.small,c6a.large,m6a.xlarge"),
        ("AWS_PURCHASE_OPTION", "spot-then-on-demand"),
        SUBNETS,
    ];
    let (world, provider) = fixture(&env).await;
    world.shortage("6a.", "InsufficientInstanceCapacity");
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Capacity { .. }), "{error}");
    assert_eq!(error.retry(), Retry::Elsewhere);
    let text = error.to_string();
    assert!(text.contains("m6a.large") && text.contains("subnet-c") && !text.contains("t3.small"), "{text}");
    assert!(world.things().is_empty());
    let (_, provider) = fixture(&[("DISABLECVM", "false")]).await;
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("DISABLECVM"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn types_are_tried_only_where_they_are_offered() {
    let world = cloud_providers_aws::scripted::World::new();
    world.shortage("t3.small zone-a", "NotOffered");
    let provider = provider(&world, &[SUBNETS]).await;
    world.clear_calls();
    let instance = create(&provider, &request("u1")).await.unwrap();
    let launch = world.launch_of(instance.id.as_str()).unwrap();
    assert_eq!(launch.interfaces[0].subnet.as_deref(), Some("subnet-b"));
    assert_eq!(count(&world, "RunInstances"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_account_is_not_called_a_lack_of_room() {
    let (world, provider) = fixture(&[SUBNETS]).await;
    world.shortage("t3.small", "VcpuLimitExceeded");
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Quota);
    assert_eq!(error.code(), Some("VcpuLimitExceeded"));
    // The limit is that of the type's family in the whole region.
    assert_eq!(count(&world, "RunInstances"), 1);
}

/// Numbers that are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_short_a_pod_is_placed_wherever_there_is_room_and_nowhere_else() {
    let env = [
        ("DISABLECVM", "false"),
        ("PODVM_INSTANCE_TYPE", "m6a.large"),
        ("PODVM_FALLBACK_INSTANCE_TYPES", "t3.small,m6a.xlarge"),
        ("AWS_PURCHASE_OPTION", "spot-then-on-demand"),
        SUBNETS,
    ];
    let (world, provider) = fixture(&env).await;
    let mut chance = Chance(7);
    let (mut placed, mut satisfiable) = (0, 0);
    for round in 0..150 {
        world.clear_faults();
        // Shortages come and go faster than they are forgotten.
        tokio::time::advance(std::time::Duration::from_secs(chance.below(200))).await;
        let mut room = Vec::new();
        for kind in ["m6a.large", "m6a.xlarge"] {
            for paid in ["spot", "on-demand"] {
                for subnet in ["subnet-a", "subnet-b", "subnet-c"] {
                    let place = format!("{kind} {paid} {subnet}");
                    match chance.below(10) {
                        0 | 1 => room.push(place),
                        2 => world.shortage(&place, "Unsupported"),
                        _ => world.shortage(&place, "InsufficientInstanceCapacity"),
                    }
                }
            }
        }
        satisfiable += usize::from(!room.is_empty());
        match create(&provider, &request(&format!("unit-{round}"))).await {
            Ok(instance) => {
                placed += 1;
                let launch = world.launch_of(instance.id.as_str()).unwrap();
                assert!(launch.sev_snp, "a confidential pod became a plain one");
                let kind = launch.instance_type.unwrap();
                let paid = if launch.spot { "spot" } else { "on-demand" };
                let place = format!("{kind} {paid} {}", launch.interfaces[0].subnet.as_deref().unwrap());
                assert!(room.contains(&place), "{place}");
            }
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Capacity { .. }), "{error}"),
        }
    }
    assert!(satisfiable > 100, "{satisfiable}");
    assert!(placed * 100 >= satisfiable * 99, "{placed} of {satisfiable}");
}

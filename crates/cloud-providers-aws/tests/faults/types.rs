//! Instance types.

use cloud_providers::ErrorKind;
use cloud_providers_aws::scripted::World;

use crate::setup::*;

#[tokio::test(start_paused = true)]
async fn types_are_described_a_hundred_at_a_time_and_once() {
    let world = World::new();
    let names: Vec<String> = (0..150).map(|n| format!("x{n}.large")).collect();
    for name in &names {
        world.add_type(name, Some(2), Some(4096));
    }
    let list = names.join(",");
    let provider = provider(&world, &[("PODVM_INSTANCE_TYPES", &list)]).await;
    assert_eq!(count(&world, "DescribeInstanceTypes"), 2);
    create(&provider, &request("u1")).await.unwrap();
    create(&provider, &request("u2")).await.unwrap();
    assert_eq!(count(&world, "DescribeInstanceTypes"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_type_is_an_error_of_the_configuration_that_names_it_and_the_keys() {
    let (world, provider) = fixture(&[("PODVM_INSTANCE_TYPES", "t3.small,m9.huge")]).await;
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(text.contains("m9.huge") && text.contains("PODVM_INSTANCE_TYPES"), "{text}");
    assert!(world.things().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_type_whose_size_ec2_does_not_tell_serves_no_wish_for_a_size() {
    let world = World::new();
    world.add_type("odd.large", None, None);
    let provider = provider(&world, &[("PODVM_INSTANCE_TYPES", "odd.large,t3.small")]).await;
    let mut sized = request("u1");
    (sized.spec.vcpus, sized.spec.memory_mib) = (1, 512);
    let instance = create(&provider, &sized).await.unwrap();
    assert_eq!(instance.instance_type.as_deref(), Some("t3.small"));
}

#[tokio::test(start_paused = true)]
async fn the_architecture_of_the_image_is_that_of_the_type() {
    let (world, provider) = fixture(&[("PODVM_INSTANCE_TYPES", "m6g.large,t3.small,m6a.large")]).await;
    world.add_image("ami-arm", 8);
    world.change_image("ami-arm", |image| image.architecture = Some("arm64".into()));
    let mut arm = request("u1");
    arm.spec.image = Some("ami-arm".into());
    let instance = create(&provider, &arm).await.unwrap();
    assert_eq!(instance.instance_type.as_deref(), Some("m6g.large"));
    let mut wrong = request("u2");
    wrong.spec.image = Some("ami-arm".into());
    wrong.spec.instance_type = Some("m6a.large".into());
    assert_eq!(*create(&provider, &wrong).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn a_start_outlives_an_ec2_that_is_away_and_an_image_that_is_gone() {
    let world = World::new();
    for operation in ["DescribeInstanceTypes", "DescribeImages"] {
        world.script(cloud_providers_aws::scripted::Fault::on(operation).code("Unavailable"));
    }
    let running = provider(&world, &[]).await;
    world.clear_faults();
    let instance = create(&running, &request("u1")).await.unwrap();
    // A controller with an image that is gone still deletes.
    let controller = provider(&world, &[("PODVM_AMI_ID", "ami-gone")]).await;
    let error = create(&controller, &request("u2")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("ami-gone"), "{error}");
    delete(&controller, &instance).await.unwrap();
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_for_nothing_gets_the_default_whatever_it_has() {
    let (_, provider) =
        fixture(&[("PODVM_INSTANCE_TYPE", "g4dn.xlarge"), ("PODVM_INSTANCE_TYPES", "t3.small")]).await;
    let instance = create(&provider, &request("u1")).await.unwrap();
    assert_eq!(instance.instance_type.as_deref(), Some("g4dn.xlarge"));
    let mut sized = request("u2");
    (sized.spec.vcpus, sized.spec.memory_mib) = (1, 512);
    let instance = create(&provider, &sized).await.unwrap();
    assert_eq!(instance.instance_type.as_deref(), Some("t3.small"));
}

//! The second interface and its Elastic IP.

use cloud_providers::{ErrorKind, OpContext};
use cloud_providers_aws::scripted::Fault;

use crate::setup::*;

const PUBLIC: (&str, &str) = ("USE_PUBLIC_IP", "true");

#[tokio::test(start_paused = true)]
async fn a_second_interface_is_part_of_the_launch_when_nothing_is_public() {
    let (world, provider) = fixture(&[]).await;
    let instance = create(&provider, &two_networks("u1")).await.unwrap();
    assert_eq!(world.operations(), ["DescribeInstances", "RunInstances"]);
    let launch = world.launch_of(instance.id.as_str()).unwrap();
    assert_eq!(launch.interfaces.len(), 2);
    assert!(launch.interfaces.iter().all(|i| i.delete_on_termination && i.public.is_none()));
    assert_eq!(instance.addresses.len(), 2);
    delete(&provider, &instance).await.unwrap();
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn a_public_second_interface_has_an_elastic_ip_and_everything_goes_with_the_instance() {
    let (world, provider) = fixture(&[PUBLIC]).await;
    let instance = create(&provider, &two_networks("u1")).await.unwrap();
    assert_eq!((of_kind(&world, "network_interface").len(), of_kind(&world, "address").len()), (2, 1));
    assert!(instance.addresses[0].to_string().starts_with("203.0."), "{:?}", instance.addresses);
    let again = create(&provider, &two_networks("u1")).await.unwrap();
    assert_eq!(again.id, instance.id);
    assert_eq!((of_kind(&world, "network_interface").len(), of_kind(&world, "address").len()), (2, 1));
    delete(&provider, &instance).await.unwrap();
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn whichever_step_is_refused_neither_interface_nor_address_is_left() {
    for operation in [
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "AllocateAddress",
        "AssociateAddress",
    ] {
        let (world, provider) = fixture(&[PUBLIC]).await;
        world.script(Fault::on(operation).code("AddressLimitExceeded"));
        let error = create(&provider, &two_networks("u1")).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Quota, "{operation}");
        assert_eq!(error.operation(), Some(operation));
        assert!(error.leftovers().is_empty(), "{operation}: {error:?}");
        assert_nothing_is_left(&world);
    }
}

#[tokio::test(start_paused = true)]
async fn whichever_reply_is_lost_there_is_one_of_each() {
    for operation in [
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "AllocateAddress",
        "AssociateAddress",
    ] {
        let (world, provider) = fixture(&[PUBLIC]).await;
        world.script(Fault::on(operation).lost_reply());
        let instance = create(&provider, &two_networks("u1")).await.unwrap();
        let there = (of_kind(&world, "network_interface").len(), of_kind(&world, "address").len());
        assert_eq!(there, (2, 1), "{operation}");
        delete(&provider, &instance).await.unwrap();
        assert_nothing_is_left(&world);
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_that_was_cut_off_is_completed_by_its_repetition() {
    for operation in
        ["CreateNetworkInterface", "AttachNetworkInterface", "AllocateAddress", "AssociateAddress"]
    {
        let (world, first) = fixture(&[PUBLIC]).await;
        let struck = cloud_providers::CancellationToken::new();
        world.script(Fault::on(operation).hang_after().telling(struck.clone()));
        let (ctx, wanted) = (OpContext::new(), two_networks("u1"));
        tokio::select! {
            result = first.create_instance(&ctx, &wanted) => panic!("{operation}: {result:?}"),
            () = struck.cancelled() => {}
        }
        // As after a crash: nobody undoes anything.
        let second = provider(&world, &[PUBLIC]).await;
        let instance = create(&second, &two_networks("u1")).await.unwrap();
        let there = (of_kind(&world, "network_interface").len(), of_kind(&world, "address").len());
        assert_eq!(there, (2, 1), "{operation}");
        delete(&second, &instance).await.unwrap();
        assert_nothing_is_left(&world);
    }
}

#[tokio::test(start_paused = true)]
async fn an_interface_of_the_launch_gets_an_elastic_ip_when_it_alone_is_public() {
    let (world, provider) = fixture(&[]).await;
    let mut wanted = two_networks("u1");
    wanted.networks[1].public = true;
    let instance = create(&provider, &wanted).await.unwrap();
    assert_eq!(world.launch_of(instance.id.as_str()).unwrap().interfaces.len(), 2);
    assert_eq!(count(&world, "CreateNetworkInterface"), 0);
    assert_eq!((of_kind(&world, "network_interface").len(), of_kind(&world, "address").len()), (2, 1));
    assert!(instance.addresses[0].to_string().starts_with("10."), "{:?}", instance.addresses);
    delete(&provider, &instance).await.unwrap();
    assert_nothing_is_left(&world);
}

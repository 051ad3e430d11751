//! Launch templates.

use cloud_providers::{Confidential, ErrorKind};
use cloud_providers_aws::{client::LaunchTemplate, scripted::World};

use crate::setup::*;

const USE: (&str, &str) = ("USE_PODVM_LAUNCHTEMPLATE", "true");
const NO_IMAGE: (&str, &str) = ("PODVM_AMI_ID", "");
const SILENT: (&str, &str) = ("DISABLECVM", "");

fn template() -> LaunchTemplate {
    let mut template = LaunchTemplate::default();
    template.id = "lt-1".into();
    template.image = Some("ami-1".into());
    template.instance_type = Some("m6a.xlarge".into());
    template.subnets = vec!["subnet-c".into()];
    template.interfaces = 1;
    template
}

#[tokio::test(start_paused = true)]
async fn a_template_needs_no_image_option_and_is_not_repeated_in_the_launch() {
    let world = World::new();
    world.add_template("kata", template());
    let provider = provider(&world, &[USE, NO_IMAGE, SILENT]).await;
    let mut sized = request("u1");
    // Sizes come with every pod; the operator chose the type in the template.
    (sized.spec.vcpus, sized.spec.memory_mib) = (1, 512);
    let instance = create(&provider, &sized).await.unwrap();
    let launch = world.launch_of(instance.id.as_str()).unwrap();
    assert_eq!(launch.launch_template.unwrap().name, "kata");
    assert_eq!((launch.image, launch.instance_type), (None, None));
    assert!(launch.interfaces.is_empty() && !launch.sev_snp);
    assert_eq!(launch.root_volume.unwrap().device, "/dev/xvda");
    delete(&provider, &instance).await.unwrap();
    assert_nothing_is_left(&world);
}

#[tokio::test(start_paused = true)]
async fn what_a_request_names_replaces_what_the_template_says() {
    let world = World::new();
    world.add_template("kata", template());
    world.add_image("ami-2", 8);
    let provider =
        provider(&world, &[USE, NO_IMAGE, SILENT, ("PODVM_INSTANCE_TYPES", "m6a.large,m6a.xlarge")]).await;
    let mut named = request("u1");
    named.spec.image = Some("ami-2".into());
    named.spec.instance_type = Some("m6a.large".into());
    named.spec.confidential = Confidential::Yes;
    let instance = create(&provider, &named).await.unwrap();
    let launch = world.launch_of(instance.id.as_str()).unwrap();
    assert_eq!(
        (launch.image.as_deref(), launch.instance_type.as_deref()),
        (Some("ami-2"), Some("m6a.large"))
    );
    assert!(launch.sev_snp, "a pod that must be confidential is, whatever the template says");
}

#[tokio::test(start_paused = true)]
async fn a_template_that_may_not_be_read_is_launched_from_all_the_same() {
    let world = World::new();
    world.add_template("kata", template());
    world.deny(&["DescribeLaunchTemplateVersions"]);
    let provider = provider(&world, &[USE, NO_IMAGE, SILENT]).await;
    let instance = create(&provider, &request("u1")).await.unwrap();
    let launch = world.launch_of(instance.id.as_str()).unwrap();
    assert!(launch.root_volume.is_none() && launch.image.is_none() && launch.instance_type.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_template_that_is_not_there_names_the_key() {
    let provider = provider(&World::new(), &[USE, NO_IMAGE, SILENT]).await;
    let error = create(&provider, &request("u1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("PODVM_LAUNCHTEMPLATE_NAME"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_second_interface_beside_a_template_is_made_in_its_subnet() {
    let world = World::new();
    world.add_template("kata", template());
    let provider = provider(&world, &[USE, NO_IMAGE, SILENT]).await;
    let instance = create(&provider, &two_networks("u1")).await.unwrap();
    assert_eq!(of_kind(&world, "network_interface").len(), 2);
    assert_eq!(instance.addresses.len(), 2);
    delete(&provider, &instance).await.unwrap();
    assert_nothing_is_left(&world);
}

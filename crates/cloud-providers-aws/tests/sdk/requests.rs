//! What is sent.

use base64::{Engine, engine::general_purpose::STANDARD};
use cloud_providers::UserData;
use cloud_providers_aws::client::{
    CreateInterface, DryRun, LaunchTemplateRef, MetadataOptions, NewInterface, Query, RootVolume,
    RunInstances, Tags,
};

use crate::server::{Asked, Server, ec2, ec2_error};

const INSTANCE: &str = "<instancesSet><item><instanceId>i-1</instanceId></item></instancesSet>";

fn tags() -> Tags {
    [("peerpod-token", "t-1"), ("Name", "podvm-web")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// Demands that a form has exactly these fields besides the two that every form has.
fn has_exactly(asked: &Asked, action: &str, fields: &[(&str, &str)]) {
    assert_eq!(asked.action(), action);
    for (name, value) in fields {
        assert_eq!(asked.field(name).as_deref(), Some(*value), "{name} in {}", asked.body);
    }
    assert_eq!(asked.body.split('&').count(), fields.len() + 2, "{}", asked.body);
}

#[tokio::test]
async fn everything_about_an_instance_is_said_in_one_call() {
    let server = Server::always(ec2("RunInstances", INSTANCE)).await;
    let mut first = NewInterface::default();
    first.subnet = Some("subnet-1".into());
    first.groups = vec!["sg-1".into(), "sg-2".into()];
    first.public = Some(true);
    first.delete_on_termination = true;
    let mut second = NewInterface::default();
    second.device_index = 1;
    second.subnet = Some("subnet-2".into());
    second.private_address = Some("10.0.2.9".parse().unwrap());
    second.delete_on_termination = true;
    let mut root = RootVolume::default();
    root.device = "/dev/xvda".into();
    root.size_gib = Some(40);
    let mut request = RunInstances::default();
    request.client_token = "c-1".into();
    request.image = Some("ami-1".into());
    request.instance_type = Some("m6a.large".into());
    request.key_name = Some("key".into());
    request.interfaces = vec![first, second];
    request.root_volume = Some(root);
    request.sev_snp = true;
    request.spot = true;
    request.metadata = Some(MetadataOptions::new(true, 1));
    request.terminate_on_shutdown = true;
    request.user_data = UserData::new("#cloud-config\n\0\u{ff}");
    request.tags = tags();
    let made = server.connect().await.run_instances(&request).await.unwrap();
    assert_eq!(made.id, "i-1");

    let data = STANDARD.encode("#cloud-config\n\0\u{ff}");
    let mut fields: Vec<(String, &str)> = [
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("ClientToken", "c-1"),
        ("ImageId", "ami-1"),
        ("InstanceType", "m6a.large"),
        ("KeyName", "key"),
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.SubnetId", "subnet-1"),
        ("NetworkInterface.1.SecurityGroupId.1", "sg-1"),
        ("NetworkInterface.1.SecurityGroupId.2", "sg-2"),
        ("NetworkInterface.1.AssociatePublicIpAddress", "true"),
        ("NetworkInterface.1.DeleteOnTermination", "true"),
        ("NetworkInterface.2.DeviceIndex", "1"),
        ("NetworkInterface.2.SubnetId", "subnet-2"),
        ("NetworkInterface.2.PrivateIpAddress", "10.0.2.9"),
        ("NetworkInterface.2.DeleteOnTermination", "true"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "40"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
        ("CpuOptions.AmdSevSnp", "enabled"),
        ("InstanceMarketOptions.MarketType", "spot"),
        ("InstanceMarketOptions.SpotOptions.SpotInstanceType", "one-time"),
        ("InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior", "terminate"),
        ("MetadataOptions.HttpTokens", "required"),
        ("MetadataOptions.HttpPutResponseHopLimit", "1"),
        ("MetadataOptions.HttpEndpoint", "enabled"),
        ("InstanceInitiatedShutdownBehavior", "terminate"),
        ("UserData", &data),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for (n, kind) in ["instance", "volume", "network-interface", "spot-instances-request"].iter().enumerate()
    {
        let at = format!("TagSpecification.{}", n + 1);
        fields.push((format!("{at}.ResourceType"), kind));
        for (m, (key, value)) in [("Name", "podvm-web"), ("peerpod-token", "t-1")].iter().enumerate() {
            fields.push((format!("{at}.Tag.{}.Key", m + 1), key));
            fields.push((format!("{at}.Tag.{}.Value", m + 1), value));
        }
    }
    let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    has_exactly(&server.last(), "RunInstances", &fields);
}

#[tokio::test]
async fn with_a_launch_template_nothing_is_said_that_it_says() {
    let server = Server::always(ec2("RunInstances", INSTANCE)).await;
    let mut request = RunInstances::default();
    request.client_token = "c-1".into();
    request.launch_template = Some(LaunchTemplateRef::new("kata", "$Latest"));
    server.connect().await.run_instances(&request).await.unwrap();
    has_exactly(
        &server.last(),
        "RunInstances",
        &[
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("ClientToken", "c-1"),
            ("LaunchTemplate.LaunchTemplateName", "kata"),
            ("LaunchTemplate.Version", "$Latest"),
        ],
    );
}

#[tokio::test]
async fn calls_are_signed_for_their_region_and_name_the_program() {
    let server = Server::always(ec2("DescribeAddresses", "<addressesSet/>")).await;
    server.connect().await.describe_addresses(&Query::default()).await.unwrap();
    let asked = server.last();
    let signature = asked.header("authorization").unwrap();
    assert!(signature.starts_with("AWS4-HMAC-SHA256 Credential=AKIDTEST/"), "{signature}");
    assert!(signature.contains("/test-region-1/ec2/aws4_request"), "{signature}");
    assert!(asked.header("user-agent").unwrap().contains("app/cloud-providers"), "{asked:?}");
    assert_eq!(asked.header("x-amz-security-token"), None);
    has_exactly(&asked, "DescribeAddresses", &[]);
}

#[tokio::test]
async fn interfaces_and_addresses_are_made_with_their_tags() {
    let made = "<networkInterface><networkInterfaceId>eni-1</networkInterfaceId></networkInterface>";
    let server = Server::always(ec2("CreateNetworkInterface", made)).await;
    let mut request = CreateInterface::default();
    request.client_token = "c-2".into();
    request.subnet = "subnet-1".into();
    request.groups = vec!["sg-1".into()];
    request.description = "of podvm-web".into();
    request.tags = [("a".to_owned(), "b".to_owned())].into();
    let interface = server.connect().await.create_network_interface(&request).await.unwrap();
    assert_eq!(interface.id, "eni-1");
    let tag = [
        ("TagSpecification.1.Tag.1.Key", "a"),
        ("TagSpecification.1.Tag.1.Value", "b"),
        ("TagSpecification.1.ResourceType", "network-interface"),
    ];
    let own = [
        ("ClientToken", "c-2"),
        ("SubnetId", "subnet-1"),
        ("SecurityGroupId.1", "sg-1"),
        ("Description", "of podvm-web"),
    ];
    has_exactly(&server.last(), "CreateNetworkInterface", &[&tag[..], &own].concat());

    let fields = "<allocationId>eipalloc-1</allocationId><publicIp>203.0.113.7</publicIp>";
    let server = Server::always(ec2("AllocateAddress", fields)).await;
    let address = server.connect().await.allocate_address(&request.tags).await.unwrap();
    assert_eq!((address.allocation.as_str(), address.tags), ("eipalloc-1", request.tags));
    assert_eq!(address.public_address, Some("203.0.113.7".parse().unwrap()));
    let tag = [tag[0], tag[1], ("TagSpecification.1.ResourceType", "elastic-ip"), ("Domain", "vpc")];
    has_exactly(&server.last(), "AllocateAddress", &tag);
}

#[tokio::test]
async fn the_small_calls_say_what_they_mean() {
    let server = Server::start(|asked| ec2(&asked.action(), "")).await;
    let ec2 = server.connect().await;
    ec2.attach_volume("vol-1", "i-1", "/dev/xvdb").await.unwrap();
    let fields = [("VolumeId", "vol-1"), ("InstanceId", "i-1"), ("Device", "/dev/xvdb")];
    has_exactly(&server.last(), "AttachVolume", &fields);
    ec2.detach_volume("vol-1", "i-1").await.unwrap();
    has_exactly(&server.last(), "DetachVolume", &fields[..2]);
    assert_eq!(ec2.attach_network_interface("eni-1", "i-1", 1).await.unwrap(), None);
    let fields = [("NetworkInterfaceId", "eni-1"), ("InstanceId", "i-1"), ("DeviceIndex", "1")];
    has_exactly(&server.last(), "AttachNetworkInterface", &fields);
    ec2.modify_network_interface_attribute("eni-1", "eni-attach-1", true).await.unwrap();
    let fields = [
        ("NetworkInterfaceId", "eni-1"),
        ("Attachment.AttachmentId", "eni-attach-1"),
        ("Attachment.DeleteOnTermination", "true"),
    ];
    has_exactly(&server.last(), "ModifyNetworkInterfaceAttribute", &fields);
    ec2.detach_network_interface("eni-attach-1").await.unwrap();
    has_exactly(&server.last(), "DetachNetworkInterface", &[("AttachmentId", "eni-attach-1")]);
    ec2.delete_network_interface("eni-1").await.unwrap();
    has_exactly(&server.last(), "DeleteNetworkInterface", &[("NetworkInterfaceId", "eni-1")]);
    assert_eq!(ec2.associate_address("eipalloc-1", "eni-1").await.unwrap(), None);
    let fields =
        [("AllocationId", "eipalloc-1"), ("NetworkInterfaceId", "eni-1"), ("AllowReassociation", "false")];
    has_exactly(&server.last(), "AssociateAddress", &fields);
    ec2.disassociate_address("eipassoc-1").await.unwrap();
    has_exactly(&server.last(), "DisassociateAddress", &[("AssociationId", "eipassoc-1")]);
    ec2.release_address("eipalloc-1").await.unwrap();
    has_exactly(&server.last(), "ReleaseAddress", &[("AllocationId", "eipalloc-1")]);
    ec2.terminate_instances("i-1").await.unwrap();
    has_exactly(&server.last(), "TerminateInstances", &[("InstanceId.1", "i-1")]);
}

#[tokio::test]
async fn an_empty_list_of_names_asks_nothing() {
    let server = Server::start(|asked| ec2(&asked.action(), "")).await;
    let ec2 = server.connect().await;
    assert!(ec2.describe_instance_types(&[]).await.unwrap().is_empty());
    assert!(ec2.describe_images(&[]).await.unwrap().is_empty());
    assert!(ec2.describe_subnets(&[]).await.unwrap().is_empty());
    assert!(ec2.describe_security_groups(&[]).await.unwrap().is_empty());
    assert!(ec2.describe_key_pairs(&[]).await.unwrap().is_empty());
    assert!(server.asked().is_empty(), "no ids would mean everything that there is");
}

fn every_dry_run() -> Vec<DryRun> {
    let id = |text: &str| text.to_owned();
    vec![
        DryRun::RunInstances(Box::default()),
        DryRun::TerminateInstances(id("i-1")),
        DryRun::CreateNetworkInterface(Box::default()),
        DryRun::AttachNetworkInterface(id("eni-1"), id("i-1")),
        DryRun::ModifyNetworkInterfaceAttribute(id("eni-1"), id("eni-attach-1")),
        DryRun::DetachNetworkInterface(id("eni-attach-1")),
        DryRun::DeleteNetworkInterface(id("eni-1")),
        DryRun::AllocateAddress(tags()),
        DryRun::AssociateAddress(id("eipalloc-1"), id("eni-1")),
        DryRun::DisassociateAddress(id("eipassoc-1")),
        DryRun::ReleaseAddress(id("eipalloc-1")),
        DryRun::AttachVolume(id("vol-1"), id("i-1")),
        DryRun::DetachVolume(id("vol-1"), id("i-1")),
    ]
}

#[tokio::test]
async fn a_dry_run_says_so_in_every_call_and_reads_the_three_answers() {
    let allowed = "Request would have succeeded, but DryRun flag is set.";
    let server = Server::always(ec2_error(412, "DryRunOperation", allowed)).await;
    let refused = Server::always(ec2_error(403, "UnauthorizedOperation", "no")).await;
    let careless = Server::start(|asked| {
        let made = "<networkInterface><networkInterfaceId>eni-1</networkInterfaceId></networkInterface>";
        ec2(&asked.action(), made)
    })
    .await;
    let (yes, no, done) = (server.connect().await, refused.connect().await, careless.connect().await);
    for call in every_dry_run() {
        yes.dry_run(&call).await.unwrap();
        let asked = server.last();
        assert_eq!(asked.action(), call.operation());
        assert_eq!(asked.field("DryRun").as_deref(), Some("true"), "{}", asked.body);
        let error = no.dry_run(&call).await.unwrap_err();
        assert_eq!(
            (error.kind().to_string().as_str(), error.operation()),
            ("permission", Some(call.operation()))
        );
        let error = done.dry_run(&call).await.unwrap_err();
        assert!(error.to_string().contains("was carried out"), "{error}");
    }
}

//! Answers, whole and in pages.

use cloud_providers_aws::client::{Ec2, LaunchTemplateRef, Query, State};

use crate::server::{Answer, Asked, Server, ec2};

/// An instance with everything that it may have.
pub(crate) const INSTANCE: &str = "<reservationSet><item><reservationId>r-1</reservationId><instancesSet><item>\
        <instanceId>i-0123456789abcdef0</instanceId><imageId>ami-1</imageId>\
        <instanceState><code>16</code><name>running</name></instanceState>\
        <stateReason><code>pending</code><message>pending</message></stateReason>\
        <instanceType>m6a.large</instanceType><launchTime>2026-01-02T03:04:05.000Z</launchTime>\
        <placement><availabilityZone>us-east-1b</availabilityZone><tenancy>default</tenancy></placement>\
        <subnetId>subnet-1</subnetId><instanceLifecycle>spot</instanceLifecycle><clientToken>c-1</clientToken>\
        <cpuOptions><coreCount>1</coreCount><threadsPerCore>2</threadsPerCore><amdSevSnp>enabled</amdSevSnp></cpuOptions>\
        <blockDeviceMapping><item><deviceName>/dev/xvda</deviceName><ebs><volumeId>vol-1</volumeId>\
        <status>attached</status><deleteOnTermination>true</deleteOnTermination></ebs></item>\
        <item><deviceName>/dev/sdb</deviceName></item></blockDeviceMapping>\
        <networkInterfaceSet><item><networkInterfaceId>eni-1</networkInterfaceId>\
        <privateIpAddress>10.0.1.5</privateIpAddress>\
        <attachment><attachmentId>eni-attach-1</attachmentId><deviceIndex>0</deviceIndex>\
        <status>attached</status><deleteOnTermination>true</deleteOnTermination></attachment>\
        <association><publicIp>203.0.113.5</publicIp><ipOwnerId>amazon</ipOwnerId></association>\
        <privateIpAddressesSet><item><privateIpAddress>10.0.1.6</privateIpAddress><primary>false</primary></item>\
        <item><privateIpAddress>10.0.1.5</privateIpAddress><primary>true</primary></item></privateIpAddressesSet>\
        </item></networkInterfaceSet>\
        <tagSet><item><key>Name</key><value>podvm-web</value></item><item><key>empty</key><value/></item></tagSet>\
        </item></instancesSet></item></reservationSet>";

/// Answers with one item a page; the mark of a page is its number.
fn paged(asked: &Asked, list: &str, field: &str) -> Answer {
    let page: usize = asked.field("NextToken").map_or(0, |mark| mark.parse().unwrap());
    let item = format!("<{list}><item><{field}>id-{page}</{field}></item></{list}>");
    // On the last page EC2 sends an empty mark, or none.
    let next = match page {
        0 => "<nextToken>1</nextToken>",
        1 => "<nextToken>2</nextToken>",
        _ => "<nextToken></nextToken>",
    };
    ec2(&asked.action(), &format!("{item}{next}"))
}

async fn all_pages(ec2: &dyn Ec2, what: &str) -> Vec<String> {
    let query = Query::tag("peerpod-token", "t-1");
    let (mut found, mut after) = (Vec::new(), None::<String>);
    loop {
        let mark = after.as_deref();
        let (ids, next): (Vec<String>, _) = match what {
            "interfaces" => {
                let page = ec2.describe_network_interfaces(&query, mark).await.unwrap();
                (page.items.into_iter().map(|i| i.id).collect(), page.next)
            }
            "volumes" => {
                let page = ec2.describe_volumes(&query, mark).await.unwrap();
                (page.items.into_iter().map(|v| v.id).collect(), page.next)
            }
            _ => {
                let page = ec2.describe_instances(&query, mark).await.unwrap();
                (page.items.into_iter().map(|i| i.id).collect(), page.next)
            }
        };
        found.extend(ids);
        if next.is_none() {
            return found;
        }
        after = next;
    }
}

#[tokio::test]
async fn pages_are_followed_by_their_marks_and_filters_go_with_each() {
    for (what, action) in [
        ("interfaces", "DescribeNetworkInterfaces"),
        ("volumes", "DescribeVolumes"),
        ("instances", "DescribeInstances"),
    ] {
        let server = Server::start(|asked| match asked.action().as_str() {
            "DescribeNetworkInterfaces" => paged(asked, "networkInterfaceSet", "networkInterfaceId"),
            "DescribeVolumes" => paged(asked, "volumeSet", "volumeId"),
            _ => {
                let answer = paged(asked, "instancesSet", "instanceId");
                let body = answer.body.replace("<instancesSet>", "<reservationSet><item><instancesSet>");
                Answer::ok(body.replace("</instancesSet>", "</instancesSet></item></reservationSet>"))
            }
        })
        .await;
        let ec2 = server.connect().await;
        assert_eq!(all_pages(&*ec2, what).await, ["id-0", "id-1", "id-2"], "{what}");
        for asked in server.asked() {
            assert_eq!(asked.action(), action);
            assert_eq!(asked.field("Filter.1.Name").as_deref(), Some("tag:peerpod-token"));
            assert_eq!(asked.field("Filter.1.Value.1").as_deref(), Some("t-1"));
            assert_eq!(asked.field("MaxResults").as_deref(), Some("500"));
        }
        assert_eq!(server.asked().len(), 3);
    }
}

#[tokio::test]
async fn ids_are_asked_for_without_a_size_of_pages() {
    let server = Server::start(|asked| ec2(&asked.action(), "")).await;
    let ec2 = server.connect().await;
    let query = Query::ids(["a", "b"]);
    ec2.describe_instances(&query, None).await.unwrap();
    ec2.describe_volumes(&query, None).await.unwrap();
    ec2.describe_network_interfaces(&query, None).await.unwrap();
    ec2.describe_addresses(&query).await.unwrap();
    let names = ["InstanceId.2", "VolumeId.2", "NetworkInterfaceId.2", "AllocationId.2"];
    for (asked, name) in server.asked().iter().zip(names) {
        assert_eq!(asked.field(name).as_deref(), Some("b"), "{}", asked.body);
        assert_eq!(asked.field("MaxResults"), None, "EC2 refuses the two together");
    }
    assert_eq!(server.asked().len(), names.len());
}

#[tokio::test]
async fn an_instance_is_read_as_ec2_describes_it() {
    let server = Server::always(ec2("DescribeInstances", INSTANCE)).await;
    let page = server.connect().await.describe_instances(&Query::ids(["i-1"]), None).await.unwrap();
    let instance = &page.items[0];
    assert_eq!((page.items.len(), page.next.as_deref()), (1, None));
    assert_eq!((instance.id.as_str(), instance.state), ("i-0123456789abcdef0", State::Running));
    assert_eq!(instance.zone.as_deref(), Some("us-east-1b"));
    assert_eq!(instance.subnet.as_deref(), Some("subnet-1"));
    assert_eq!(instance.client_token.as_deref(), Some("c-1"));
    assert_eq!(instance.launched_unix, Some(1_767_323_045));
    assert!(instance.spot && instance.sev_snp);
    assert_eq!(instance.state_reason.as_ref().unwrap().code, "pending");
    // A disk of the host is no volume.
    assert_eq!(instance.volumes.len(), 1);
    assert!(instance.volumes[0].delete_on_termination && instance.volumes[0].device == "/dev/xvda");
    let interface = &instance.interfaces[0];
    let addresses: Vec<String> = interface.private_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.1.5", "10.0.1.6"]);
    assert_eq!(interface.public_address, Some("203.0.113.5".parse().unwrap()));
    assert_eq!(interface.public_owner.as_deref(), Some("amazon"));
    assert_eq!(interface.attachment.as_deref(), Some("eni-attach-1"));
    assert_eq!(instance.tags["Name"], "podvm-web");
    assert_eq!(instance.tags["empty"], "");
}

#[tokio::test]
async fn types_groups_and_templates_are_read_as_ec2_describes_them() {
    let types = "<instanceTypeSet><item><instanceType>g6.xlarge</instanceType>\
        <supportedUsageClasses><item>on-demand</item><item>spot</item></supportedUsageClasses>\
        <processorInfo><supportedArchitectures><item>x86_64</item></supportedArchitectures>\
        <supportedFeatures><item>amd-sev-snp</item></supportedFeatures></processorInfo>\
        <vCpuInfo><defaultVCpus>4</defaultVCpus></vCpuInfo><memoryInfo><sizeInMiB>16384</sizeInMiB></memoryInfo>\
        <gpuInfo><gpus><item><name>L4</name><count>1</count></item></gpus></gpuInfo>\
        <networkInfo><maximumNetworkInterfaces>3</maximumNetworkInterfaces></networkInfo>\
        <supportedBootModes><item>legacy-bios</item><item>uefi</item></supportedBootModes></item></instanceTypeSet>";
    let server = Server::always(ec2("DescribeInstanceTypes", types)).await;
    let found = server.connect().await.describe_instance_types(&["g6.xlarge".to_owned()]).await.unwrap();
    let info = &found[0];
    assert_eq!((info.vcpus, info.memory_mib, info.gpus), (Some(4), Some(16384), 1));
    assert_eq!((info.gpu_model.as_deref(), info.max_interfaces, info.sev_snp), (Some("L4"), Some(3), true));
    assert_eq!(info.architectures, ["x86_64"]);
    assert_eq!(
        (info.boot_modes.join(" "), info.usage_classes.join(" ")),
        ("legacy-bios uefi".into(), "on-demand spot".into())
    );

    let groups = "<securityGroupInfo><item><groupId>sg-1</groupId><groupName>pods</groupName><vpcId>vpc-1</vpcId>\
        <ipPermissions><item><ipProtocol>tcp</ipProtocol><fromPort>15150</fromPort><toPort>15150</toPort>\
        <groups><item><groupId>sg-2</groupId></item></groups>\
        <ipRanges><item><cidrIp>10.0.0.0/8</cidrIp></item></ipRanges>\
        <ipv6Ranges><item><cidrIpv6>fd00::/8</cidrIpv6></item></ipv6Ranges>\
        <prefixListIds><item><prefixListId>pl-1</prefixListId></item></prefixListIds></item></ipPermissions>\
        <ipPermissionsEgress><item><ipProtocol>-1</ipProtocol></item></ipPermissionsEgress></item></securityGroupInfo>";
    let server = Server::always(ec2("DescribeSecurityGroups", groups)).await;
    let found = server.connect().await.describe_security_groups(&["sg-1".to_owned()]).await.unwrap();
    let rule = &found[0].ingress[0];
    assert_eq!((rule.protocol.as_str(), rule.from_port, rule.to_port), ("tcp", Some(15150), Some(15150)));
    assert_eq!(
        (rule.groups.join(" "), rule.ranges.join(" ")),
        ("sg-2".into(), "10.0.0.0/8 fd00::/8 pl-1".into())
    );
    assert_eq!((found[0].egress[0].protocol.as_str(), found[0].egress[0].from_port), ("-1", None));

    let template = "<launchTemplateVersionSet><item><launchTemplateId>lt-1</launchTemplateId>\
        <versionNumber>3</versionNumber><launchTemplateData><imageId>resolve:ssm:/images/podvm</imageId>\
        <cpuOptions><amdSevSnp>disabled</amdSevSnp></cpuOptions>\
        <instanceMarketOptions><marketType>spot</marketType></instanceMarketOptions>\
        <securityGroupIdSet><item>sg-1</item></securityGroupIdSet>\
        <networkInterfaceSet><item><subnetId>subnet-1</subnetId><groupSet><groupId>sg-2</groupId></groupSet></item>\
        </networkInterfaceSet></launchTemplateData></item></launchTemplateVersionSet>";
    let server = Server::always(ec2("DescribeLaunchTemplateVersions", template)).await;
    let wanted = LaunchTemplateRef::new("kata", "$Default");
    let found = server.connect().await.describe_launch_template_versions(&wanted).await.unwrap().unwrap();
    assert_eq!((found.id.as_str(), found.version, found.interfaces), ("lt-1", Some(3), 1));
    assert_eq!((found.sev_snp, found.spot), (Some(false), true));
    assert_eq!((found.subnets.join(" "), found.groups.join(" ")), ("subnet-1".into(), "sg-1 sg-2".into()));
    let asked = server.last();
    assert_eq!(asked.field("LaunchTemplateVersion.1").as_deref(), Some("$Default"), "{}", asked.body);
    assert_eq!(asked.field("LaunchTemplateName").as_deref(), Some("kata"));
    let server = Server::always(ec2("DescribeLaunchTemplateVersions", "")).await;
    assert_eq!(server.connect().await.describe_launch_template_versions(&wanted).await.unwrap(), None);
}

#[tokio::test]
async fn a_console_is_asked_for_as_it_is_now_and_as_it_was() {
    // "kernel: boot" in lines, as EC2 wraps it.
    let output = "<instanceId>i-1</instanceId><timestamp>2026-01-02T03:04:05.000Z</timestamp>\
        <output>a2VybmVs\nOiBib290\n</output>";
    for latest in [true, false] {
        let server = Server::always(ec2("GetConsoleOutput", output)).await;
        let told = server.connect().await.get_console_output("i-1", latest).await.unwrap();
        assert_eq!(told, b"kernel: boot");
        let asked = &server.asked()[0];
        assert_eq!(asked.action(), "GetConsoleOutput");
        assert_eq!(asked.field("InstanceId").as_deref(), Some("i-1"));
        assert_eq!(asked.field("Latest"), Some(latest.to_string()));
    }
    let server = Server::always(ec2("GetConsoleOutput", "<instanceId>i-1</instanceId>")).await;
    assert!(server.connect().await.get_console_output("i-1", true).await.unwrap().is_empty());
}

#[tokio::test]
async fn limits_and_the_identity_are_asked_for() {
    let limits = "<accountAttributeSet><item><attributeName>vpc-max-elastic-ips</attributeName>\
        <attributeValueSet><item><attributeValue>5</attributeValue></item></attributeValueSet></item></accountAttributeSet>";
    let server = Server::start(move |asked| match asked.action().as_str() {
        "GetCallerIdentity" => Answer::ok(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/tester</Arn><UserId>AIDA</UserId>\
             <Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
        ),
        other => ec2(other, limits),
    })
    .await;
    let ec2 = server.connect().await;
    let found = ec2.describe_account_attributes().await.unwrap();
    assert_eq!((found[0].name.as_str(), found[0].values.join(" ")), ("vpc-max-elastic-ips", "5".into()));
    let who = ec2.get_caller_identity().await.unwrap();
    assert_eq!(who.as_deref(), Some("arn:aws:iam::123456789012:user/tester"));
}

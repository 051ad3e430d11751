//! EC2 over a real server of the emulator: what it is not faithful in is supplied.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use fault_proxy::ec2::{Ec2, Probe, Settings, Shortage, texts};
use fault_proxy::{Answer, HttpFaultProxy, Options, Request, Upstream};
use hyper::Method;
use test_support::{Moto, wait_for_async};

const LIMIT: Duration = Duration::from_secs(30);

/// Each test has a region of its own, in which it is alone.
const REGIONS: [&str; 9] = [
    "us-east-1",
    "us-east-2",
    "us-west-2",
    "eu-west-1",
    "eu-central-1",
    "ap-southeast-1",
    "ap-south-1",
    "ca-central-1",
    "sa-east-1",
];

/// Tests that run at the same time share a server; it ends with the last of them.
fn moto() -> (Arc<Moto>, &'static str) {
    static SHARED: Mutex<Weak<Moto>> = Mutex::new(Weak::new());
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let moto = shared.upgrade().unwrap_or_else(|| Arc::new(Moto::start().unwrap()));
    *shared = Arc::downgrade(&moto);
    (moto, REGIONS[NEXT.fetch_add(1, Ordering::SeqCst)])
}

struct Cloud {
    _moto: Arc<Moto>,
    ec2: Arc<Ec2>,
    client: Probe,
    region: &'static str,
    proxy: HttpFaultProxy,
    subnet: String,
    zone: String,
}

impl Cloud {
    async fn start(settings: Settings) -> Self {
        let (moto, region) = moto();
        let ec2 = Arc::new(Ec2::new(settings));
        let behaviour: Arc<Ec2> = Arc::clone(&ec2);
        let options = Options::default().with_behaviour(behaviour);
        let proxy = HttpFaultProxy::start(Upstream::server(&moto.url()).unwrap(), options).await.unwrap();
        let client = Probe::new(&proxy.url(), region).unwrap();
        let (subnet, zone) = (String::new(), String::new());
        let mut cloud = Self { _moto: moto, ec2, client, region, proxy, subnet, zone };
        let subnets = cloud.ok("DescribeSubnets", &[]).await;
        cloud.subnet = all(&subnets, "subnetId").remove(0);
        cloud.zone = all(&subnets, "availabilityZone").remove(0);
        cloud
    }

    async fn call(&self, action: &str, fields: &[(&str, &str)]) -> Answer {
        self.client.call(action, fields).await.unwrap()
    }

    async fn ok(&self, action: &str, fields: &[(&str, &str)]) -> String {
        let answer = self.call(action, fields).await;
        assert_eq!(answer.status, 200, "{action}: {:?}", answer.text());
        answer.text().unwrap().to_owned()
    }

    async fn refused(&self, action: &str, fields: &[(&str, &str)]) -> (u16, String) {
        let answer = self.call(action, fields).await;
        let code = all(answer.text().unwrap(), "Code").pop();
        (answer.status, code.unwrap_or_else(|| panic!("{action} succeeds: {:?}", answer.text())))
    }

    fn launch<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut fields = vec![("MinCount", "1"), ("MaxCount", "1")];
        for (name, value) in [
            ("ImageId", Moto::IMAGE),
            ("InstanceType", "m6a.large"),
            ("NetworkInterface.1.DeviceIndex", "0"),
            ("NetworkInterface.1.SubnetId", &self.subnet),
            ("NetworkInterface.1.AssociatePublicIpAddress", "true"),
        ] {
            if !more.iter().any(|(other, _)| *other == name) {
                fields.push((name, value));
            }
        }
        fields.extend_from_slice(more);
        fields
    }

    async fn run(&self, more: &[(&str, &str)]) -> String {
        all(&self.ok("RunInstances", &self.launch(more)).await, "instanceId").remove(0)
    }

    async fn until(&self, id: &str, state: &str) -> String {
        let look = || async {
            let answer = self.call("DescribeInstances", &[("InstanceId.1", id)]).await;
            let text = answer.text().unwrap().to_owned();
            (answer.status == 200 && text.contains(&format!("<name>{state}</name>"))).then_some(text)
        };
        wait_for_async(&format!("{id} to be {state}"), LIMIT, look).await.unwrap()
    }
}

fn all(text: &str, name: &str) -> Vec<String> {
    texts(text, name).unwrap()
}

#[tokio::test]
async fn a_token_is_one_instance_and_is_bound_to_its_parameters() {
    let cloud = Cloud::start(Settings::default()).await;
    let token = ("ClientToken", "t");
    let same = [token];
    let (a, b) = tokio::join!(cloud.run(&same), cloud.run(&same));
    assert_eq!(a, b);
    let other = cloud.launch(&[token, ("InstanceType", "t3.small")]);
    assert_eq!(cloud.refused("RunInstances", &other).await, (400, "IdempotentParameterMismatch".to_owned()));
    assert_eq!(all(&cloud.ok("DescribeInstances", &[]).await, "instanceId"), [a]);
}

#[tokio::test]
async fn states_move_and_what_was_just_made_is_not_seen_yet() {
    // Times are set and not waited for: a busy machine would miss a state that lasts a moment.
    const FOREVER: u64 = 3_600_000;
    let mut settings = Settings::realistic();
    (settings.hidden_ms, settings.pending_ms, settings.shutting_down_ms) = (FOREVER, FOREVER, FOREVER);
    let cloud = Cloud::start(settings).await;
    let id = cloud.run(&[]).await;
    let named = [("InstanceId.1", id.as_str())];
    assert_eq!(cloud.refused("DescribeInstances", &named).await.1, "InvalidInstanceID.NotFound");
    assert!(!cloud.ok("DescribeInstances", &[]).await.contains(&id));
    cloud.ec2.change(|settings| settings.hidden_ms = 0);
    let pending = cloud.until(&id, "pending").await;
    assert!(!pending.contains("<ipAddress>"), "{pending}");
    let of_state = |state| [("Filter.1.Name", "instance-state-name"), ("Filter.1.Value.1", state)];
    assert!(cloud.ok("DescribeInstances", &of_state("pending")).await.contains(&id));
    assert!(!cloud.ok("DescribeInstances", &of_state("running")).await.contains(&id));
    cloud.ec2.change(|settings| settings.pending_ms = 0);
    let running = cloud.until(&id, "running").await;
    assert!(running.contains("<ipAddress>"), "{running}");
    assert!(!cloud.ok("DescribeInstances", &of_state("pending")).await.contains(&id));
    cloud.ok("TerminateInstances", &named).await;
    cloud.until(&id, "shutting-down").await;
    cloud.ec2.change(|settings| settings.shutting_down_ms = 0);
    cloud.until(&id, "terminated").await;
    cloud.ec2.change(|settings| settings.forget_ms = Some(0));
    assert_eq!(cloud.refused("DescribeInstances", &named).await.1, "InvalidInstanceID.NotFound");
    assert_eq!(cloud.refused("TerminateInstances", &named).await.1, "InvalidInstanceID.NotFound");
}

#[tokio::test]
async fn terminating_again_succeeds_and_one_unknown_id_spares_all() {
    let cloud = Cloud::start(Settings::default()).await;
    let id = cloud.run(&[]).await;
    let both = [("InstanceId.1", id.as_str()), ("InstanceId.2", "i-0123456789abcdef0")];
    assert_eq!(cloud.refused("TerminateInstances", &both).await.1, "InvalidInstanceID.NotFound");
    cloud.until(&id, "running").await;
    for previous in ["running", "terminated", "terminated"] {
        let said = cloud.ok("TerminateInstances", &both[..1]).await;
        let names = all(&said, "name");
        assert_eq!(names[1], previous, "{said}");
    }
}

#[tokio::test]
async fn wrong_images_and_types_are_refused_with_the_codes_of_the_service() {
    let cloud = Cloud::start(Settings::default()).await;
    for (field, value, code) in [
        ("ImageId", "ami-nope", "InvalidAMIID.Malformed"),
        ("ImageId", "ami-0deadbeefdeadbeef", "InvalidAMIID.NotFound"),
        ("InstanceType", "zz.bad", "InvalidParameterValue"),
    ] {
        let refused = cloud.refused("RunInstances", &cloud.launch(&[(field, value)])).await;
        assert_eq!(refused, (400, code.to_owned()));
    }
    let none: Vec<_> = cloud.launch(&[]).into_iter().filter(|(name, _)| *name != "ImageId").collect();
    assert_eq!(cloud.refused("RunInstances", &none).await.1, "MissingParameter");
    let unknown = cloud.refused("DescribeInstanceTypes", &[("InstanceType.1", "zz.bad")]).await;
    assert_eq!(unknown.1, "InvalidInstanceType");
    let trial = cloud.launch(&[("DryRun", "true")]);
    assert_eq!(cloud.refused("RunInstances", &trial).await.1, "DryRunOperation");
    assert!(all(&cloud.ok("DescribeInstances", &[]).await, "instanceId").is_empty());
}

#[tokio::test]
async fn interfaces_disks_and_addresses_go_as_they_were_told_to() {
    let cloud = Cloud::start(Settings::default()).await;
    let tags = [
        ("TagSpecification.1.ResourceType", "network-interface"),
        ("TagSpecification.1.Tag.1.Key", "peerpod-token"),
        ("TagSpecification.1.Tag.1.Value", "t"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "9"),
    ];
    let id = cloud.run(&tags).await;
    let tagged = [("Filter.1.Name", "tag:peerpod-token"), ("Filter.1.Value.1", "t")];
    let first = all(&cloud.ok("DescribeNetworkInterfaces", &tagged).await, "networkInterfaceId").remove(0);
    let made = cloud.ok("CreateNetworkInterface", &[("SubnetId", &cloud.subnet)]).await;
    let extra = all(&made, "networkInterfaceId").remove(0);
    let attach = [("NetworkInterfaceId", extra.as_str()), ("InstanceId", &id), ("DeviceIndex", "1")];
    let attachment = all(&cloud.ok("AttachNetworkInterface", &attach).await, "attachmentId").remove(0);
    let set = [
        ("NetworkInterfaceId", extra.as_str()),
        ("Attachment.AttachmentId", attachment.as_str()),
        ("Attachment.DeleteOnTermination", "true"),
    ];
    cloud.ok("ModifyNetworkInterfaceAttribute", &set).await;
    let said = cloud.ok("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", &extra)]).await;
    assert_eq!(all(&said, "deleteOnTermination"), ["true"]);
    let address = all(&cloud.ok("AllocateAddress", &[("Domain", "vpc")]).await, "allocationId").remove(0);
    let allocation = [("AllocationId", address.as_str())];
    cloud.ok("AssociateAddress", &[allocation[0], ("NetworkInterfaceId", &extra)]).await;
    let in_use = cloud.refused("DeleteNetworkInterface", &[("NetworkInterfaceId", &first)]).await;
    assert_eq!(in_use.1, "InvalidParameterValue");
    assert_eq!(cloud.refused("ReleaseAddress", &allocation).await.1, "InvalidIPAddress.InUse");
    cloud.ok("TerminateInstances", &[("InstanceId.1", &id)]).await;
    assert_eq!(cloud.client.leftovers().await.unwrap(), [address.as_str()]);
    cloud.ok("ReleaseAddress", &allocation).await;
}

#[tokio::test]
async fn an_interface_that_shall_stay_stays_and_is_free() {
    let cloud = Cloud::start(Settings::default()).await;
    let id = cloud.run(&[]).await;
    let made = cloud.ok("CreateNetworkInterface", &[("SubnetId", &cloud.subnet)]).await;
    let extra = all(&made, "networkInterfaceId").remove(0);
    let attach = [("NetworkInterfaceId", extra.as_str()), ("InstanceId", &id), ("DeviceIndex", "1")];
    cloud.ok("AttachNetworkInterface", &attach).await;
    cloud.ok("TerminateInstances", &[("InstanceId.1", &id)]).await;
    let said = cloud.ok("DescribeNetworkInterfaces", &[]).await;
    assert_eq!(all(&said, "networkInterfaceId"), [extra.as_str()]);
    assert_eq!(all(&said, "status"), ["available"]);
    cloud.ok("DeleteNetworkInterface", &[("NetworkInterfaceId", &extra)]).await;
}

#[tokio::test]
async fn capacity_is_missing_where_it_was_ordered_to() {
    let cloud = Cloud::start(Settings::default()).await;
    let zone = cloud.zone.clone();
    let shortage = Shortage::new("InsufficientInstanceCapacity").with_zone(&zone).with_times(1);
    cloud.ec2.change(|settings| {
        settings.shortages = vec![
            shortage.clone(),
            Shortage::new("MaxSpotInstanceCountExceeded").with_spot(true),
            Shortage::new("InsufficientInstanceCapacity").with_zone("us-east-1z"),
            Shortage::new("InsufficientFreeAddressesInSubnet").with_instance_type("t3.small"),
        ];
    });
    let token = ("ClientToken", "t");
    let capacity = cloud.refused("RunInstances", &cloud.launch(&[token])).await;
    assert_eq!(capacity, (500, "InsufficientInstanceCapacity".to_owned()));
    let elsewhere = cloud.launch(&[token, ("InstanceType", "m6a.xlarge")]);
    assert_eq!(cloud.refused("RunInstances", &elsewhere).await.1, "IdempotentParameterMismatch");
    cloud.run(&[token]).await;
    let spot = cloud.launch(&[("InstanceMarketOptions.MarketType", "spot")]);
    assert_eq!(cloud.refused("RunInstances", &spot).await, (400, "MaxSpotInstanceCountExceeded".to_owned()));
    let full = cloud.launch(&[("InstanceType", "t3.small")]);
    assert_eq!(cloud.refused("RunInstances", &full).await.1, "InsufficientFreeAddressesInSubnet");
}

#[tokio::test]
async fn a_snapshot_that_is_written_block_by_block_has_no_disk() {
    let cloud = Cloud::start(Settings::default()).await;
    let scope = format!("Credential=a/20260101/{}/ebs/aws4_request", cloud.region);
    let signed = format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0");
    let headers = [("authorization", signed.as_str()), ("content-type", "application/json")];
    let request = Request {
        method: Method::POST,
        path: "/snapshots".to_owned(),
        query: String::new(),
        headers: headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect(),
        body: r#"{"VolumeSize": 1, "ClientToken": "t"}"#.into(),
    };
    let answer = Upstream::server(&cloud.proxy.url()).unwrap().send(&request).await.unwrap();
    assert!(answer.is_success() && answer.text().unwrap().contains("SnapshotId"), "{answer:?}");
    assert_eq!(cloud.client.leftovers().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_registered_image_is_described_as_it_was_registered() {
    let cloud = Cloud::start(Settings::default()).await;
    let register = [
        ("Name", "podvm"),
        ("Architecture", "arm64"),
        ("BootMode", "uefi"),
        ("RootDeviceName", "/dev/xvda"),
        ("VirtualizationType", "hvm"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.SnapshotId", "snap-1"),
        ("TagSpecification.1.ResourceType", "image"),
        ("TagSpecification.1.Tag.1.Key", "peerpod-setup"),
        ("TagSpecification.1.Tag.1.Value", "x"),
    ];
    let id = all(&cloud.ok("RegisterImage", &register).await, "imageId").remove(0);
    let tagged = [("Filter.1.Name", "tag:peerpod-setup"), ("Filter.1.Value.1", "x"), ("Owner.1", "self")];
    let said = cloud.ok("DescribeImages", &tagged).await;
    for (name, value) in [
        ("imageId", id.as_str()),
        ("architecture", "arm64"),
        ("bootMode", "uefi"),
        ("rootDeviceName", "/dev/xvda"),
        ("virtualizationType", "hvm"),
        ("snapshotId", "snap-1"),
        ("deleteOnTermination", "true"),
    ] {
        assert_eq!(all(&said, name), [value], "{name}");
    }
}

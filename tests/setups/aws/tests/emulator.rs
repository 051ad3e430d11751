//! The set-up against EC2's emulator, behind the proxy.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fault_proxy::ec2::{Ec2, Probe, Settings, internal_error};
use fault_proxy::{Act, HttpFaultProxy, Match, Options, Rule, Upstream};
use setup_aws::{Access, Account, ImageOptions, Name, NetworkOptions, WorkerOptions, leftovers};
use test_support::Moto;

const REGION: &str = "us-east-1";
const MIB: u64 = 1 << 20;

struct Cloud {
    proxy: HttpFaultProxy,
    probe: Probe,
    account: Account,
    _moto: Moto,
}

impl Cloud {
    async fn start() -> Self {
        let moto = tokio::task::spawn_blocking(Moto::start).await.unwrap().unwrap();
        let behaviour = Arc::new(Ec2::new(Settings::realistic()));
        let options = Options::default().with_behaviour(behaviour);
        let proxy = HttpFaultProxy::start(Upstream::server(&moto.url()).unwrap(), options).await.unwrap();
        let probe = Probe::new(&moto.url(), REGION).unwrap();
        let access = Access {
            region: Some(REGION.to_owned()),
            endpoint: Some(proxy.url()),
            keys: Some(("a".to_owned(), "b".to_owned())),
        };
        let account = Account::open(&access).await.unwrap().with_limit(Duration::from_secs(60));
        Self { proxy, probe, account, _moto: moto }
    }

    async fn count(&self, action: &str, name: &str) -> usize {
        self.probe.all(action, &[], name).await.unwrap().len()
    }
}

/// A disk of 3 MiB with something in its first and last block.
fn disk(path: &Path, first: u8) {
    let mut file = std::fs::File::create(path).unwrap();
    file.set_len(3 * MIB).unwrap();
    file.write_all(&[first; 100]).unwrap();
    file.seek(SeekFrom::Start(3 * MIB - 1)).unwrap();
    file.write_all(&[9]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_made_once_and_only_that_is_deleted() {
    let cloud = Cloud::start().await;
    let (account, name) = (&cloud.account, Name::new("setup-test").unwrap());
    let before = [
        cloud.count("DescribeVpcs", "vpcId").await,
        cloud.count("DescribeSubnets", "subnetId").await,
        cloud.count("DescribeSecurityGroups", "groupId").await,
        cloud.count("DescribeImages", "imageId").await,
    ];
    let options =
        NetworkOptions { reach_from: vec!["192.0.2.7".parse().unwrap()], ..NetworkOptions::default() };
    let network = account.network(&name, &options).await.unwrap();
    assert_eq!((network.subnets.len(), network.zones.len()), (2, 2));
    assert_eq!(account.network(&name, &options).await.unwrap(), network, "found again");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    disk(&path, 1);
    let image = ImageOptions { disk: path.clone(), architecture: "x86_64".to_owned() };
    let uploaded = account.image(&name, &image).await.unwrap();
    assert_eq!(uploaded.blocks, 2, "blocks of zeros are left out");
    let again = account.image(&name, &image).await.unwrap();
    assert_eq!((&again.image, again.blocks), (&uploaded.image, 0));
    let said = cloud.probe.all("DescribeImages", &[("ImageId.1", &uploaded.image)], "imageId").await.unwrap();
    assert_eq!(said, [uploaded.image.as_str()]);
    disk(&path, 2);
    assert_ne!(account.image(&name, &image).await.unwrap().image, uploaded.image, "other bytes");

    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDF/2Lw3Tr3OYYvDY9sE1Pt8jJVYB+mn8mJbiHPZqCVr test";
    let worker = WorkerOptions {
        image: Some(uploaded.image.clone()),
        public_key: Some(key.to_owned()),
        ..WorkerOptions::default()
    };
    let first = account.worker(&name, &network, &worker).await.unwrap();
    assert!(first.private_address.is_some() && first.public_address.is_some(), "{first:?}");
    assert_eq!(account.worker(&name, &network, &worker).await.unwrap(), first, "found again");

    assert!(leftovers(account, &name).await.unwrap().len() > 8);
    let done = account.delete(&name).await.unwrap();
    assert!(done.deleted.contains(&first.instance) && done.deleted.contains(&network.vpc), "{done:?}");
    assert_eq!(leftovers(account, &name).await.unwrap(), [""; 0]);
    let after = [
        cloud.count("DescribeVpcs", "vpcId").await,
        cloud.count("DescribeSubnets", "subnetId").await,
        cloud.count("DescribeSecurityGroups", "groupId").await,
        cloud.count("DescribeImages", "imageId").await,
    ];
    assert_eq!(before, after);
    assert_eq!(cloud.probe.leftovers().await.unwrap(), [""; 0]);
    assert_eq!(account.delete(&name).await.unwrap().deleted, [""; 0], "deleting again is fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_and_what_others_have_is_never_deleted() {
    let cloud = Cloud::start().await;
    let (account, name) = (&cloud.account, Name::new("guest").unwrap());
    let made = cloud.probe.all("CreateVpc", &[("CidrBlock", "10.9.0.0/16")], "vpcId").await.unwrap();
    let options = NetworkOptions { vpc: Some(made[0].clone()), zones: 1, ..NetworkOptions::default() };
    let network = account.network(&name, &options).await.unwrap();
    assert_eq!(network.vpc, made[0]);
    let fields = [
        ("ImageId", Moto::IMAGE),
        ("InstanceType", "t3.small"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.SubnetId", &network.subnets[0]),
    ];
    // Of somebody else, in our subnet; through the proxy, so that its interface goes with it.
    let other = Probe::new(&cloud.proxy.url(), REGION).unwrap();
    let foreign = other.all("RunInstances", &fields, "instanceId").await.unwrap().remove(0);
    // The emulator would delete the subnet all the same: the service does not.
    let held = fault_proxy::ec2::error(
        400,
        "DependencyViolation",
        "The subnet has dependencies and cannot be deleted.",
    );
    cloud.proxy.add(Rule::new("held", Match::action("DeleteSubnet"), Act::Answer(held))).unwrap();
    let error = account.delete(&name).await.unwrap_err().to_string();
    assert!(error.contains(&foreign), "{error}");
    assert!(cloud.probe.leftovers().await.unwrap().contains(&foreign), "it lives");
    cloud.proxy.clear();
    other.ask("TerminateInstances", &[("InstanceId.1", &foreign)]).await.unwrap();
    account.delete(&name).await.unwrap();
    let vpcs = cloud.probe.all("DescribeVpcs", &[], "vpcId").await.unwrap();
    assert!(vpcs.contains(&made[0]), "the VPC that was given stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_failed_halfway_is_repeated_and_leaves_nothing() {
    let cloud = Cloud::start().await;
    let (account, name) = (&cloud.account, Name::new("halfway").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    disk(&path, 3);
    let image = ImageOptions { disk: path, architecture: "x86_64".to_owned() };
    let refused = fault_proxy::ec2::error(
        403,
        "UnauthorizedOperation",
        "You are not authorized to perform this operation.",
    );
    for action in ["CreateSubnet", "RegisterImage"] {
        let act = Act::Answer(refused.clone());
        cloud.proxy.add(Rule::new(action, Match::action(action), act).with_times(1)).unwrap();
    }
    let options = NetworkOptions::default();
    let error = account.network(&name, &options).await.unwrap_err().to_string();
    assert!(error.contains("UnauthorizedOperation"), "{error}");
    let network = account.network(&name, &options).await.unwrap();
    assert_eq!(network.subnets.len(), 2);
    assert!(account.image(&name, &image).await.is_err());
    // What passes is repeated by itself.
    let broken = Rule::new("broken", Match::any(), Act::Answer(internal_error())).with_share(0.1);
    cloud.proxy.add(broken).unwrap();
    account.image(&name, &image).await.unwrap();
    cloud.proxy.clear();
    // The emulator has snapshots of its own images too.
    let own = [("Filter.1.Name", "tag:peerpod-setup"), ("Filter.1.Value.1", "halfway")];
    let left = cloud.probe.all("DescribeSnapshots", &own, "snapshotId").await.unwrap();
    assert_eq!(left.len(), 1, "the snapshot of the failed attempt is gone: {left:?}");
    account.delete(&name).await.unwrap();
    assert_eq!(leftovers(account, &name).await.unwrap(), [""; 0]);
}

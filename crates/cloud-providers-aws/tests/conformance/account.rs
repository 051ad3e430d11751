//! An account of EC2 in memory, for one case.

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    Cloud, CreateRequest, Error, ErrorKind, InstanceId, NetworkRequest, Resource, Retry, VolumeRequest,
    async_trait, names::instance_name,
};
use cloud_providers_aws::{
    AwsCloud,
    scripted::{Fault as Scripted, World},
};
use cloud_providers_conformance::{
    Bounds, Effect, Fault, Feature, Found, Harness, ListFault, Obstacle, Offer, Refusal,
};

/// Longer than any instance is waited for.
const NEVER: Duration = Duration::from_secs(1_000_000);
const BOOT: Duration = Duration::from_millis(30);

/// What instances are like in an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The launch says everything, and nothing is waited for.
    Plain,
    /// With a public address, which is there when the instance runs.
    Public,
    /// With a second interface and an Elastic IP, which are made when the instance runs.
    Parts,
}

pub(crate) struct Account {
    pub(crate) world: World,
    kind: Kind,
}

impl Account {
    pub(crate) fn new(kind: Kind) -> Self {
        let world = World::new();
        world.set_latency(Duration::from_millis(10));
        world.set_boot_time(BOOT);
        world.set_shutdown_time(Duration::from_millis(30));
        Self { world, kind }
    }
}

fn refusals() -> Vec<Refusal> {
    let capacity =
        ErrorKind::Capacity { zone: Some("zone-a".into()), instance_type: Some("t3.small".into()) };
    let second = Retry::After { delay: Duration::from_secs(1) };
    [
        ("InsufficientInstanceCapacity", capacity.clone(), Retry::Elsewhere),
        ("InsufficientFreeAddressesInSubnet", capacity, Retry::Elsewhere),
        ("VcpuLimitExceeded", ErrorKind::Quota, Retry::Elsewhere),
        ("UnauthorizedOperation", ErrorKind::Permission, Retry::Never),
        ("AuthFailure", ErrorKind::Auth, Retry::Never),
        ("RequestLimitExceeded", ErrorKind::Throttled, second),
    ]
    .into_iter()
    .map(|(code, kind, retry)| Refusal { name: code.into(), kind, retry, code: Some(code.into()) })
    .collect()
}

#[async_trait]
impl Harness for Account {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(AwsCloud::new().with_connect(Arc::new(self.world.clone())))
    }

    fn variables(&self) -> Vec<(String, String)> {
        let public = if self.kind == Kind::Plain { "false" } else { "true" };
        [
            ("PODVM_AMI_ID", "ami-1"),
            ("PODVM_INSTANCE_TYPE", "t3.small"),
            ("PODVM_INSTANCE_TYPES", "t3.small,m6g.large,g4dn.xlarge"),
            ("DISABLECVM", "true"),
            ("AWS_SUBNET_ID", "subnet-a"),
            ("AWS_SG_IDS", "sg-1"),
            ("SSH_KP_NAME", "key-1"),
            ("USE_PUBLIC_IP", public),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        let mut request = blank.with_user_data("#cloud-config\n");
        if self.kind == Kind::Parts {
            request.networks = vec![NetworkRequest::default(), NetworkRequest::default()];
        }
        request
    }

    async fn leftovers(&self) -> Offer<Vec<Found>> {
        let found = self.world.things().into_iter().map(|thing| {
            let found = Found::new(Resource::new(thing.kind, thing.id));
            // A volume of the user has none of our tags, and never had.
            match thing.comes_with {
                Some(instance) => {
                    found.part_of(Resource::new(Resource::INSTANCE, instance)).with_tags(thing.tags)
                }
                None => found.with_tags(thing.tags),
            }
        });
        Ok(found.collect())
    }

    fn bounds(&self) -> Bounds {
        // The clock runs ahead while everybody waits.
        Bounds::default()
            .with_operation(Duration::from_secs(700))
            .with_cancel(Duration::from_secs(60))
            .with_notice(Duration::from_millis(1500))
    }

    fn names_are_unique(&self) -> bool {
        false
    }

    fn missing_id(&self) -> InstanceId {
        InstanceId::new("i-0123456789abcdef0")
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Fail, Effect::LoseReply, Effect::HangBefore, Effect::HangAfter]
    }

    async fn inject(&self, fault: Fault) -> Offer<()> {
        let scripted = Scripted::on_call(fault.nth);
        let refused = Error::new(ErrorKind::Quota, "EC2 refuses as told").with_cloud("AsTold", "no");
        let scripted = match fault.effect {
            Effect::Fail => scripted.before(refused),
            Effect::LoseReply => scripted.lost_reply(),
            Effect::HangBefore => scripted.hang_before(),
            Effect::HangAfter => scripted.hang_after(),
            _ => return Err(Obstacle::unsupported("this effect")),
        };
        self.world.script(scripted.telling(fault.struck));
        Ok(())
    }

    async fn clear_faults(&self) -> Offer<()> {
        self.world.clear_faults();
        self.world.set_boot_time(BOOT);
        self.world.set_page_size(100);
        Ok(())
    }

    async fn calls(&self) -> Offer<usize> {
        Ok(self.world.calls().len())
    }

    async fn block_removals(&self) -> Offer<()> {
        self.world.deny(&["TerminateInstances", "ReleaseAddress", "DeleteNetworkInterface"]);
        Ok(())
    }

    async fn add_foreign(&self, request: &CreateRequest) -> Offer<InstanceId> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, 63)?;
        Ok(InstanceId::new(self.world.add_instance(&name, &[("owner", "somebody")])))
    }

    async fn add_untagged(&self, name: &str) -> Offer<InstanceId> {
        let id = self.world.add_instance(name, &[]);
        // As the existing programs leave them: parts by name, and the interface that stays.
        self.world.add_interface(&id, 1, &[("Name", &format!("nic-{id}"))]);
        self.world.add_address(&id, &[("Name", &format!("eip-{id}"))]);
        Ok(InstanceId::new(id))
    }

    async fn attach_foreign(&self, id: &InstanceId) -> Offer<()> {
        self.world.add_interface(id.as_str(), 2, &[("owner", "somebody")]);
        Ok(())
    }

    async fn remove_instance_only(&self, id: &InstanceId) -> Offer<()> {
        self.world.terminate_now(id.as_str());
        self.world.forget(id.as_str());
        Ok(())
    }

    async fn add_volume(&self) -> Offer<VolumeRequest> {
        Ok(VolumeRequest::new(self.world.add_volume("zone-a", false)))
    }

    async fn break_lists(&self, how: ListFault) -> Offer<()> {
        let lists =
            ["DescribeInstances", "DescribeNetworkInterfaces", "DescribeVolumes", "DescribeAddresses"];
        self.world.set_page_size(1);
        match how {
            ListFault::Partly => self.world.script(Scripted::on("DescribeInstances").nth(2).forever()),
            _ => lists.into_iter().for_each(|list| self.world.script(Scripted::on(list).forever())),
        }
        Ok(())
    }

    async fn never_ready(&self) -> Offer<()> {
        if self.kind == Kind::Plain {
            return Err(Obstacle::unsupported("a create that waits"));
        }
        self.world.set_boot_time(NEVER);
        Ok(())
    }

    async fn ready_after(&self, time: Duration) -> Offer<()> {
        if self.kind == Kind::Plain {
            return Err(Obstacle::unsupported("a create that waits"));
        }
        self.world.set_boot_time(time);
        Ok(())
    }

    async fn with_feature(&self, feature: Feature, mut request: CreateRequest) -> Offer<CreateRequest> {
        match feature {
            Feature::Volumes => request.spec.volumes.push(self.add_volume().await?),
            Feature::Image => {
                self.world.add_image("ami-2", 40);
                request.spec.image = Some("ami-2".into());
            }
            _ => return feature.add_to(request),
        }
        Ok(request)
    }

    async fn has_feature(&self, feature: Feature, id: &InstanceId) -> Offer<bool> {
        let Some(launch) = self.world.launch_of(id.as_str()) else { return Ok(false) };
        let things = self.world.things();
        let mine = |kind: &str| {
            let of = |t: &&cloud_providers_aws::scripted::Thing| {
                t.kind == kind
                    && (t.comes_with.as_deref() == Some(id.as_str())
                        || t.tags.get("peerpod-instance").is_some_and(|i| i == id.as_str()))
            };
            things.iter().filter(of).count()
        };
        Ok(match feature {
            Feature::Gpus => launch.instance_type.as_deref() == Some("g4dn.xlarge"),
            Feature::Volumes => {
                self.world.user_volumes().iter().any(|(_, of)| of.as_deref() == Some(id.as_str()))
            }
            Feature::RootDisk => launch.root_volume.is_some_and(|r| r.size_gib == Some(20)),
            Feature::Image => launch.image.as_deref() == Some("ami-2"),
            Feature::TwoNetworks => mine("network_interface") == 2,
            Feature::Sizes => launch.instance_type.as_deref() == Some("t3.small"),
            _ => true,
        })
    }

    async fn user_data(&self, id: &InstanceId) -> Offer<Vec<u8>> {
        use std::io::Read as _;
        let launch = self.world.launch_of(id.as_str());
        let bytes = launch.map(|l| l.user_data.as_bytes().to_vec()).unwrap_or_default();
        if !bytes.starts_with(&[0x1f, 0x8b]) {
            return Ok(bytes);
        }
        let mut unpacked = Vec::new();
        let read = flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked);
        read.map_err(|e| Obstacle::failed(format!("the user data is no gzip: {e}")))?;
        Ok(unpacked)
    }

    fn user_tags_variable(&self) -> Offer<String> {
        Ok("TAGS".to_owned())
    }

    fn bad_variables(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", "nowhere"),
            ("AWS_ACCESS_KEY_ID", "half"),
            ("AWS_GUEST_PORTS", "15150"),
            ("TAGS", "peerpod-x=y"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn confidential_variables(&self) -> Offer<Vec<(String, String)>> {
        Ok(vec![("DISABLECVM".to_owned(), "false".to_owned())])
    }

    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        Ok(Arc::new(Self::new(self.kind)))
    }

    fn refusals(&self) -> Vec<Refusal> {
        refusals()
    }

    async fn refuse(&self, refusal: &Refusal) -> Offer<()> {
        match refusals().iter().find(|known| known.name == refusal.name) {
            Some(known) => {
                let code = known.code.clone().unwrap_or_default();
                self.world.script(Scripted::on("RunInstances").code(&code).forever());
                Ok(())
            }
            None => Err(Obstacle::unsupported("this refusal")),
        }
    }
}

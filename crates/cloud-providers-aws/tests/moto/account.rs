//! An account of the emulator behind a proxy of its own, for one case.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types;
use base64::{Engine, engine::general_purpose::STANDARD};
use cloud_providers::{
    Cloud, CreateRequest, ErrorKind, InstanceId, Retry, VolumeRequest, async_trait, names::instance_name,
};
use cloud_providers_aws::AwsCloud;
use cloud_providers_conformance::{
    Bounds, Effect, Fault, Feature, Found, Harness, ListFault, Obstacle, Offer, Refusal,
};
use fault_proxy::{Act, HttpFaultProxy, Match, Options, Rule, Upstream, ec2};
use test_support::{Moto, wait_for_async};

use crate::faulty::Faulty;
use crate::world::{REGION, World, ZONE, failed};

pub(crate) struct Account {
    moto: String,
    world: World,
    ec2: Arc<ec2::Ec2>,
    faulty: Arc<Faulty>,
    proxy: Arc<HttpFaultProxy>,
    hangs: bool,
}

fn broken(error: impl std::fmt::Display) -> Obstacle {
    Obstacle::failed(format!("the proxy: {error}"))
}

impl Account {
    /// Takes an empty account of the emulator at `url`. States change at once: a number of calls that follows from the
    /// load of the machine could not be swept over.
    pub(crate) async fn begin(url: &str, hangs: bool) -> Offer<Self> {
        let ec2 = Arc::new(ec2::Ec2::new(ec2::Settings::default()));
        let faulty = Arc::new(Faulty::new(ec2.clone()));
        let options = Options::default().with_behaviour(faulty.clone());
        let upstream = Upstream::server(url).map_err(broken)?;
        let proxy = Arc::new(HttpFaultProxy::start(upstream, options).await.map_err(broken)?);
        faulty.is_behind(&proxy);
        let world = World::begin(url, &proxy.url()).await?;
        Ok(Self { moto: url.to_owned(), world, ec2, faulty, proxy, hangs })
    }

    fn refuse_call(&self, action: &str, code: &str, status: u16) -> Offer<()> {
        let answer = ec2::error(status, code, "refused by the test");
        self.proxy
            .add(Rule::new(format!("refuse {action}"), Match::action(action), Act::Answer(answer)))
            .map_err(broken)
    }
}

fn refusals() -> Vec<(u16, Refusal)> {
    let capacity = ErrorKind::Capacity { zone: Some(ZONE.into()), instance_type: Some("t3.small".into()) };
    let second = Retry::After { delay: Duration::from_secs(1) };
    [
        (500, "InsufficientInstanceCapacity", capacity, Retry::Elsewhere),
        (400, "VcpuLimitExceeded", ErrorKind::Quota, Retry::Elsewhere),
        (403, "UnauthorizedOperation", ErrorKind::Permission, Retry::Never),
        (401, "AuthFailure", ErrorKind::Auth, Retry::Never),
        (503, "RequestLimitExceeded", ErrorKind::Throttled, second),
    ]
    .into_iter()
    .map(|(status, code, kind, retry)| {
        (status, Refusal { name: code.into(), kind, retry, code: Some(code.into()) })
    })
    .collect()
}

#[async_trait]
impl Harness for Account {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(AwsCloud::new())
    }

    fn variables(&self) -> Vec<(String, String)> {
        let (id, secret, token) = &self.world.keys;
        let proxy = self.proxy.url();
        [
            ("AWS_ACCESS_KEY_ID", id.as_str()),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_SESSION_TOKEN", token),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL", &self.moto),
            ("AWS_ENDPOINT_URL_EC2", &proxy),
            ("AWS_CALL_TIMEOUT", "8s"),
            ("PODVM_AMI_ID", Moto::IMAGE),
            ("PODVM_INSTANCE_TYPE", "t3.small"),
            ("PODVM_INSTANCE_TYPES", "t3.small,t3.medium,g4dn.xlarge"),
            ("DISABLECVM", "true"),
            ("AWS_SUBNET_ID", &self.world.subnet),
            ("AWS_SG_IDS", &self.world.group),
            ("SSH_KP_NAME", "key-1"),
            ("USE_PUBLIC_IP", "false"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    async fn leftovers(&self) -> Offer<Vec<Found>> {
        self.world.everything().await
    }

    fn bounds(&self) -> Bounds {
        // Sweeps over every call and every moment are those of the scripted account; here they prove that the SDK, its
        // connections and its futures bear it.
        Bounds::default()
            .with_operation(Duration::from_secs(150))
            .with_cancel(Duration::from_secs(60))
            .with_settle(Duration::from_secs(60))
            .with_notice(Duration::from_secs(4))
            .with_sweeps(4, 3)
    }

    fn names_are_unique(&self) -> bool {
        false
    }

    fn missing_id(&self) -> InstanceId {
        InstanceId::new("i-0123456789abcdef0")
    }

    fn effects(&self) -> &'static [Effect] {
        const ALL: &[Effect] = &[Effect::Fail, Effect::LoseReply, Effect::HangBefore, Effect::HangAfter];
        if self.hangs { ALL } else { &ALL[..2] }
    }

    async fn inject(&self, fault: Fault) -> Offer<()> {
        match fault.effect {
            Effect::Fail | Effect::LoseReply | Effect::HangBefore | Effect::HangAfter => {
                self.faulty.inject(fault)
            }
            _ => return Err(Obstacle::unsupported("this effect")),
        }
        Ok(())
    }

    async fn clear_faults(&self) -> Offer<()> {
        self.proxy.clear();
        self.faulty.clear();
        self.ec2.change(|current| *current = ec2::Settings::default());
        Ok(())
    }

    async fn calls(&self) -> Offer<usize> {
        Ok(self.proxy.journal().len())
    }

    async fn block_removals(&self) -> Offer<()> {
        for action in ["TerminateInstances", "ReleaseAddress", "DeleteNetworkInterface"] {
            self.refuse_call(action, "UnauthorizedOperation", 403)?;
        }
        Ok(())
    }

    async fn add_foreign(&self, request: &CreateRequest) -> Offer<InstanceId> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, 63)?;
        Ok(InstanceId::new(self.world.add_instance(&name, &[("owner", "somebody")]).await?))
    }

    async fn add_untagged(&self, name: &str) -> Offer<InstanceId> {
        let id = self.world.add_instance(name, &[]).await?;
        let interface = self.world.add_interface(&id, 1, ("Name", &format!("nic-{id}"))).await?;
        self.world.goes_along(interface).await?;
        self.world.add_address(&id, ("Name", &format!("eip-{id}"))).await?;
        Ok(InstanceId::new(id))
    }

    async fn attach_foreign(&self, id: &InstanceId) -> Offer<()> {
        self.world.add_interface(id.as_str(), 2, ("owner", "somebody")).await.map(drop)
    }

    async fn remove_instance_only(&self, id: &InstanceId) -> Offer<()> {
        self.world.through.terminate_instances().instance_ids(id.as_str()).send().await.map_err(failed)?;
        Ok(())
    }

    async fn add_volume(&self) -> Offer<VolumeRequest> {
        Ok(VolumeRequest::new(self.world.add_volume().await?))
    }

    async fn break_lists(&self, how: ListFault) -> Offer<()> {
        let lists: &[&str] = match how {
            ListFault::Partly => &["DescribeAddresses"],
            _ => &["DescribeInstances", "DescribeNetworkInterfaces", "DescribeVolumes", "DescribeAddresses"],
        };
        lists.iter().try_for_each(|list| self.refuse_call(list, "UnauthorizedOperation", 403))
    }

    async fn with_feature(&self, feature: Feature, mut request: CreateRequest) -> Offer<CreateRequest> {
        match feature {
            Feature::Volumes => request.spec.volumes.push(self.add_volume().await?),
            Feature::Image => request.spec.image = Some(Moto::BIOS_IMAGE.into()),
            _ => return feature.add_to(request),
        }
        Ok(request)
    }

    async fn has_feature(&self, feature: Feature, id: &InstanceId) -> Offer<bool> {
        let instance = self.world.instance(id.as_str()).await?;
        let kind = instance.instance_type().map(types::InstanceType::as_str);
        let volumes = self.world.volumes().await?;
        let attached = |volume: &&types::Volume| {
            volume.attachments().iter().any(|a| a.instance_id() == Some(id.as_str()))
        };
        let of_instance: Vec<&types::Volume> = volumes.iter().filter(attached).collect();
        Ok(match feature {
            Feature::Gpus => kind == Some("g4dn.xlarge"),
            Feature::Volumes => of_instance.iter().any(|volume| volume.size() == Some(1)),
            Feature::RootDisk => of_instance.iter().any(|volume| volume.size() == Some(20)),
            Feature::Image => instance.image_id() == Some(Moto::BIOS_IMAGE),
            Feature::TwoNetworks => instance.network_interfaces().len() == 2,
            Feature::Sizes => kind == Some("t3.small"),
            _ => true,
        })
    }

    async fn user_data(&self, id: &InstanceId) -> Offer<Vec<u8>> {
        use std::io::Read as _;
        let call = self.world.ec2.describe_instance_attribute().instance_id(id.as_str());
        let answer = call.attribute(types::InstanceAttributeName::UserData).send().await.map_err(failed)?;
        let text = answer.user_data().and_then(|data| data.value()).unwrap_or_default();
        let bytes = STANDARD
            .decode(text)
            .map_err(|e| Obstacle::failed(format!("the user data is no base64: {e}")))?;
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
        [("AWS_ENDPOINT_URL", "nowhere"), ("AWS_GUEST_PORTS", "15150"), ("TAGS", "peerpod-x=y")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    fn confidential_variables(&self) -> Offer<Vec<(String, String)>> {
        Ok(vec![("DISABLECVM".to_owned(), "false".to_owned())])
    }

    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        Ok(Arc::new(Self::begin(&self.moto, self.hangs).await?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        refusals().into_iter().map(|(_, refusal)| refusal).collect()
    }

    async fn refuse(&self, refusal: &Refusal) -> Offer<()> {
        match refusals().iter().find(|(_, known)| known.name == refusal.name) {
            Some((status, _)) => self.refuse_call("RunInstances", &refusal.name, *status),
            None => Err(Obstacle::unsupported("this refusal")),
        }
    }

    async fn clean_up(&self) -> Offer<()> {
        // Calls that hang would outlive the case.
        self.clear_faults().await?;
        let left = || async {
            let instances = self.world.instances().await.ok()?;
            for id in instances.iter().filter_map(|instance| instance.instance_id()) {
                let _ = self.world.through.terminate_instances().instance_ids(id).send().await;
            }
            instances.is_empty().then_some(())
        };
        wait_for_async("the end of all instances", Duration::from_secs(60), left)
            .await
            .map_err(|error| Obstacle::failed(format!("{error:#}")))
    }
}

//! The harness of the scripted provider.

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    Cloud, CreateRequest, Error, ErrorKind, InstanceId, MapEnv, Provider, Resource, Retry, VolumeRequest,
    async_trait,
    names::instance_name,
    scripted::{DISK, Fault as WorldFault, INTERFACE, ScriptedCloud, VOLUME, World},
};
use cloud_providers_conformance::{
    Bounds, Effect, Fault, Feature, Found, Harness, ListFault, Offer, Refusal, Suite,
};

/// Longer than any instance is waited for.
const NEVER: Duration = Duration::from_secs(1_000_000);

/// A cloud in memory in which each call takes a while.
pub(crate) struct InMemory {
    pub(crate) world: World,
    make_cloud: fn(&World) -> Box<dyn Cloud>,
    /// What is put around the provider.
    pub(crate) dress: fn(Arc<dyn Provider>, &World) -> Arc<dyn Provider>,
    pub(crate) bounds: Bounds,
    /// Entries on a page of a list, while lists are whole.
    pub(crate) page: usize,
}

impl InMemory {
    /// Makes an account of the double as it is.
    pub(crate) fn new() -> Self {
        Self::with(|world| Box::new(ScriptedCloud::over(world)), |provider, _| provider)
    }

    /// Makes an account whose cloud or provider is another one.
    pub(crate) fn with(
        make_cloud: fn(&World) -> Box<dyn Cloud>,
        dress: fn(Arc<dyn Provider>, &World) -> Arc<dyn Provider>,
    ) -> Self {
        let world = World::new();
        world.set_latency(Duration::from_millis(10));
        world.set_boot_time(Duration::from_millis(30));
        world.set_shutdown_time(Duration::from_millis(30));
        // The clock is the double's own.
        let bounds = Bounds::default()
            .with_operation(Duration::from_secs(700))
            .with_cancel(Duration::from_secs(5))
            .with_notice(Duration::from_millis(200));
        Self { world, make_cloud, dress, bounds, page: 100 }
    }
}

/// Sets up the suite with a clock that runs ahead while everybody waits.
pub(crate) fn suite() -> Suite {
    Suite::new("scripted")
        .runtime(|| tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build())
}

fn refusals() -> Vec<(Refusal, Error)> {
    let of = |name: &str, error: Error| {
        let (kind, retry) = (error.kind().clone(), error.retry());
        (Refusal { name: name.into(), kind, retry, code: Some(name.into()) }, error.with_cloud(name, "no"))
    };
    let capacity = ErrorKind::Capacity { zone: Some("zone-a".into()), instance_type: None };
    vec![
        of("NoQuota", Error::new(ErrorKind::Quota, "the account has no quota left")),
        of("NoRoom", Error::new(capacity, "the zone has no room")),
        of("NoRights", Error::new(ErrorKind::Permission, "the role may not start instances")),
        of("WhoAreYou", Error::new(ErrorKind::Auth, "the key is not known")),
        of(
            "SlowDown",
            Error::new(ErrorKind::Throttled, "too many calls")
                .with_retry(Retry::After { delay: Duration::from_secs(7) }),
        ),
    ]
}

#[async_trait]
impl Harness for InMemory {
    fn cloud(&self) -> Box<dyn Cloud> {
        (self.make_cloud)(&self.world)
    }

    fn variables(&self) -> Vec<(String, String)> {
        vec![("SCRIPTED_LATENCY".into(), "10ms".into())]
    }

    async fn provider(&self) -> Offer<Arc<dyn Provider>> {
        let mut cloud = self.cloud();
        cloud.load_env(&MapEnv::new(self.variables()))?;
        Ok((self.dress)(cloud.new_provider().await?, &self.world))
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    async fn leftovers(&self) -> Offer<Vec<Found>> {
        Ok(self.world.resources().into_iter().map(|r| Found::new(r.resource).with_tags(r.tags)).collect())
    }

    fn bounds(&self) -> Bounds {
        self.bounds
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Fail, Effect::LoseReply, Effect::HangBefore, Effect::HangAfter]
    }

    async fn inject(&self, fault: Fault) -> Offer<()> {
        let scripted = WorldFault::on_call(fault.nth as u64);
        let refused = Error::new(ErrorKind::Quota, "the double fails as told").with_cloud("AsTold", "no");
        self.world.script(
            match fault.effect {
                Effect::Fail => scripted.before(refused),
                Effect::LoseReply => scripted.lost_reply(),
                Effect::HangBefore => scripted.hang_before(),
                _ => scripted.hang_after(),
            }
            .telling(fault.struck),
        );
        Ok(())
    }

    async fn clear_faults(&self) -> Offer<()> {
        self.world.clear_faults();
        self.world.set_boot_time(Duration::from_millis(30));
        self.world.set_page_size(self.page);
        Ok(())
    }

    async fn calls(&self) -> Offer<usize> {
        Ok(self.world.calls().len())
    }

    async fn block_removals(&self) -> Offer<()> {
        for operation in ["terminate_instance", "delete_disk", "delete_interface"] {
            let refused =
                Error::new(ErrorKind::Permission, "nothing may be removed").with_cloud("Blocked", "no");
            self.world.script(WorldFault::on(operation).forever().before(refused));
        }
        Ok(())
    }

    async fn add_foreign(&self, request: &CreateRequest) -> Offer<InstanceId> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, 63)?;
        Ok(InstanceId::new(self.world.add(Resource::INSTANCE, &name, &[("owner", "somebody")])))
    }

    async fn add_obstacle(&self, request: &CreateRequest) -> Offer<()> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, 63)?;
        self.world.add(INTERFACE, &format!("{name}-nic"), &[("owner", "somebody")]);
        Ok(())
    }

    async fn add_untagged(&self, name: &str) -> Offer<InstanceId> {
        let id = self.world.add(Resource::INSTANCE, name, &[]);
        for (kind, part) in [(DISK, "disk"), (INTERFACE, "nic")] {
            let part = self.world.add(kind, &format!("{name}-{part}"), &[]);
            self.world.attach(&id, Resource::new(kind, part))?;
        }
        Ok(InstanceId::new(id))
    }

    async fn attach_foreign(&self, id: &InstanceId) -> Offer<()> {
        let disk = self.world.add(DISK, "attached-by-hand", &[("owner", "somebody")]);
        Ok(self.world.attach(id.as_str(), Resource::new(DISK, disk))?)
    }

    async fn remove_instance_only(&self, id: &InstanceId) -> Offer<()> {
        Ok(self.world.remove(id.as_str())?)
    }

    async fn add_volume(&self) -> Offer<VolumeRequest> {
        Ok(VolumeRequest::new(self.world.add(VOLUME, "data", &[("owner", "the user")])))
    }

    async fn break_lists(&self, how: ListFault) -> Offer<()> {
        let first = match how {
            ListFault::Partly => 2,
            _ => 1,
        };
        self.world.set_page_size(2);
        self.world.script(WorldFault::on("list_resources").nth(first).forever());
        Ok(())
    }

    async fn never_ready(&self) -> Offer<()> {
        self.world.set_boot_time(NEVER);
        Ok(())
    }

    async fn ready_after(&self, time: Duration) -> Offer<()> {
        self.world.set_boot_time(time);
        Ok(())
    }

    async fn with_feature(&self, feature: Feature, mut request: CreateRequest) -> Offer<CreateRequest> {
        if feature == Feature::Volumes {
            request.spec.volumes.push(self.add_volume().await?);
            return Ok(request);
        }
        feature.add_to(request)
    }

    async fn has_feature(&self, feature: Feature, id: &InstanceId) -> Offer<bool> {
        let instance = self.world.resources().into_iter().find(|r| r.resource.id == id.as_str());
        let has_volume = instance.is_some_and(|i| i.attached.iter().any(|r| r.kind == VOLUME));
        Ok(feature != Feature::Volumes || has_volume)
    }

    async fn user_data(&self, id: &InstanceId) -> Offer<Vec<u8>> {
        let instance = self.world.resources().into_iter().find(|r| r.resource.id == id.as_str());
        Ok(instance.map(|i| i.user_data.as_bytes().to_vec()).unwrap_or_default())
    }

    fn user_tags_variable(&self) -> Offer<String> {
        Ok("SCRIPTED_TAGS".into())
    }

    fn bad_variables(&self) -> Vec<(String, String)> {
        vec![("SCRIPTED_ADDRESS".into(), "here".into()), ("SCRIPTED_TAGS".into(), "peerpod-x=y".into())]
    }

    fn confidential_variables(&self) -> Offer<Vec<(String, String)>> {
        Ok(vec![("SCRIPTED_CONFIDENTIAL".into(), "true".into())])
    }

    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        Ok(Arc::new(Self::with(self.make_cloud, self.dress)))
    }

    fn refusals(&self) -> Vec<Refusal> {
        refusals().into_iter().map(|(refusal, _)| refusal).collect()
    }

    async fn refuse(&self, refusal: &Refusal) -> Offer<()> {
        for (known, error) in refusals() {
            if known.name == refusal.name {
                self.world.script(WorldFault::on("run_instance").before(error).forever());
            }
        }
        Ok(())
    }
}

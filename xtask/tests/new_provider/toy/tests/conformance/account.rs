//! One account of the toy cloud for one case.

#[path = "toy_cloud.rs"]
mod toy_cloud;

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    Cloud, CreateRequest, ErrorKind, InstanceId, Resource, Retry, async_trait, names::instance_name,
};
use cloud_providers_conformance::{Bounds, Effect, Fault, Found, Harness, ListFault, Offer, Refusal};
use cloud_providers_toy::ToyCloud;

use self::toy_cloud::{Boot, KEY, Machine, Toy, Trouble};

/// An account that nobody else uses while its case runs.
pub(crate) struct Account {
    endpoint: String,
    toy: Toy,
}

impl Account {
    /// Starts a cloud.
    pub(crate) async fn begin() -> Offer<Self> {
        let (toy, endpoint) = Toy::start().await?;
        Ok(Self { endpoint, toy })
    }

    fn add(&self, name: &str) -> InstanceId {
        self.toy.with(|world| world.machines.insert(format!("by-hand-{name}"), Machine::up(name)));
        InstanceId::new(format!("by-hand-{name}"))
    }
}

#[async_trait]
impl Harness for Account {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(ToyCloud::new())
    }

    fn variables(&self) -> Vec<(String, String)> {
        [
            ("TOY_ENDPOINT", self.endpoint.as_str()),
            ("TOY_KEY", KEY),
            ("TOY_CALL_TIMEOUT", "1s"),
            ("TOY_START_TIMEOUT", "5s"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    fn bounds(&self) -> Bounds {
        Bounds::default().with_operation(Duration::from_secs(60))
    }

    fn user_tags_variable(&self) -> Offer<String> {
        Ok("TOY_TAGS".to_owned())
    }

    fn bad_variables(&self) -> Vec<(String, String)> {
        vec![("TOY_ENDPOINT".to_owned(), "nowhere".to_owned())]
    }

    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        Ok(Arc::new(Self::begin().await?))
    }

    async fn leftovers(&self) -> Offer<Vec<Found>> {
        let found = |(id, machine): (&String, &Machine)| {
            Found::new(Resource::new(Resource::INSTANCE, id)).with_tags(machine.tags.clone())
        };
        Ok(self.toy.with(|world| world.machines.iter().map(found).collect()))
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Fail, Effect::LoseReply, Effect::HangBefore, Effect::HangAfter]
    }

    async fn inject(&self, fault: Fault) -> Offer<()> {
        self.toy.with(|world| world.trouble.fault = Some((fault.nth, fault.effect, fault.struck)));
        Ok(())
    }

    async fn clear_faults(&self) -> Offer<()> {
        self.toy.with(|world| world.trouble = Trouble::default());
        Ok(())
    }

    async fn calls(&self) -> Offer<usize> {
        Ok(self.toy.with(|world| world.calls))
    }

    async fn block_removals(&self) -> Offer<()> {
        self.toy.with(|world| world.trouble.no_removals = true);
        Ok(())
    }

    async fn add_foreign(&self, request: &CreateRequest) -> Offer<InstanceId> {
        Ok(self.add(&instance_name(&request.unit.name_hint, &request.unit.id, 63)?))
    }

    async fn add_untagged(&self, name: &str) -> Offer<InstanceId> {
        Ok(self.add(name))
    }

    async fn remove_instance_only(&self, id: &InstanceId) -> Offer<()> {
        self.toy.with(|world| world.machines.remove(id.as_str()));
        Ok(())
    }

    async fn break_lists(&self, how: ListFault) -> Offer<()> {
        self.toy.with(|world| world.trouble.pages = Some(usize::from(how == ListFault::Partly)));
        Ok(())
    }

    async fn never_ready(&self) -> Offer<()> {
        self.toy.with(|world| world.trouble.boot = Boot::Never);
        Ok(())
    }

    async fn ready_after(&self, time: Duration) -> Offer<()> {
        self.toy.with(|world| world.trouble.boot = Boot::After(time));
        Ok(())
    }

    async fn user_data(&self, id: &InstanceId) -> Offer<Vec<u8>> {
        Ok(self.toy.with(|world| world.machines[id.as_str()].user_data.clone()))
    }

    fn refusals(&self) -> Vec<Refusal> {
        let capacity = ErrorKind::Capacity { zone: None, instance_type: None };
        let slow = Retry::After { delay: Duration::from_secs(7) };
        let refusals = [
            ("QuotaExceeded", ErrorKind::Quota, Retry::Never),
            ("NoRoom", capacity, Retry::Elsewhere),
            ("SlowDown", ErrorKind::Throttled, slow),
        ];
        refusals
            .map(|(code, kind, retry)| Refusal { name: code.into(), kind, retry, code: Some(code.into()) })
            .into()
    }

    async fn refuse(&self, refusal: &Refusal) -> Offer<()> {
        let after = if let Retry::After { delay } = refusal.retry { Some(delay.as_secs()) } else { None };
        self.toy.with(|world| world.trouble.refusal = Some((400, refusal.name.clone(), after)));
        Ok(())
    }
}

//! What a provider gives to the suite.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use cloud_providers::{
    CancellationToken, Cloud, CreateRequest, ErrorKind, InstanceId, MapEnv, NetworkRequest, PortRequest,
    Provider, Resource, Retry, Role, VolumeRequest,
};

use crate::{Obstacle, Offer};

/// One account for one case, seen from outside of the provider.
///
/// The suite makes one value for each case. What a harness cannot do it says with [`Obstacle::Unsupported`], which is
/// the default of everything optional; the case is then skipped, and the skip must be allowed by the provider's list.
///
/// All looks at the account go around the provider (`virsh`, `ip`, the cloud's own command line, the emulator's
/// state): a provider that forgets something also forgets to list it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Returns a fresh configuration value.
    fn cloud(&self) -> Box<dyn Cloud>;

    /// Returns the variables that configure the provider for this account.
    fn variables(&self) -> Vec<(String, String)>;

    /// Returns a new provider value over this account, as another process would make it.
    async fn provider(&self) -> Offer<Arc<dyn Provider>> {
        let mut cloud = self.cloud();
        cloud.load_env(&MapEnv::new(self.variables()))?;
        Ok(cloud.new_provider().await?)
    }

    /// Dresses a blank request (token, unit and holder are set) so that it is valid, small and quick.
    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank
    }

    /// Returns everything that exists in the account and did not when the case began.
    ///
    /// Things that the other methods of this trait put there are shown as well. Kind and id are those that the
    /// provider records. What it does not record by itself (a process, a mount, a lease) is a [`Found::part_of`]
    /// something that it does.
    async fn leftovers(&self) -> Offer<Vec<Found>>;

    /// Removes whatever the case left, whether it passed or not. Called once, at the end.
    async fn clean_up(&self) -> Offer<()> {
        Ok(())
    }

    /// Returns how long things may take.
    fn bounds(&self) -> Bounds {
        Bounds::default()
    }

    /// Returns whether a second instance of the same name is impossible in one account.
    ///
    /// Then a name that is taken is a conflict; otherwise it is enough that the other instance is left alone.
    fn names_are_unique(&self) -> bool {
        true
    }

    /// Returns an id of the right form that no instance has.
    fn missing_id(&self) -> InstanceId {
        InstanceId::new("no-such-instance")
    }

    /// Returns what can be done to remote calls. Empty when nothing can be injected.
    fn effects(&self) -> &'static [Effect] {
        &[]
    }

    /// Does something to one remote call that comes later.
    async fn inject(&self, fault: Fault) -> Offer<()> {
        let _ = fault;
        Err(Obstacle::unsupported("faults"))
    }

    /// Takes back every fault, blockade and broken list; calls that hang may go on hanging.
    async fn clear_faults(&self) -> Offer<()> {
        Ok(())
    }

    /// Returns how many remote calls were made in this account so far.
    async fn calls(&self) -> Offer<usize> {
        Err(Obstacle::unsupported("counted calls"))
    }

    /// Lets every removal fail until [`Harness::clear_faults`].
    async fn block_removals(&self) -> Offer<()> {
        Err(Obstacle::unsupported("blocked removals"))
    }

    /// Puts something of somebody else into the way of `request`: an instance of the same name without our tags.
    ///
    /// Returns its id.
    async fn add_foreign(&self, request: &CreateRequest) -> Offer<InstanceId> {
        let _ = request;
        Err(Obstacle::unsupported("foreign instances"))
    }

    /// Puts something else of somebody else into the way of `request`: a disk, a link or a volume, without our tags,
    /// under a name that the provider would use for a part of the instance.
    async fn add_obstacle(&self, request: &CreateRequest) -> Offer<()> {
        let _ = request;
        Err(Obstacle::unsupported("things in the way of a part"))
    }

    /// Makes an instance as the existing programs do: with this generated name, its usual parts, and no tags.
    async fn add_untagged(&self, name: &str) -> Offer<InstanceId> {
        let _ = name;
        Err(Obstacle::unsupported("untagged instances"))
    }

    /// Attaches something by hand to an instance that the provider made. It must outlive the instance.
    async fn attach_foreign(&self, id: &InstanceId) -> Offer<()> {
        let _ = id;
        Err(Obstacle::unsupported("parts attached by hand"))
    }

    /// Removes the instance alone, around the provider, and leaves its other parts.
    async fn remove_instance_only(&self, id: &InstanceId) -> Offer<()> {
        let _ = id;
        Err(Obstacle::unsupported("instances removed by hand"))
    }

    /// Makes a volume of the user.
    async fn add_volume(&self) -> Offer<VolumeRequest> {
        Err(Obstacle::unsupported("volumes"))
    }

    /// Breaks lists until [`Harness::clear_faults`], for an account in which there are two instances already.
    async fn break_lists(&self, how: ListFault) -> Offer<()> {
        let _ = how;
        Err(Obstacle::unsupported("broken lists"))
    }

    /// Lets instances made from now on never come up, until [`Harness::clear_faults`].
    async fn never_ready(&self) -> Offer<()> {
        Err(Obstacle::unsupported("instances that never come up"))
    }

    /// Lets instances made from now on come up after `time`, so that the first questions can be timed.
    async fn ready_after(&self, time: Duration) -> Offer<()> {
        let _ = time;
        Err(Obstacle::unsupported("a settable time of start"))
    }

    /// Adds a feature to a request so that it works in this account. Asked only for what the capabilities promise.
    async fn with_feature(&self, feature: Feature, request: CreateRequest) -> Offer<CreateRequest> {
        feature.add_to(request)
    }

    /// Returns whether an instance really has a feature, as seen from outside.
    async fn has_feature(&self, feature: Feature, id: &InstanceId) -> Offer<bool> {
        let _ = id;
        Err(Obstacle::unsupported(format!("evidence of {}", feature.word())))
    }

    /// Returns the user data that reached an instance.
    async fn user_data(&self, id: &InstanceId) -> Offer<Vec<u8>> {
        let _ = id;
        Err(Obstacle::unsupported("evidence of user data"))
    }

    /// Returns the variable that adds tags of the user, in the form `key=value`.
    fn user_tags_variable(&self) -> Offer<String> {
        Err(Obstacle::unsupported("user tags"))
    }

    /// Returns variables whose values have the right type and are wrong all the same, for the provider's own checks.
    fn bad_variables(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Returns more variables that make every instance confidential, for an account that has no such machines.
    fn confidential_variables(&self) -> Offer<Vec<(String, String)>> {
        Err(Obstacle::unsupported("confidential machines by configuration"))
    }

    /// Returns another account that the same process can use at the same time.
    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        Err(Obstacle::unsupported("a second account"))
    }

    /// Returns refusals of the cloud that can be provoked: no room, no quota, too many calls.
    fn refusals(&self) -> Vec<Refusal> {
        Vec::new()
    }

    /// Lets the next create be refused in this way.
    async fn refuse(&self, refusal: &Refusal) -> Offer<()> {
        let _ = refusal;
        Err(Obstacle::unsupported("refusals"))
    }
}

/// One thing that exists in the account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Kind and id.
    pub resource: Resource,
    /// What it is recorded under, when it is not recorded by itself.
    pub part_of: Option<Resource>,
    /// Its tags, or those of the place where the provider keeps them for it; `None` when it cannot have any and its
    /// [`Found::part_of`] has.
    pub tags: Option<BTreeMap<String, String>>,
}

impl Found {
    /// Shows a thing that the provider records by itself.
    pub fn new(resource: Resource) -> Self {
        Self { resource, part_of: None, tags: None }
    }

    /// Says what it is recorded under.
    #[must_use]
    pub fn part_of(mut self, resource: Resource) -> Self {
        self.part_of = Some(resource);
        self
    }

    /// Shows its tags.
    #[must_use]
    pub fn with_tags(mut self, tags: BTreeMap<String, String>) -> Self {
        self.tags = Some(tags);
        self
    }

    /// Returns the resource under which it must be recorded.
    pub fn recorded_as(&self) -> &Resource {
        self.part_of.as_ref().unwrap_or(&self.resource)
    }
}

/// What is done to a remote call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Effect {
    /// It fails for good and nothing changed.
    Fail,
    /// It takes effect and the reply is lost: the client sees a broken connection.
    LoseReply,
    /// Nothing changes and no reply comes.
    HangBefore,
    /// It takes effect and no reply comes.
    HangAfter,
}

/// One fault of one remote call.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which call, counted from 1 and from [`Harness::inject`] on.
    pub nth: usize,
    /// What happens to it.
    pub effect: Effect,
    /// Cancelled by the harness when the fault strikes, after the effect of the call if it has one.
    pub struck: CancellationToken,
}

/// How lists are broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListFault {
    /// A part is missing: one page, region or host does not answer.
    Partly,
    /// Nothing answers.
    Wholly,
}

/// A refusal of the cloud and what the provider must make of it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// A name for reports, and by which the harness knows it.
    pub name: String,
    /// The kind the error must have.
    pub kind: ErrorKind,
    /// The retry rule the error must have.
    pub retry: Retry,
    /// The cloud's own code.
    pub code: Option<String>,
}

/// Something that a request can ask for and capabilities promise or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// A GPU.
    Gpus,
    /// A volume of the user.
    Volumes,
    /// A root disk of a certain size.
    RootDisk,
    /// An image.
    Image,
    /// Two network interfaces.
    TwoNetworks,
    /// A plain machine.
    PlainMachine,
    /// A port to be opened.
    Ports,
    /// vCPUs and memory.
    Sizes,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Self; 8] = [
        Self::Gpus,
        Self::Volumes,
        Self::RootDisk,
        Self::Image,
        Self::TwoNetworks,
        Self::PlainMachine,
        Self::Ports,
        Self::Sizes,
    ];

    /// Returns a word for reports and lists of allowed skips.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gpus => "gpus",
            Self::Volumes => "volumes",
            Self::RootDisk => "root-disk-size",
            Self::Image => "images",
            Self::TwoNetworks => "multi-nic",
            Self::PlainMachine => "plain-machines",
            Self::Ports => "ports",
            Self::Sizes => "sizes",
        }
    }

    /// Asks for the feature with values that need no knowledge of the account.
    ///
    /// # Errors
    ///
    /// [`Obstacle::Unsupported`] for images and volumes, whose names only the harness knows.
    pub fn add_to(self, mut request: CreateRequest) -> Offer<CreateRequest> {
        match self {
            Self::Gpus => request.spec.gpus = 1,
            Self::RootDisk => request.spec.root_disk_gib = Some(20),
            Self::TwoNetworks => {
                request.networks = vec![NetworkRequest::default(), NetworkRequest::default()]
            }
            Self::PlainMachine => request.role = Role::Plain,
            Self::Ports => request.ports = vec![PortRequest { port: 8443, protocol: "tcp".into() }],
            Self::Sizes => (request.spec.vcpus, request.spec.memory_mib) = (2, 512),
            Self::Image | Self::Volumes => {
                return Err(Obstacle::unsupported(format!("a sample of {}", self.word())));
            }
        }
        Ok(request)
    }
}

/// How long things may take in this account.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Bounds {
    /// Any call, also with a remote call that hangs.
    pub operation: Duration,
    /// A call after it was cancelled, its undo included.
    pub cancel: Duration,
    /// An answer for which nothing has to be made or removed.
    pub answer: Duration,
    /// From the moment at which an instance is up to the moment at which the call has noticed.
    pub notice: Duration,
    /// What work begun by a dropped call may need to end by itself.
    pub settle: Duration,
    /// The most points of a sweep over remote calls or records. Fewer are spread evenly.
    pub points: usize,
    /// Moments of a sweep over the time that a call takes.
    pub moments: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            operation: Duration::from_secs(60),
            cancel: Duration::from_secs(30),
            answer: Duration::from_secs(10),
            notice: Duration::from_millis(1000),
            settle: Duration::from_secs(30),
            points: usize::MAX,
            moments: 12,
        }
    }
}

impl Bounds {
    /// Sets the longest time of any call.
    #[must_use]
    pub fn with_operation(mut self, time: Duration) -> Self {
        self.operation = time;
        self
    }

    /// Sets the longest time of a call after it was cancelled.
    #[must_use]
    pub fn with_cancel(mut self, time: Duration) -> Self {
        self.cancel = time;
        self
    }

    /// Sets how soon an instance that is up is noticed.
    #[must_use]
    pub fn with_notice(mut self, time: Duration) -> Self {
        self.notice = time;
        self
    }

    /// Sets the time in which work ends that a dropped call has begun.
    #[must_use]
    pub fn with_settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    /// Sets how thorough sweeps are: points over calls and records, and moments over time.
    #[must_use]
    pub fn with_sweeps(mut self, points: usize, moments: usize) -> Self {
        self.points = points.max(1);
        self.moments = moments.max(1);
        self
    }
}

//! EC2 in memory, for tests: what exists, what was called, what goes wrong.
//!
//! It answers as EC2 does where the provider depends on it: idempotency values, states that move, lists that lag behind,
//! pages, codes. How faithful it is stands in `docs/providers/aws.md`.

mod calls;
mod connect;
mod effects;
mod fault;
mod state;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_providers::{CancellationToken, Result};
use tokio::time::{Instant, sleep};

use crate::client::{
    Image, ImageMapping, KeyPair, LaunchTemplate, Rule, RunInstances, SecurityGroup, Subnet, Tags, TypeInfo,
};

pub use connect::NoMetadata;
use fault::How;
pub use fault::{Fault, refused};
pub(crate) use state::State;

/// An account of EC2 in memory. Clones are the same account.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("World").field("calls", &state.calls.len()).finish_non_exhaustive()
    }
}

/// One call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// EC2's name of the operation.
    pub operation: &'static str,
    /// When it began, since the world did.
    pub at: Duration,
}

/// One thing that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    /// `instance`, `network_interface`, `address` or `volume`.
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// The instance that it came with and goes with.
    pub comes_with: Option<String>,
    /// Its tags.
    pub tags: Tags,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Makes an account with an image `ami-1`, types of the sizes that tests want, and the subnets `subnet-a`,
    /// `subnet-b`, `subnet-c` in zones of the same letter, and a security group `sg-1` that lets workers in.
    pub fn new() -> Self {
        let world = Self { state: Arc::new(Mutex::new(State::new())) };
        {
            let mut state = world.lock();
            for (index, letter) in (0..).zip(["a", "b", "c"]) {
                let subnet = Subnet {
                    id: format!("subnet-{letter}"),
                    zone: format!("zone-{letter}"),
                    vpc: "vpc-1".into(),
                    state: "available".into(),
                    free_addresses: Some(250),
                };
                state.subnets.insert(subnet.id.clone(), (subnet, index));
            }
            for (name, vcpus, gib, snp) in [
                ("m6a.large", 2, 8, true),
                ("m6a.xlarge", 4, 16, true),
                ("c6a.large", 2, 4, true),
                ("t3.small", 2, 2, false),
                ("m6g.large", 2, 8, false),
                ("g4dn.xlarge", 4, 16, false),
            ] {
                let arm = name.starts_with("m6g");
                let gpu = name.starts_with("g4dn");
                state.types.insert(
                    name.into(),
                    TypeInfo {
                        name: name.into(),
                        vcpus: Some(vcpus),
                        memory_mib: Some(gib * 1024),
                        gpus: u32::from(gpu),
                        gpu_model: gpu.then(|| "T4".to_owned()),
                        architectures: vec![if arm { "arm64" } else { "x86_64" }.into()],
                        sev_snp: snp,
                        boot_modes: vec!["legacy-bios".into(), "uefi".into()],
                        max_interfaces: Some(3),
                        usage_classes: vec!["on-demand".into(), "spot".into()],
                    },
                );
            }
            let open = |protocol: &str, port| Rule {
                protocol: protocol.into(),
                from_port: Some(port),
                to_port: Some(port),
                groups: vec!["sg-workers".into()],
                ranges: Vec::new(),
            };
            let group = SecurityGroup {
                id: "sg-1".into(),
                name: "pods".into(),
                vpc: Some("vpc-1".into()),
                ingress: vec![open("tcp", 15150), open("udp", 4789)],
                egress: Vec::new(),
            };
            state.groups.insert("sg-1".into(), group);
            state.keys.insert("key-1".into(), KeyPair { name: "key-1".into() });
        }
        world.add_image("ami-1", 8);
        world
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it looked is no reason to hide the state from its clean-up.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image for x86-64 that boots by UEFI, with a root of `root_gib` GiB behind an ephemeral device.
    pub fn add_image(&self, id: &str, root_gib: u32) {
        let image = Image {
            id: id.into(),
            state: "available".into(),
            architecture: Some("x86_64".into()),
            boot_mode: Some("uefi".into()),
            root_device: Some("/dev/xvda".into()),
            mappings: vec![
                ImageMapping { device: "/dev/sdz".into(), size_gib: None },
                ImageMapping { device: "/dev/xvda".into(), size_gib: Some(root_gib) },
            ],
            ena: Some(true),
        };
        self.lock().images.insert(id.into(), image);
    }

    /// Changes an image.
    pub fn change_image(&self, id: &str, change: impl FnOnce(&mut Image)) {
        self.lock().images.get_mut(id).map(change);
    }

    /// Adds a type for x86-64; a size that is `None` is not told.
    pub fn add_type(&self, name: &str, vcpus: Option<u32>, memory_mib: Option<u64>) {
        let architectures = vec!["x86_64".into()];
        let info = TypeInfo { name: name.into(), vcpus, memory_mib, architectures, ..TypeInfo::default() };
        self.lock().types.insert(name.into(), info);
    }

    /// Adds a launch template.
    pub fn add_template(&self, name: &str, template: LaunchTemplate) {
        self.lock().templates.insert(name.into(), template);
    }

    /// Changes a security group, or adds it.
    pub fn change_group(&self, id: &str, change: impl FnOnce(&mut SecurityGroup)) {
        let mut state = self.lock();
        let group = state.groups.entry(id.into()).or_insert_with(|| SecurityGroup {
            id: id.into(),
            vpc: Some("vpc-1".into()),
            ..SecurityGroup::default()
        });
        change(group);
    }

    /// Lets a text of the metadata service be read.
    pub fn set_metadata(&self, path: &str, text: &str) {
        self.lock().metadata.insert(path.into(), text.into());
    }

    /// Adds a fault. Several may be scripted; the first that strikes decides.
    pub fn script(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Takes back every fault and every shortage.
    pub fn clear_faults(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.shortages.clear();
        state.denied.clear();
    }

    /// Lets launches fail with `code` where `place` is part of `<type> <purchase> <subnet>`; empty means everywhere.
    pub fn shortage(&self, place: &str, code: &'static str) {
        self.lock().shortages.push((place.into(), code));
    }

    /// Forbids operations, with `UnauthorizedOperation`.
    pub fn deny(&self, operations: &[&'static str]) {
        self.lock().denied.extend(operations);
    }

    /// Sets how long every call takes.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// Sets how long an instance needs until it runs.
    pub fn set_boot_time(&self, time: Duration) {
        self.lock().boot = time;
    }

    /// Sets how long an instance needs until it is terminated.
    pub fn set_shutdown_time(&self, time: Duration) {
        self.lock().shutdown = time;
    }

    /// Lets instances made from now on end while they start, for this reason.
    pub fn set_boot_failure(&self, reason: Option<(&'static str, &'static str)>) {
        self.lock().boot_failure = reason;
    }

    /// Sets what instances wrote to their consoles, and whether their types tell it at every moment.
    pub fn set_console(&self, console: impl Into<Vec<u8>>, nitro: bool) {
        let mut state = self.lock();
        state.console = console.into();
        state.nitro = nitro;
    }

    /// Sets for how long what was made is unknown to every describing call, and to calls by its id.
    pub fn set_lag(&self, lag: Duration) {
        self.lock().lag = lag;
    }

    /// Sets how many items a page has.
    pub fn set_page_size(&self, items: usize) {
        self.lock().page = items.max(1);
    }

    /// Adds an instance that this provider did not make, and returns its id.
    pub fn add_instance(&self, name: &str, tags: &[(&str, &str)]) -> String {
        let mut all = pairs(tags);
        all.insert("Name".into(), name.into());
        let run = RunInstances {
            client_token: format!("by hand {name} {}", self.lock().next),
            image: Some("ami-1".into()),
            instance_type: Some("t3.small".into()),
            tags: all,
            ..RunInstances::default()
        };
        let mut state = self.lock();
        state.launch(&run)
    }

    /// Adds an interface that is attached to an instance and does not go with it, and returns its id.
    pub fn add_interface(&self, instance: &str, index: u32, tags: &[(&str, &str)]) -> String {
        self.lock().attach_new_interface(instance, index, pairs(tags))
    }

    /// Lets the interfaces of an instance stay when it goes, as a launch template may want it.
    pub fn let_interfaces_stay(&self, instance: &str) {
        let mut state = self.lock();
        let attachments = state.interfaces.values_mut().filter_map(|n| n.interface.attachment.as_mut());
        for attachment in attachments.filter(|a| a.instance.as_deref() == Some(instance)) {
            attachment.delete_on_termination = false;
        }
    }

    /// Adds an Elastic IP that is associated with the first interface of an instance, and returns its allocation.
    pub fn add_address(&self, instance: &str, tags: &[(&str, &str)]) -> String {
        self.lock().associate_new_address(instance, pairs(tags))
    }

    /// Adds a volume of a user in a zone, and returns its id.
    pub fn add_volume(&self, zone: &str, multi_attach: bool) -> String {
        self.lock().new_volume(zone, multi_attach)
    }

    /// Attaches a volume by hand.
    ///
    /// # Errors
    ///
    /// EC2's own.
    pub fn attach_volume(&self, volume: &str, instance: &str) -> Result<()> {
        self.lock().attach(volume, instance, "/dev/xvdz")
    }

    /// Terminates an instance at once, by hand, around every provider.
    pub fn terminate_now(&self, id: &str) {
        let mut state = self.lock();
        state.terminate(id, Duration::ZERO);
        state.move_on(Instant::now());
    }

    /// Forgets a terminated instance, as EC2 does after an hour.
    pub fn forget(&self, id: &str) {
        self.lock().instances.remove(id);
    }

    /// Switches an instance off by hand.
    pub fn stop(&self, id: &str) {
        if let Some(machine) = self.lock().instances.get_mut(id) {
            machine.stopped = true;
        }
    }

    /// Returns everything that exists, as it truly is.
    pub fn things(&self) -> Vec<Thing> {
        let mut state = self.lock();
        state.move_on(Instant::now());
        state.things()
    }

    /// Returns the volumes of users, each with the instance that it is attached to.
    pub fn user_volumes(&self) -> Vec<(String, Option<String>)> {
        let mut state = self.lock();
        state.move_on(Instant::now());
        let user = state.volumes.values().filter(|v| v.comes_with.is_none());
        user.map(|v| (v.volume.id.clone(), v.volume.attachments.first().map(|a| a.instance.clone())))
            .collect()
    }

    /// Returns the launch that made an instance.
    pub fn launch_of(&self, id: &str) -> Option<RunInstances> {
        self.lock().instances.get(id).map(|m| m.run.clone())
    }

    /// Returns every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Returns the operations called so far, in order.
    pub fn operations(&self) -> Vec<&'static str> {
        self.lock().calls.iter().map(|c| c.operation).collect()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.lock().calls.clear();
    }

    /// Makes a call: counted, delayed, and answered as scripted.
    pub(crate) async fn call<T>(
        &self,
        operation: &'static str,
        effect: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        let (latency, struck) = self.lock().begin(operation);
        let (how, told) = struck.unzip();
        let tell = || told.flatten().iter().for_each(CancellationToken::cancel);
        if matches!(how, Some(How::HangBefore)) {
            tell();
            return std::future::pending().await;
        }
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let act = || {
            let mut state = self.lock();
            state.move_on(Instant::now());
            if state.denied.contains(operation) {
                return Err(refused(operation, "UnauthorizedOperation", "the role does not allow it"));
            }
            effect(&mut state)
        };
        let result = match how {
            Some(How::Before(error)) => Err(error.with_operation(operation)),
            Some(How::After(error)) => act().and(Err(error.with_operation(operation))),
            Some(How::HangAfter) => {
                // An effect that fails is no effect.
                let _ = act();
                tell();
                return std::future::pending().await;
            }
            _ => act(),
        };
        tell();
        result
    }
}

fn pairs(tags: &[(&str, &str)]) -> BTreeMap<String, String> {
    tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Returns the `n`-th address of a network that nobody routes.
fn address(network: [u8; 2], n: u32) -> IpAddr {
    let [_, _, high, low] = n.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(network[0], network[1], high, low))
}

//! What exists in the account.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use cloud_providers::{CancellationToken, Resource, Result};
use tokio::time::Instant;

use super::{
    Call, Fault, Thing, address,
    fault::{How, refused},
};
use crate::{
    client::{
        Address, Image, Instance, InstanceInterface, InstanceVolume, Interface, InterfaceAttachment, KeyPair,
        LaunchTemplate, RunInstances, SecurityGroup, State as Doing, StateReason, Subnet, Tags, TypeInfo,
        Volume, VolumeAttachment,
    },
    owned::{ADDRESS, INTERFACE, VOLUME},
};

pub(crate) struct State {
    pub(crate) start: Instant,
    pub(crate) next: u32,
    pub(crate) instances: BTreeMap<String, Machine>,
    pub(crate) interfaces: BTreeMap<String, Nic>,
    pub(crate) addresses: BTreeMap<String, (Address, Instant)>,
    pub(crate) volumes: BTreeMap<String, Disk>,
    pub(crate) images: BTreeMap<String, Image>,
    pub(crate) types: BTreeMap<String, TypeInfo>,
    /// Each with a number for its addresses.
    pub(crate) subnets: BTreeMap<String, (Subnet, u8)>,
    pub(crate) groups: BTreeMap<String, SecurityGroup>,
    pub(crate) keys: BTreeMap<String, KeyPair>,
    pub(crate) templates: BTreeMap<String, LaunchTemplate>,
    pub(crate) metadata: HashMap<String, String>,
    /// Idempotency value to launch and instance; never forgotten.
    pub(crate) replays: HashMap<String, (RunInstances, String)>,
    /// Idempotency value of an interface.
    pub(crate) interface_replays: HashMap<String, String>,
    pub(crate) calls: Vec<Call>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) shortages: Vec<(String, &'static str)>,
    pub(crate) denied: HashSet<&'static str>,
    pub(crate) latency: Duration,
    pub(crate) boot: Duration,
    pub(crate) shutdown: Duration,
    pub(crate) boot_failure: Option<(&'static str, &'static str)>,
    pub(crate) lag: Duration,
    /// What every instance wrote to its console.
    pub(crate) console: Vec<u8>,
    /// Whether types tell their console at every moment.
    pub(crate) nitro: bool,
    pub(crate) page: usize,
}

/// An instance and its moments.
pub(crate) struct Machine {
    pub(crate) run: RunInstances,
    pub(crate) instance: Instance,
    pub(crate) shown_at: Instant,
    pub(crate) runs_at: Instant,
    pub(crate) fails: Option<(&'static str, &'static str)>,
    pub(crate) stopped: bool,
    /// When it is terminated, once it was told to.
    pub(crate) ends_at: Option<Instant>,
    /// What belongs to it was removed.
    pub(crate) ended: bool,
}

pub(crate) struct Nic {
    pub(crate) interface: Interface,
    pub(crate) shown_at: Instant,
    /// The instance whose launch made it.
    pub(crate) comes_with: Option<String>,
    /// Amazon's public address, or that of an Elastic IP with its association.
    pub(crate) public: Option<std::net::IpAddr>,
}

pub(crate) struct Disk {
    pub(crate) volume: Volume,
    pub(crate) comes_with: Option<String>,
}

/// What happens to a call, and who is told.
type Struck = (How, Option<CancellationToken>);

impl State {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            next: 1,
            instances: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            addresses: BTreeMap::new(),
            volumes: BTreeMap::new(),
            images: BTreeMap::new(),
            types: BTreeMap::new(),
            subnets: BTreeMap::new(),
            groups: BTreeMap::new(),
            keys: BTreeMap::new(),
            templates: BTreeMap::new(),
            metadata: HashMap::new(),
            replays: HashMap::new(),
            interface_replays: HashMap::new(),
            calls: Vec::new(),
            faults: Vec::new(),
            shortages: Vec::new(),
            denied: HashSet::new(),
            latency: Duration::ZERO,
            boot: Duration::ZERO,
            shutdown: Duration::ZERO,
            boot_failure: None,
            console: b"\x1b[0mbooting\r\nready\r\n".to_vec(),
            nitro: true,
            lag: Duration::ZERO,
            page: 100,
        }
    }

    pub(super) fn begin(&mut self, operation: &'static str) -> (Duration, Option<Struck>) {
        self.calls.push(Call { operation, at: self.start.elapsed() });
        // Every fault counts every call, also the ones that another fault takes.
        let mut struck: Vec<Struck> = Vec::new();
        for fault in &mut self.faults {
            if fault.strikes(operation) {
                struck.push((fault.how.clone(), fault.told.clone()));
            }
        }
        (self.latency, struck.into_iter().next())
    }

    pub(crate) fn id(&mut self, prefix: &str) -> String {
        let n = self.next;
        self.next += 1;
        format!("{prefix}-{n:08x}")
    }

    fn address(&mut self, network: [u8; 2]) -> std::net::IpAddr {
        let n = self.next;
        self.next += 1;
        address(network, n)
    }

    /// Makes an instance without looking whether it may be made.
    pub(crate) fn launch(&mut self, run: &RunInstances) -> String {
        let now = Instant::now();
        let id = self.id("i");
        let subnet =
            run.interfaces.first().and_then(|i| i.subnet.clone()).unwrap_or_else(|| "subnet-a".into());
        let zone = self.subnets.get(&subnet).map(|(s, _)| s.zone.clone());
        let count = u32::try_from(run.interfaces.len()).unwrap_or(1).max(1);
        for index in 0..count {
            let wished = run.interfaces.iter().find(|i| i.device_index == index);
            let number = self.subnets.get(&subnet).map_or(0, |(_, n)| *n);
            let private =
                wished.and_then(|w| w.private_address).unwrap_or_else(|| self.address([10, number]));
            let public = wished.and_then(|w| w.public).unwrap_or_default().then(|| self.address([203, 0]));
            let nic = self.id("eni");
            let attachment = InterfaceAttachment {
                id: self.id("eni-attach"),
                instance: Some(id.clone()),
                device_index: index,
                state: "attached".into(),
                delete_on_termination: wished.is_none_or(|w| w.delete_on_termination),
            };
            let interface = Interface {
                id: nic.clone(),
                status: "in-use".into(),
                attachment: Some(attachment),
                private_addresses: vec![private],
                tags: run.tags.clone(),
            };
            let comes_with = Some(id.clone());
            let shown_at = now + self.lag;
            self.interfaces.insert(nic, Nic { interface, shown_at, comes_with, public });
        }
        let disk = self.id("vol");
        let device = run.root_volume.as_ref().map_or("/dev/xvda", |r| r.device.as_str()).to_owned();
        let attachment = VolumeAttachment {
            instance: id.clone(),
            device,
            state: "attached".into(),
            delete_on_termination: true,
        };
        let volume = Volume {
            id: disk.clone(),
            state: "in-use".into(),
            zone: zone.clone().unwrap_or_default(),
            multi_attach: false,
            attachments: vec![attachment],
            tags: run.tags.clone(),
        };
        self.volumes.insert(disk, Disk { volume, comes_with: Some(id.clone()) });
        let instance = Instance {
            id: id.clone(),
            instance_type: run.instance_type.clone().unwrap_or_else(|| "m6a.large".into()),
            image: run.image.clone(),
            subnet: Some(subnet),
            zone,
            spot: run.spot,
            sev_snp: run.sev_snp,
            launched_unix: Some(1_700_000_000),
            client_token: Some(run.client_token.clone()),
            tags: run.tags.clone(),
            ..Instance::default()
        };
        let machine = Machine {
            run: run.clone(),
            instance,
            shown_at: now + self.lag,
            runs_at: now.checked_add(self.boot).unwrap_or(now),
            fails: self.boot_failure,
            stopped: false,
            ends_at: None,
            ended: false,
        };
        self.instances.insert(id.clone(), machine);
        id
    }

    /// Returns an instance as EC2 describes it now.
    pub(crate) fn view(&self, id: &str, now: Instant) -> Option<Instance> {
        let machine = self.instances.get(id)?;
        let mut instance = machine.instance.clone();
        instance.state = match machine.ends_at {
            Some(end) if now >= end => Doing::Terminated,
            Some(_) => Doing::ShuttingDown,
            None if machine.stopped => Doing::Stopped,
            None if now >= machine.runs_at => match machine.fails {
                Some((code, message)) => {
                    instance.state_reason = Some(StateReason { code: code.into(), message: message.into() });
                    Doing::Terminated
                }
                None => Doing::Running,
            },
            None => Doing::Pending,
        };
        let runs = instance.state == Doing::Running;
        for nic in self.interfaces.values() {
            let Some(attachment) =
                nic.interface.attachment.as_ref().filter(|a| a.instance.as_deref() == Some(id))
            else {
                continue;
            };
            let eip =
                self.addresses.values().find(|(a, _)| a.interface.as_deref() == Some(&nic.interface.id));
            let eip = eip.and_then(|(a, _)| a.public_address);
            instance.interfaces.push(InstanceInterface {
                id: nic.interface.id.clone(),
                attachment: Some(attachment.id.clone()),
                device_index: attachment.device_index,
                private_addresses: nic.interface.private_addresses.clone(),
                public_address: eip.or(nic.public.filter(|_| runs)),
                public_owner: eip
                    .map(|_| "123456789012".to_owned())
                    .or(nic.public.map(|_| "amazon".to_owned())),
                delete_on_termination: attachment.delete_on_termination,
            });
        }
        for disk in self.volumes.values() {
            for attachment in disk.volume.attachments.iter().filter(|a| a.instance == id) {
                instance.volumes.push(InstanceVolume {
                    id: disk.volume.id.clone(),
                    device: attachment.device.clone(),
                    state: attachment.state.clone(),
                    delete_on_termination: attachment.delete_on_termination,
                });
            }
        }
        Some(instance)
    }

    /// Lets an instance end after `delay`.
    pub(crate) fn terminate(&mut self, id: &str, delay: Duration) {
        if let Some(machine) = self.instances.get_mut(id) {
            machine.ends_at.get_or_insert(Instant::now() + delay);
        }
    }

    /// Does what time has brought: what belongs to instances that ended goes with them.
    pub(crate) fn move_on(&mut self, now: Instant) {
        let ended: Vec<String> = self
            .instances
            .iter()
            .filter(|(_, m)| !m.ended)
            .filter(|(_, m)| {
                m.ends_at.is_some_and(|end| now >= end)
                    || (m.fails.is_some() && now >= m.runs_at && m.ends_at.is_none())
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            let of = |i: &Option<InterfaceAttachment>| {
                i.as_ref().is_some_and(|a| a.instance.as_deref() == Some(&id))
            };
            self.interfaces.retain(|_, nic| {
                !(of(&nic.interface.attachment)
                    && nic.interface.attachment.as_ref().is_some_and(|a| a.delete_on_termination))
            });
            for nic in self.interfaces.values_mut().filter(|nic| of(&nic.interface.attachment)) {
                nic.interface.attachment = None;
                nic.interface.status = "available".into();
            }
            let there: HashSet<String> = self.interfaces.keys().cloned().collect();
            for (address, _) in self.addresses.values_mut() {
                let held = address.instance.as_deref() == Some(&id);
                if held || address.interface.as_ref().is_some_and(|i| !there.contains(i)) {
                    (address.association, address.instance, address.interface) = (None, None, None);
                }
            }
            let goes = |a: &VolumeAttachment| a.instance == id && a.delete_on_termination;
            self.volumes.retain(|_, disk| !disk.volume.attachments.iter().any(goes));
            for disk in self.volumes.values_mut() {
                disk.volume.attachments.retain(|a| a.instance != id);
                if disk.volume.attachments.is_empty() {
                    disk.volume.state = "available".into();
                }
            }
            if let Some(machine) = self.instances.get_mut(&id) {
                machine.ended = true;
            }
        }
    }

    pub(super) fn things(&self) -> Vec<Thing> {
        let mut things = Vec::new();
        let mut add = |kind, id: &str, comes_with: Option<String>, tags: &Tags| {
            things.push(Thing { kind, id: id.to_owned(), comes_with, tags: tags.clone() });
        };
        for (id, machine) in self.instances.iter().filter(|(_, m)| !m.ended) {
            add(Resource::INSTANCE, id, None, &machine.instance.tags);
        }
        for (id, nic) in &self.interfaces {
            add(INTERFACE, id, nic.comes_with.clone(), &nic.interface.tags);
        }
        for (id, (address, _)) in &self.addresses {
            add(ADDRESS, id, None, &address.tags);
        }
        for (id, disk) in &self.volumes {
            add(VOLUME, id, disk.comes_with.clone(), &disk.volume.tags);
        }
        things
    }

    pub(super) fn attach_new_interface(&mut self, instance: &str, index: u32, tags: Tags) -> String {
        let id = self.id("eni");
        let attachment = InterfaceAttachment {
            id: self.id("eni-attach"),
            instance: Some(instance.into()),
            device_index: index,
            state: "attached".into(),
            delete_on_termination: false,
        };
        let interface = Interface {
            id: id.clone(),
            status: "in-use".into(),
            attachment: Some(attachment),
            private_addresses: vec![self.address([10, 9])],
            tags,
        };
        let nic = Nic { interface, shown_at: self.start, comes_with: None, public: None };
        self.interfaces.insert(id.clone(), nic);
        id
    }

    pub(super) fn associate_new_address(&mut self, instance: &str, tags: Tags) -> String {
        let first = self.interfaces.values().find(|n| {
            n.interface
                .attachment
                .as_ref()
                .is_some_and(|a| a.instance.as_deref() == Some(instance) && a.device_index == 0)
        });
        let interface = first.map(|n| n.interface.id.clone());
        let allocation = self.id("eipalloc");
        let address = Address {
            allocation: allocation.clone(),
            public_address: Some(self.address([198, 51])),
            association: Some(self.id("eipassoc")),
            instance: Some(instance.into()),
            interface,
            tags,
        };
        self.addresses.insert(allocation.clone(), (address, self.start));
        allocation
    }

    pub(super) fn new_volume(&mut self, zone: &str, multi_attach: bool) -> String {
        let id = self.id("vol");
        let volume = Volume {
            id: id.clone(),
            state: "available".into(),
            zone: zone.into(),
            multi_attach,
            ..Volume::default()
        };
        self.volumes.insert(id.clone(), Disk { volume, comes_with: None });
        id
    }

    pub(crate) fn attach(&mut self, volume: &str, instance: &str, device: &str) -> Result<()> {
        let op = "AttachVolume";
        let now = Instant::now();
        let zone = match self.view(instance, now) {
            None => return Err(refused(op, "InvalidInstanceID.NotFound", "no such instance")),
            Some(found) if found.state != Doing::Running => {
                return Err(refused(op, "IncorrectState", "the instance is not running"));
            }
            Some(found) => {
                if found.volumes.iter().any(|v| v.device == device) {
                    return Err(refused(op, "InvalidParameterValue", "the device is in use"));
                }
                found.zone
            }
        };
        let Some(disk) = self.volumes.get_mut(volume) else {
            return Err(refused(op, "InvalidVolume.NotFound", "no such volume"));
        };
        if Some(&disk.volume.zone) != zone.as_ref() {
            return Err(refused(op, "InvalidVolume.ZoneMismatch", "the volume is in another zone"));
        }
        if !disk.volume.attachments.is_empty() && !disk.volume.multi_attach {
            return Err(refused(op, "VolumeInUse", "the volume is attached"));
        }
        disk.volume.state = "in-use".into();
        disk.volume.attachments.push(VolumeAttachment {
            instance: instance.into(),
            device: device.into(),
            state: "attached".into(),
            delete_on_termination: false,
        });
        Ok(())
    }
}

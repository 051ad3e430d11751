//! A libvirtd as an account of the suite, looked at with `virsh`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cloud_providers::{
    Cloud, CreateRequest, ErrorKind, InstanceId, Resource, Retry, VolumeRequest, async_trait,
    names::instance_name, tags,
};
use cloud_providers_conformance::{
    Bounds, Effect, Fault, Feature, Found, Harness, ListFault, Obstacle, Offer, Refusal,
};
use cloud_providers_libvirt::{
    LibvirtCloud,
    testing::{Faults, How},
};

use crate::common::{BASE, LINE, Setup, sectors::Then};

/// A second base volume, for requests that name an image.
const OTHER_IMAGE: &str = "other.img";
/// The refusal that a stopped network gives.
const NETWORK_IS_AWAY: &str = "network-is-away";

/// How long a call waits whose answer never comes.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

/// One case's use of a libvirtd; the next case gets it empty.
pub(crate) struct Account {
    setup: Mutex<Option<Setup>>,
    free: Arc<Mutex<Vec<Setup>>>,
    faults: Faults,
    pool: PathBuf,
    /// Where libvirtd has its own files.
    files: PathBuf,
    /// The network is stopped until the faults are cleared.
    stopped: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: impl std::fmt::Display) -> Obstacle {
    Obstacle::failed(format!("{error:#}"))
}

impl Account {
    pub(crate) fn new(case: &str, setup: Setup, free: Arc<Mutex<Vec<Setup>>>) -> Self {
        let (pool, files) = (setup.libvirtd.pool_dir(), setup.libvirtd.dir().to_owned());
        let faults = Faults::default();
        // The one case that waits for calls without an answer; in the others something else ends them.
        faults.set_patience(if case == "waits/bounded" { SHORT } else { LONG });
        Self { setup: Mutex::new(Some(setup)), free, faults, pool, files, stopped: AtomicBool::new(false) }
    }

    fn with<T>(&self, work: impl FnOnce(&Setup) -> anyhow::Result<T>) -> Offer<T> {
        let setup = lock(&self.setup);
        let setup = setup.as_ref().ok_or_else(|| Obstacle::failed("the case is over"))?;
        work(setup).map_err(failed)
    }

    fn virsh(&self, args: &[&str]) -> Offer<String> {
        self.with(|setup| setup.libvirtd.virsh(args))
    }

    /// Defines a domain that nobody started, with this XML between its devices and its name.
    fn define(&self, name: &str, disks: &[(&str, PathBuf)]) -> Offer<InstanceId> {
        let disks: String = disks
            .iter()
            .map(|(target, path)| {
                format!(
                    "<disk type='file'><source file='{}'/><target dev='{target}'/></disk>",
                    path.display()
                )
            })
            .collect();
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><os><type arch='x86_64'>hvm</type></os>\
             <devices>{disks}</devices></domain>"
        );
        let file = self.pool.join(format!("{name}.xml"));
        std::fs::write(&file, xml).map_err(failed)?;
        let defined = self.virsh(&["define", &file.display().to_string()]);
        std::fs::remove_file(&file).map_err(failed)?;
        defined?;
        Ok(InstanceId::new(self.virsh(&["domuuid", name])?.trim()))
    }

    fn set_base(&self, then: Then) -> Offer<()> {
        self.with(|setup| setup.add_disk(BASE, LINE, then))
    }
}

#[async_trait]
impl Harness for Account {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(LibvirtCloud::new().with_faults(&self.faults))
    }

    fn variables(&self) -> Vec<(String, String)> {
        let mut variables = lock(&self.setup).as_ref().map(Setup::variables).unwrap_or_default();
        variables.push(("LIBVIRT_BOOT_TIMEOUT".into(), "12s".into()));
        variables
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    /// Looks at the files that libvirtd keeps, which costs a hundredth of asking it: the suite looks thousands of times.
    async fn leftovers(&self) -> Offer<Vec<Found>> {
        let mut found = Vec::new();
        let mut owners: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for xml in documents(&self.files.join("etc/qemu"))? {
            let uuid = xml.split_once("<uuid>").and_then(|(_, rest)| rest.split_once("</uuid>"));
            let (uuid, _) = uuid.ok_or_else(|| Obstacle::failed("a definition without UUID"))?;
            let (tags, volumes) = journal(&xml)?;
            owners.extend(volumes.into_iter().map(|volume| (volume, tags.clone())));
            found.push(Found::new(Resource::new(Resource::INSTANCE, uuid)).with_tags(tags));
        }
        for entry in std::fs::read_dir(&self.pool).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if name == BASE || name == OTHER_IMAGE {
                continue;
            }
            let id = format!("default/{name}");
            let volume = Found::new(Resource::new("volume", id.clone()));
            found.push(match owners.get(&id) {
                Some(tags) => volume.with_tags(tags.clone()),
                None => volume,
            });
        }
        Ok(found)
    }

    async fn clean_up(&self) -> Offer<()> {
        let Some(setup) = lock(&self.setup).take() else { return Ok(()) };
        let free = self.free.clone();
        let cleaned = tokio::task::spawn_blocking(move || {
            for name in setup.libvirtd.domains()? {
                let _ = setup.libvirtd.virsh(&["destroy", &name]);
                setup.libvirtd.virsh(&["undefine", &name])?;
            }
            for name in setup.libvirtd.volumes()? {
                if name != BASE {
                    setup.libvirtd.virsh(&["vol-delete", "--pool", "default", &name])?;
                }
            }
            setup.add_disk(BASE, LINE, Then::AskForAddress)?;
            lock(&free).push(setup);
            anyhow::Ok(())
        });
        // One that cannot be emptied is ended, and the next case starts its own.
        cleaned.await.map_err(failed)?.map_err(failed)
    }

    fn bounds(&self) -> Bounds {
        Bounds::default()
            .with_operation(Duration::from_secs(60))
            .with_cancel(Duration::from_secs(15))
            .with_settle(Duration::from_secs(20))
            .with_sweeps(6, 2)
    }

    fn missing_id(&self) -> InstanceId {
        InstanceId::new("6d1b1f5e-0000-4000-8000-000000000001")
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Fail, Effect::LoseReply, Effect::HangBefore, Effect::HangAfter]
    }

    async fn inject(&self, fault: Fault) -> Offer<()> {
        let how = match fault.effect {
            Effect::Fail => How::Refuse,
            Effect::LoseReply => How::LoseReply,
            Effect::HangBefore => How::HangBefore,
            Effect::HangAfter => How::HangAfter,
            _ => return Err(Obstacle::unsupported("another kind of fault")),
        };
        self.faults.strike_nth(fault.nth, how, &fault.struck);
        Ok(())
    }

    async fn clear_faults(&self) -> Offer<()> {
        self.faults.clear();
        if self.stopped.swap(false, Ordering::SeqCst) {
            self.virsh(&["net-start", "default"])?;
        }
        self.set_base(Then::AskForAddress)
    }

    async fn calls(&self) -> Offer<usize> {
        Ok(self.faults.count())
    }

    async fn block_removals(&self) -> Offer<()> {
        for operation in ["virDomainDestroy", "virStorageVolDelete", "virDomainUndefineFlags"] {
            self.faults.strike_all(operation, How::Refuse);
        }
        Ok(())
    }

    async fn add_foreign(&self, request: &CreateRequest) -> Offer<InstanceId> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, 63)?;
        self.define(&name, &[])
    }

    async fn add_obstacle(&self, request: &CreateRequest) -> Offer<()> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, 63)?;
        self.virsh(&["vol-create-as", "default", &format!("{name}-root.qcow2"), "1M", "--format", "qcow2"])?;
        Ok(())
    }

    async fn add_untagged(&self, name: &str) -> Offer<InstanceId> {
        let (root, seed) = (format!("{name}-root.qcow2"), format!("{name}-cloudinit.iso"));
        for (volume, format) in [(&root, "qcow2"), (&seed, "raw")] {
            self.virsh(&["vol-create-as", "default", volume, "1M", "--format", format])?;
        }
        self.define(name, &[("sda", self.pool.join(root)), ("sdb", self.pool.join(seed))])
    }

    async fn attach_foreign(&self, id: &InstanceId) -> Offer<()> {
        let name = format!("by-hand-{}.img", id.as_str());
        self.virsh(&["vol-create-as", "default", &name, "1M", "--format", "raw"])?;
        let path = self.pool.join(name).display().to_string();
        self.virsh(&["attach-disk", id.as_str(), &path, "vdz", "--persistent"])?;
        Ok(())
    }

    async fn add_volume(&self) -> Offer<VolumeRequest> {
        let name = format!("data-{}.img", self.with(|setup| Ok(setup.libvirtd.volumes()?.len()))?);
        self.virsh(&["vol-create-as", "default", &name, "2M", "--format", "raw"])?;
        Ok(VolumeRequest::new(self.pool.join(name).display().to_string()))
    }

    async fn break_lists(&self, how: ListFault) -> Offer<()> {
        match how {
            ListFault::Wholly => {
                self.faults.strike_all("virConnectListAllDomains", How::Break);
                Ok(())
            }
            _ => Err(Obstacle::unsupported("a list of which a part is missing")),
        }
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            name: NETWORK_IS_AWAY.into(),
            kind: ErrorKind::Config,
            retry: Retry::Never,
            code: Some("OperationInvalid/Network".into()),
        }]
    }

    async fn refuse(&self, refusal: &Refusal) -> Offer<()> {
        if refusal.name != NETWORK_IS_AWAY {
            return Err(Obstacle::failed(format!("nobody knows {}", refusal.name)));
        }
        self.virsh(&["net-destroy", "default"])?;
        self.stopped.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn ready_after(&self, time: Duration) -> Offer<()> {
        self.set_base(Then::AskAfter(time))
    }

    async fn never_ready(&self) -> Offer<()> {
        self.set_base(Then::Halt)
    }

    async fn with_feature(&self, feature: Feature, mut request: CreateRequest) -> Offer<CreateRequest> {
        match feature {
            Feature::Volumes => request.spec.volumes.push(self.add_volume().await?),
            Feature::Image => {
                self.with(|setup| setup.add_disk(OTHER_IMAGE, LINE, Then::AskForAddress))?;
                request.spec.image = Some(OTHER_IMAGE.into());
            }
            Feature::RootDisk => request.spec.root_disk_gib = Some(3),
            Feature::Sizes => (request.spec.vcpus, request.spec.memory_mib) = (2, 96),
            other => return other.add_to(request),
        }
        Ok(request)
    }

    async fn has_feature(&self, feature: Feature, id: &InstanceId) -> Offer<bool> {
        let xml = self.virsh(&["dumpxml", id.as_str()])?;
        let root = || -> Offer<String> {
            let path =
                element(&xml, "file='", "-root.qcow2").ok_or_else(|| Obstacle::failed("no root disk"))?;
            self.virsh(&["vol-dumpxml", &format!("{path}-root.qcow2")])
        };
        Ok(match feature {
            Feature::Volumes => {
                xml.contains(&format!("{}/data-", self.pool.display())) && xml.contains("<serial>")
            }
            Feature::Image => root()?.contains(OTHER_IMAGE),
            Feature::RootDisk => {
                root()?.contains(&format!("<capacity unit='bytes'>{}</capacity>", 3u64 << 30))
            }
            Feature::TwoNetworks => xml.matches("<interface type='network'>").count() == 2,
            Feature::Sizes => xml.contains(">2</vcpu>") && xml.contains(&format!(">{}</memory>", 96 * 1024)),
            // Nothing is in the way of a port, and a machine is a machine.
            Feature::Ports | Feature::PlainMachine => !xml.contains("<filterref"),
            _ => false,
        })
    }

    async fn user_data(&self, id: &InstanceId) -> Offer<Vec<u8>> {
        let xml = self.virsh(&["dumpxml", id.as_str()])?;
        let path = element(&xml, "file='", "-cloudinit.iso").ok_or_else(|| Obstacle::failed("no seed"))?;
        let image = std::fs::read(format!("{path}-cloudinit.iso")).map_err(failed)?;
        user_data_of(&image).ok_or_else(|| Obstacle::failed("the seed has no user-data"))
    }

    fn bad_variables(&self) -> Vec<(String, String)> {
        [
            ("LIBVIRT_URI", "qemu:/system"),
            ("LIBVIRT_POOL", "a/b"),
            ("LIBVIRT_CPUSET", "3-1"),
            ("LIBVIRT_EFI_FIRMWARE", "somewhere"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    fn confidential_variables(&self) -> Offer<Vec<(String, String)>> {
        Ok(vec![("DISABLECVM".into(), "false".into())])
    }

    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        let setup = tokio::task::spawn_blocking(Setup::start).await.map_err(failed)?.map_err(failed)?;
        Ok(Arc::new(Self::new("another account", setup, Arc::default())))
    }
}

/// Reads the XML documents in a folder. One that goes meanwhile is gone.
fn documents(folder: &Path) -> Offer<Vec<String>> {
    let mut documents = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|e| e != "xml") {
            continue;
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => documents.push(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(documents)
}

/// Reads tags and volumes from a definition, by other means than the provider does.
fn journal(xml: &str) -> Offer<(BTreeMap<String, String>, Vec<String>)> {
    let texts = |element: &str, attribute: &str| -> Vec<(String, String)> {
        xml.lines()
            .filter_map(|line| {
                let rest = line.trim().strip_prefix(&format!("<peerpod:{element} {attribute}="))?;
                let (name, rest) = rest[1..].split_once(['\'', '"'])?;
                let (_, rest) = rest.split_once('>')?;
                Some((name.to_owned(), rest.split_once('<').map_or("", |(t, _)| t).to_owned()))
            })
            .collect()
    };
    let tags: BTreeMap<String, String> = texts("tag", "key").into_iter().collect();
    if !tags.is_empty() && !tags.contains_key(tags::TOKEN) {
        return Err(Obstacle::failed(format!("tags without a token: {tags:?}")));
    }
    let volumes = texts("volume", "pool").into_iter().map(|(pool, name)| format!("{pool}/{name}")).collect();
    Ok((tags, volumes))
}

/// Returns the text between two others, of which the last may be the end of a longer word.
fn element<'a>(xml: &'a str, before: &str, after: &str) -> Option<&'a str> {
    // The journal before the devices holds names of volumes, too.
    let xml = &xml[xml.find("<devices>")?..];
    let end = xml.find(after)?;
    let start = xml[..end].rfind(before)? + before.len();
    Some(&xml[start..end])
}

/// Finds a file in the root folder of an ISO 9660 image.
fn user_data_of(image: &[u8]) -> Option<Vec<u8>> {
    let sector = 2048;
    let number = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let root = 16 * sector + 156;
    let (folder, length) = (number(root + 2)? * sector, number(root + 10)?);
    let mut at = folder;
    while at < folder + length {
        let size = usize::from(*image.get(at)?);
        if size == 0 {
            at = (at / sector + 1) * sector;
            continue;
        }
        let name_length = usize::from(*image.get(at + 32)?);
        let name = image.get(at + 33..at + 33 + name_length)?;
        if name.to_ascii_lowercase().starts_with(b"user-data") {
            let (start, length) = (number(at + 2)? * sector, number(at + 10)?);
            return Some(image.get(start..start + length)?.to_vec());
        }
        at += size;
    }
    None
}

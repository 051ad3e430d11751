//! What the suite sees of a host with instances, by `ip`, `/proc` and the files, never through the provider.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers::{
    Cloud, CreateRequest, EnvSource, InstanceId, Provider, Resource, Result, Settings, Token, async_trait,
    tags,
};
use cloud_providers_conformance::{Bounds, Effect, Fault, Found, Harness, ListFault, Obstacle, Offer};
use cloud_providers_local::{
    LocalCloud,
    testing::{self, When},
};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use test_support::{processes, wait_for};

use crate::{
    guest,
    setup::{LIMIT, Setup, talk},
};

/// Where a broken list keeps what it hides.
const AWAY: &str = "instances.away";

/// One network namespace with one data folder.
pub(crate) struct Local {
    setup: Arc<Setup>,
    /// The lock under which addresses are given out, while another process never lets go of it.
    held: Mutex<Option<Flock<File>>>,
}

fn failed(error: anyhow::Error) -> Obstacle {
    Obstacle::failed(format!("{error:#}"))
}

impl Local {
    pub(crate) fn new() -> Offer<Self> {
        let setup = Setup::new().map_err(failed)?;
        fs::create_dir(setup.data_dir())?;
        Ok(Self { setup: Arc::new(setup), held: Mutex::default() })
    }

    fn instances(&self) -> PathBuf {
        self.setup.data_dir().join("instances")
    }

    fn hash(&self) -> String {
        tags::hash(&self.setup.data_dir().to_string_lossy(), 8)
    }

    fn records_lock(&self) -> PathBuf {
        self.setup.data_dir().join("locks/records")
    }

    fn record(&self, id: &str) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.instances().join(id).join("instance.json")).ok()?).ok()
    }

    fn folders(&self) -> Offer<Vec<String>> {
        match fs::read_dir(self.instances()) {
            Ok(entries) => Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ids of the instances whose processes run.
    fn running(&self) -> Vec<String> {
        let mark = format!("@{}", self.hash());
        let id_of = |pid: i32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let mut variables = environ.split(|b| *b == 0).filter_map(|v| std::str::from_utf8(v).ok());
            let value = variables.find_map(|v| v.strip_prefix("PEERPOD_LOCAL_INSTANCE="))?;
            value.strip_suffix(&mark).map(str::to_owned)
        };
        processes().into_iter().filter_map(|p| id_of(p.pid)).collect()
    }

    /// Names and aliases of the links, without loopback.
    fn links(&self) -> Offer<Vec<(String, Option<String>)>> {
        let text = self.setup.netns.ip(&["-json", "link", "show"]).map_err(failed)?;
        let all: Vec<Value> = serde_json::from_str(&text)?;
        let text = |link: &Value, key: &str| link[key].as_str().map(str::to_owned);
        let links = all.iter().filter_map(|l| Some((text(l, "ifname")?, text(l, "ifalias"))));
        Ok(links.filter(|(name, _)| name != "lo").collect())
    }
}

/// The tags of an instance: they live in its record.
fn tags_of(record: &Value) -> Option<BTreeMap<String, String>> {
    let token: Token = serde_json::from_value(record["token"].clone()).ok()?;
    let pairs = [
        (tags::SCOPE, tags::encode_value(&token.scope.to_string())),
        (tags::HOLDER, tags::encode_value(record["holder"].as_str()?)),
        (tags::TOKEN, token.tag_value()),
        (tags::REQUEST, record["fingerprint"].as_str()?.to_owned()),
        (tags::UNIT, tags::encode_value(&token.unit)),
        (tags::CREATED, record["created_unix"].to_string()),
        (tags::TOKEN_TEXT, token.to_string()),
    ];
    Some(pairs.map(|(key, value)| (key.to_owned(), value)).into())
}

fn folder(path: &Path) -> Resource {
    Resource::new("folder", path.display().to_string())
}

#[async_trait]
impl Harness for Local {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(InNamespace { inner: LocalCloud::new(), setup: self.setup.clone() })
    }

    fn variables(&self) -> Vec<(String, String)> {
        self.setup.env.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    async fn leftovers(&self) -> Offer<Vec<Found>> {
        let mut found = Vec::new();
        for name in self.folders()? {
            let mut one = Found::new(folder(&self.instances().join(&name)));
            one.tags = self.record(&name).as_ref().and_then(tags_of);
            found.push(one);
        }
        let mut first_link = None;
        let mut bridge = None;
        for (name, _) in self.links()? {
            if name == "ppbr0" {
                bridge = Some(Resource::new("bridge", name));
                continue;
            }
            let link = Resource::new("network_interface", name);
            let of = |id: &String| {
                link.id.strip_prefix("ppl").is_some_and(|d| id.starts_with(&format!("local-{d}")))
            };
            let id = self.folders()?.into_iter().find(of);
            let mut one = Found::new(link.clone());
            one.tags = id.and_then(|id| self.record(&id)).as_ref().and_then(tags_of);
            found.push(one);
            first_link.get_or_insert(link);
        }
        // The bridge comes before the first link and goes with the last; while there is no instance it is a leak.
        let link_of =
            |name: &String| Resource::new("network_interface", format!("ppl{}", name.get(6..18)?)).into();
        let wanted = self.folders()?.iter().find_map(link_of);
        found.extend(bridge.map(|bridge| match first_link.or(wanted) {
            Some(link) => Found::new(bridge).part_of(link),
            None => Found::new(bridge),
        }));
        let mut running = self.running();
        running.sort();
        running.dedup();
        let instance = |id: &str| Resource::new(Resource::INSTANCE, id);
        for id in &running {
            let mut one = Found::new(instance(id));
            one.tags = self.record(id).as_ref().and_then(tags_of);
            found.push(one);
        }
        let prefix = format!("peerpod-{}-", self.hash());
        for group in self.setup.groups().map_err(failed)? {
            let name = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let id = name.strip_prefix(&prefix).unwrap_or_default();
            let mut one = Found::new(Resource::new("control_group", group.display().to_string()));
            one.tags = self.record(id).as_ref().and_then(tags_of);
            found.push(one.part_of(instance(id)));
        }
        Ok(found)
    }

    async fn clean_up(&self) -> Offer<()> {
        self.clear_faults().await?;
        for (name, alias) in self.links()? {
            if alias.as_deref() == Some("somebody else's") {
                self.setup.netns.ip(&["link", "delete", &name]).map_err(failed)?;
            }
        }
        let data = self.setup.data_dir();
        // Cases that make no provider leave the folder as it was made here.
        for name in ["instances", "locks"] {
            fs::create_dir_all(data.join(name))?;
        }
        self.setup.check_clean().map_err(failed)
    }

    fn bounds(&self) -> Bounds {
        Bounds::default().with_operation(Duration::from_secs(60)).with_notice(Duration::from_millis(200))
    }

    fn missing_id(&self) -> InstanceId {
        InstanceId::new("local-0123456789abcdef")
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Fail, Effect::LoseReply]
    }

    async fn inject(&self, fault: Fault) -> Offer<()> {
        let when = match fault.effect {
            Effect::LoseReply => When::After,
            _ => When::Before,
        };
        testing::fail(&self.setup.data_dir(), fault.nth, when, fault.struck);
        Ok(())
    }

    async fn clear_faults(&self) -> Offer<()> {
        testing::clear(&self.setup.data_dir());
        if let Some(held) = self.held.lock().expect("no test panics here").take() {
            fs::remove_file(self.records_lock())?;
            drop(held);
        }
        let away = self.setup.data_dir().join(AWAY);
        if away.exists() {
            fs::rename(away, self.instances())?;
        }
        for name in self.folders()? {
            let (record, kept) =
                (self.instances().join(&name).join("instance.json"), kept(&self.instances(), &name));
            if kept.exists() {
                fs::rename(kept, record)?;
            }
        }
        Ok(())
    }

    async fn calls(&self) -> Offer<usize> {
        Ok(testing::steps(&self.setup.data_dir()))
    }

    async fn block_removals(&self) -> Offer<()> {
        testing::block_removals(&self.setup.data_dir());
        Ok(())
    }

    async fn add_obstacle(&self, request: &CreateRequest) -> Offer<()> {
        let name = format!("ppl{}", &request.token.tag_value()[..12]);
        let netns = &self.setup.netns;
        netns.ip(&["link", "add", &name, "type", "bridge"]).map_err(failed)?;
        netns.ip(&["link", "set", &name, "alias", "somebody else's"]).map_err(failed)?;
        Ok(())
    }

    async fn remove_instance_only(&self, id: &InstanceId) -> Offer<()> {
        let record =
            self.record(id.as_str()).ok_or_else(|| Obstacle::failed(format!("{id} has no record")))?;
        let pid = record["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let pid =
            pid.ok_or_else(|| Obstacle::failed(format!("the record of {id} names no process: {record}")))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        let gone = || (!self.running().iter().any(|r| r == id.as_str())).then_some(());
        wait_for("the instance to go", LIMIT, gone).map_err(failed)
    }

    async fn break_lists(&self, how: ListFault) -> Offer<()> {
        match how {
            ListFault::Partly => {
                let name = self.folders()?.into_iter().next().unwrap_or_default();
                let record = self.instances().join(&name).join("instance.json");
                fs::rename(&record, kept(&self.instances(), &name))?;
                fs::write(&record, "{")?;
            }
            _ => fs::rename(self.instances(), self.setup.data_dir().join(AWAY))?,
        }
        Ok(())
    }

    async fn never_ready(&self) -> Offer<()> {
        fs::create_dir_all(self.setup.data_dir().join("locks"))?;
        let file = File::options().create(true).truncate(false).write(true).open(self.records_lock())?;
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        *self.held.lock().expect("no test panics here") = Some(held);
        Ok(())
    }

    async fn user_data(&self, id: &InstanceId) -> Offer<Vec<u8>> {
        let record =
            self.record(id.as_str()).ok_or_else(|| Obstacle::failed(format!("{id} has no record")))?;
        let address: IpAddr = record["address"].as_str().unwrap_or_default().parse()?;
        let address = SocketAddr::new(address, guest::PORT);
        let netns = &self.setup.netns;
        let connect = || netns.run(|| Ok(TcpStream::connect_timeout(&address, LIMIT)?)).ok();
        let stream = wait_for("the guest to answer", LIMIT, connect).map_err(failed)?;
        let report: guest::Report = serde_json::from_str(&talk(stream, "report").map_err(failed)?)?;
        Ok(report.user_data.into_bytes())
    }

    fn bad_variables(&self) -> Vec<(String, String)> {
        let bad = [
            ("LOCAL_DATA_DIR", "relative"),
            ("LOCAL_ROOT", "relative"),
            ("LOCAL_BRIDGE", "a-name-that-is-too-long"),
            ("LOCAL_SUBNET", "10.0.0.0/31"),
        ];
        bad.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        Ok(Arc::new(Self::new()?))
    }
}

/// Where the record of an instance is while a damaged one stands in its place.
fn kept(instances: &Path, name: &str) -> PathBuf {
    instances.join(name).join("instance.json.kept")
}

/// Builds providers in the case's network namespace, whatever thread asks for one.
struct InNamespace {
    inner: LocalCloud,
    setup: Arc<Setup>,
}

#[async_trait]
impl Cloud for InNamespace {
    fn settings(&mut self) -> &mut Settings {
        self.inner.settings()
    }

    fn load_env(&mut self, env: &dyn EnvSource) -> Result<()> {
        self.inner.load_env(env)
    }

    fn problems(&mut self) -> Vec<String> {
        self.inner.problems()
    }

    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
        let inner = &mut self.inner;
        let made = self.setup.netns.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(inner.new_provider()))
        });
        made.map_err(|e| cloud_providers::Error::internal(format!("{e:#}")))?
    }
}

//! A real Kubernetes API server with etcd and the controller manager, that leaves nothing behind.

mod client;
mod existing;
mod files;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

pub use self::client::{Answer, ClusterClient, Request};
pub use self::existing::{ExistingController, existing_definition, existing_peer_pod};
use crate::{Netns, ProcessGuard, wait_for};

/// Three programs start in four seconds on an idle machine, and this one compiles beside.
const START_LIMIT: Duration = Duration::from_secs(180);
const END_LIMIT: Duration = Duration::from_secs(30);
/// The server demands an address that is not loopback, and puts it into an object that nobody here looks at.
const ADVERTISED: &str = "192.0.2.77";
const PORT: u16 = 6443;
const ETCD: (u16, u16) = (2379, 2380);
/// What the controller manager does unless a test says otherwise.
const CONTROLLERS: &str = "garbagecollector,namespace";

/// A program of the cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// The store.
    Etcd,
    /// The API server.
    ApiServer,
    /// The garbage collector and the other controllers.
    ControllerManager,
}

impl Part {
    /// All of them in the order in which they start.
    pub const ALL: [Self; 3] = [Self::Etcd, Self::ApiServer, Self::ControllerManager];

    fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
        }
    }
}

/// How a [`RealCluster`] is to be made.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    place: Option<(PathBuf, IpAddr)>,
    assets: Option<PathBuf>,
    definitions: Vec<Value>,
    manifests: Vec<String>,
    controllers: String,
    audit: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            place: None,
            assets: None,
            definitions: Vec::new(),
            manifests: Vec::new(),
            controllers: CONTROLLERS.to_owned(),
            audit: false,
        }
    }
}

impl ClusterOptions {
    /// Lets it serve in a network namespace at one of its addresses, in place of an own address of loopback.
    #[must_use]
    pub fn in_netns(mut self, netns: &Netns, address: IpAddr) -> Self {
        self.place = Some((netns.path(), address));
        self
    }

    /// Takes the programs from this folder, and does not look for one.
    #[must_use]
    pub fn with_assets(mut self, folder: &Path) -> Self {
        self.assets = Some(folder.to_owned());
        self
    }

    /// Makes these custom resource definitions before the controller manager starts.
    ///
    /// The garbage collector looks for new kinds every 30 seconds only, and collects nothing of a kind until then.
    #[must_use]
    pub fn with_definitions(mut self, definitions: impl IntoIterator<Item = Value>) -> Self {
        self.definitions.extend(definitions);
        self
    }

    /// Makes the objects of a YAML text, as [`ClusterClient::apply_text`] does, before the controller manager starts.
    #[must_use]
    pub fn with_manifest(mut self, text: impl Into<String>) -> Self {
        self.manifests.push(text.into());
        self
    }

    /// Has the API server write down who asked for what; see [`RealCluster::requests_of`].
    #[must_use]
    pub fn with_audit(mut self) -> Self {
        self.audit = true;
        self
    }

    /// Runs these controllers, a list as `--controllers` takes it, in place of the garbage collector and the one of
    /// namespaces.
    #[must_use]
    pub fn with_controllers(mut self, controllers: &str) -> Self {
        controllers.clone_into(&mut self.controllers);
        self
    }

    /// Starts it, and waits until everything is served.
    ///
    /// # Errors
    ///
    /// When the programs cannot be had; shows the last lines of one that does not come up.
    pub fn start(self) -> Result<RealCluster> {
        RealCluster::launch(self)
    }
}

/// A real API server with role-based access control, etcd and a controller manager, without nodes.
///
/// It listens on an address of loopback that is its own, or where [`ClusterOptions::in_netns`] says. Everybody needs a
/// token: [`kubeconfig`](Self::kubeconfig) is for who may do everything, and
/// [`kubeconfig_of`](Self::kubeconfig_of) for a service account with the rights that a test gave it.
///
/// Dropping it ends everything; so does the end of the process that made it.
#[derive(Debug)]
pub struct RealCluster {
    // The order is the one in which they end: an API server without its store lingers.
    manager: Option<ProcessGuard>,
    server: Option<ProcessGuard>,
    etcd: Option<ProcessGuard>,
    assets: PathBuf,
    client: ClusterClient,
    audit: bool,
    controllers: String,
    manager_flags: Vec<String>,
    /// How much the controller manager had written before it was started last.
    manager_said: usize,
    dir: tempfile::TempDir,
}

impl RealCluster {
    /// Starts it on an address of loopback that nobody else uses.
    ///
    /// # Errors
    ///
    /// As [`ClusterOptions::start`].
    pub fn start() -> Result<Self> {
        ClusterOptions::default().start()
    }

    fn launch(options: ClusterOptions) -> Result<Self> {
        let assets = options.assets.map_or_else(find_assets, Ok)?;
        let dir = tempfile::Builder::new().prefix("ppk8s-").tempdir_in("/tmp")?;
        let (netns, address) = match options.place {
            Some((netns, address)) => (Some(netns), address),
            None => (None, own_address()?),
        };
        let token = files::write(dir.path(), address)?;
        let client = ClusterClient { netns, address, token, ca: dir.path().join("ca.crt") };
        let mut cluster = Self {
            manager: None,
            server: None,
            etcd: None,
            manager_flags: manager_flags(&assets)?,
            assets,
            manager_said: 0,
            client,
            audit: options.audit,
            controllers: options.controllers,
            dir,
        };
        cluster.kubeconfig_with("admin.kubeconfig", cluster.token())?;
        cluster.start_again(Part::Etcd)?;
        cluster.start_again(Part::ApiServer)?;
        for definition in &options.definitions {
            cluster.define(definition)?;
        }
        for text in &options.manifests {
            cluster.apply_text(text)?;
        }
        cluster.start_again(Part::ControllerManager)?;
        Ok(cluster)
    }

    /// Starts a part that was killed, and waits until it serves. What there was before is still there.
    ///
    /// # Errors
    ///
    /// When it runs; shows its last lines when it does not come up.
    pub fn start_again(&mut self, part: Part) -> Result<()> {
        self.start_without_waiting(part)?;
        self.wait_until_served(part)
    }

    /// Starts a part that was killed.
    ///
    /// # Errors
    ///
    /// When it runs, or cannot be started at all.
    pub fn start_without_waiting(&mut self, part: Part) -> Result<()> {
        ensure!(self.guard(part).is_none(), "{} runs", part.program());
        let mut command = self.command(self.assets.join(part.program()));
        command.args(self.flags(part)).current_dir(self.dir.path());
        // A proxy of the caller's must not get between the parts.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.dir.path());
        let log = self.dir.path().join(format!("{}.log", part.program()));
        if part == Part::ControllerManager {
            self.manager_said = self.log(part).len();
        }
        let guard = ProcessGuard::spawn_tied(part.program(), &command, &log)?;
        *self.guard(part) = Some(guard);
        Ok(())
    }

    /// Waits until a part that was started serves.
    ///
    /// # Errors
    ///
    /// Shows its last lines when it does not come up.
    pub fn wait_until_served(&mut self, part: Part) -> Result<()> {
        let begun = Instant::now();
        let mut guard = self.guard(part).take().with_context(|| format!("{} was killed", part.program()))?;
        let up = wait_for(&format!("an answer of {}", part.program()), START_LIMIT, || {
            if let Some(status) = guard.try_status() {
                return Some(Err(anyhow::anyhow!("{} ended with {status}", part.program())));
            }
            self.is_served(part, &guard).then_some(Ok(()))
        });
        let up = up.and_then(|up| up).with_context(|| {
            format!("after {:?} {} says:\n{}", begun.elapsed(), part.program(), guard.last_lines(30))
        });
        *self.guard(part) = Some(guard);
        up
    }

    fn is_served(&self, part: Part, guard: &ProcessGuard) -> bool {
        match part {
            Part::Etcd => self.etcd_is_healthy(),
            Part::ApiServer => {
                let ready = self.request("GET", "/readyz", None);
                let ready = ready.is_ok_and(|answer| answer.status == 200);
                // Readiness does not cover what the server itself makes a moment later, and tests need it at once.
                ready && matches!(self.get("/api/v1/namespaces/default"), Ok(Some(_)))
            }
            // It serves nobody. Without leader election its controllers start right away.
            Part::ControllerManager => {
                let output = guard.output();
                let now = output.get(self.manager_said..).unwrap_or_default();
                // Releases write the beginning of this sentence differently.
                now.contains("resource monitors have synced")
                    || !self.controllers.contains("garbagecollector")
            }
        }
    }

    fn flags(&self, part: Part) -> Vec<String> {
        let at = |port: u16| format!("http://{}", host(self.client.address, port));
        match part {
            Part::Etcd => vec![
                "--data-dir=etcd".to_owned(),
                // The store need not outlive the machine.
                "--unsafe-no-fsync".to_owned(),
                format!("--listen-client-urls={}", at(ETCD.0)),
                format!("--advertise-client-urls={}", at(ETCD.0)),
                format!("--listen-peer-urls={}", at(ETCD.1)),
                format!("--initial-advertise-peer-urls={}", at(ETCD.1)),
                format!("--initial-cluster=default={}", at(ETCD.1)),
            ],
            Part::ApiServer => {
                let mut lines = vec![
                    format!("--etcd-servers={}", at(ETCD.0)),
                    format!("--bind-address={}", self.client.address),
                    format!("--secure-port={PORT}"),
                    format!("--advertise-address={ADVERTISED}"),
                    "--cert-dir=.".to_owned(),
                    "--tls-cert-file=server.crt".to_owned(),
                    "--tls-private-key-file=server.key".to_owned(),
                    "--service-account-key-file=accounts.pub".to_owned(),
                    "--service-account-signing-key-file=accounts.key".to_owned(),
                    "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                    "--api-audiences=https://kubernetes.default.svc".to_owned(),
                    "--authorization-mode=RBAC".to_owned(),
                    "--token-auth-file=tokens.csv".to_owned(),
                    "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
                    // Pods would wait for secrets of their service account, which no controller makes here.
                    "--disable-admission-plugins=ServiceAccount".to_owned(),
                    "--allow-privileged".to_owned(),
                ];
                if self.audit {
                    lines.push("--audit-policy-file=audit-policy.json".to_owned());
                    lines.push("--audit-log-path=audit.log".to_owned());
                }
                lines
            }
            Part::ControllerManager => {
                let mut lines = vec![
                    "--kubeconfig=admin.kubeconfig".to_owned(),
                    format!("--controllers={}", self.controllers),
                    "--leader-elect=false".to_owned(),
                    // Thousands of objects go in a test; the defaults are 20 and 30 in a second.
                    "--kube-api-qps=1000".to_owned(),
                    "--kube-api-burst=2000".to_owned(),
                    "--v=2".to_owned(),
                ];
                lines.extend(self.manager_flags.iter().cloned());
                lines
            }
        }
    }

    /// Kills a part as a crash would.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self, part: Part) -> Result<()> {
        let mut guard =
            self.guard(part).take().with_context(|| format!("{} does not run", part.program()))?;
        guard.signal_group(Signal::SIGKILL)?;
        guard.wait_exit(END_LIMIT)?;
        // The shell in between is gone a moment before what it started has let go of its port.
        wait_for(&format!("the port of {}", part.program()), END_LIMIT, || {
            let held = match part {
                Part::Etcd => self.etcd_is_healthy(),
                Part::ApiServer => self.request("GET", "/livez", None).is_ok(),
                Part::ControllerManager => false,
            };
            (!held).then_some(())
        })
    }

    /// Stops a part for a while: it takes connections and answers nothing.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn pause(&mut self, part: Part) -> Result<()> {
        self.running(part)?.signal_group(Signal::SIGSTOP)
    }

    /// Lets a part go on.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn resume(&mut self, part: Part) -> Result<()> {
        self.running(part)?.signal_group(Signal::SIGCONT)
    }

    /// Returns what an account asked for, and how often, since the cluster was made with [`ClusterOptions::with_audit`].
    ///
    /// # Errors
    ///
    /// When the server writes nothing down.
    pub fn requests_of(&self, namespace: &str, account: &str) -> Result<BTreeMap<Request, usize>> {
        let text = fs::read_to_string(self.dir.path().join("audit.log"));
        let text = text.context("nobody asked for the audit")?;
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let mut requests = BTreeMap::new();
        for request in text.lines().filter_map(|line| client::request_of(line, &user)) {
            *requests.entry(request).or_default() += 1;
        }
        Ok(requests)
    }

    /// Returns what a part has written since the cluster was made.
    pub fn log(&self, part: Part) -> String {
        let bytes = fs::read(self.dir.path().join(format!("{}.log", part.program())));
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    /// Returns a folder for files of a test; it goes with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a kubeconfig for who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// Makes the service account when there is none, and returns a kubeconfig with a token of it.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.token_of(namespace, account)?;
        self.kubeconfig_with(&format!("{namespace}-{account}.kubeconfig"), &token)
    }

    fn kubeconfig_with(&self, name: &str, token: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        let text = files::kubeconfig(&self.url(), &self.ca_file(), token);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn running(&mut self, part: Part) -> Result<&mut ProcessGuard> {
        self.guard(part).as_mut().with_context(|| format!("{} does not run", part.program()))
    }

    fn guard(&mut self, part: Part) -> &mut Option<ProcessGuard> {
        match part {
            Part::Etcd => &mut self.etcd,
            Part::ApiServer => &mut self.server,
            Part::ControllerManager => &mut self.manager,
        }
    }
}

impl Deref for RealCluster {
    type Target = ClusterClient;

    fn deref(&self) -> &ClusterClient {
        &self.client
    }
}

/// Finds the programs: where `KUBEBUILDER_ASSETS` says, or where `cargo xtask kubernetes` builds them.
fn find_assets() -> Result<PathBuf> {
    static ASSETS: OnceLock<PathBuf> = OnceLock::new();
    if let Some(folder) = ASSETS.get() {
        return Ok(folder.clone());
    }
    let folder = match std::env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => {
            let args = ["run", "--quiet", "--package", "xtask", "--", "kubernetes"];
            let mut cargo = Command::new(env!("CARGO"));
            let built = cargo.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
            let errors = String::from_utf8_lossy(&built.stderr);
            ensure!(built.status.success(), "a Kubernetes API server cannot be built: {errors}");
            String::from_utf8(built.stdout)?.trim().into()
        }
    };
    for part in Part::ALL {
        let program = folder.join(part.program());
        ensure!(program.is_file(), "there is no {}", program.display());
    }
    Ok(ASSETS.get_or_init(|| folder).clone())
}

/// Releases differ in the flags for ports that nobody shall open.
fn manager_flags(assets: &Path) -> Result<Vec<String>> {
    let program = assets.join(Part::ControllerManager.program());
    let out = Command::new(&program).arg("--version").output();
    let out = out.with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let minor = text.trim().strip_prefix("Kubernetes v1.").and_then(|rest| rest.split('.').next());
    let Some(minor) = minor.and_then(|minor| minor.parse::<u32>().ok()) else {
        bail!("{} --version printed {text:?}", program.display());
    };
    let mut flags = vec!["--secure-port=0".to_owned()];
    if minor < 24 {
        flags.push("--port=0".to_owned());
    }
    Ok(flags)
}

/// Finds an address of loopback on which nobody listens. With an address of its own, a port cannot be taken while a
/// part is down, as one of the usual address could by any outgoing connection.
fn own_address() -> Result<IpAddr> {
    for attempt in 0..100_u32 {
        let number =
            std::process::id().wrapping_mul(4).wrapping_add(crate::names::next()).wrapping_add(attempt << 16);
        let [_, a, b, c] = number.to_be_bytes();
        // 127.0.0.0/16 is what others use, and 127.255.255.255 is for everybody.
        let address = Ipv4Addr::new(127, a.clamp(1, 254), b, c);
        let free = |port: u16| TcpListener::bind((address, port)).is_ok();
        if [PORT, ETCD.0, ETCD.1].into_iter().all(free) {
            return Ok(address.into());
        }
    }
    bail!("all addresses of loopback that were tried are taken")
}

fn host(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

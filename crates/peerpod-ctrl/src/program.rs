//! The controller as a program runs it: everything over Kubernetes, until a signal comes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use cloud_providers::{EnvSource, Scope};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::ClusterError,
    controller,
    election::{self, ElectionSettings},
    hooks::Hooks,
    http::{self, Health},
    kubernetes::{Connection, KubeCluster, KubeConfig, KubeLease},
    metrics::Metrics,
    options::Options,
    profiles::Profiles,
    sweeper,
    work::Parts,
};

/// Pause between two questions for the cluster's id while the API server does not answer.
const PAUSE: Duration = Duration::from_secs(2);
/// How long everything may take to end after a signal; Kubernetes kills after 10 s where nothing else is said.
const END_LIMIT: Duration = Duration::from_secs(8);

/// Everything that a controller, or a drain, works with.
pub(crate) struct Setting {
    pub(crate) connection: Connection,
    pub(crate) cluster: Arc<KubeCluster>,
    pub(crate) profiles: Arc<Profiles>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Setting {
    pub(crate) async fn new(options: &Options, env: &dyn EnvSource) -> Result<Self> {
        let connection = Connection::find(options.kubeconfig.clone(), env).await?;
        let (metrics, cluster) = (Metrics::new(), Arc::new(KubeCluster::new(&connection)));
        let source = Arc::new(KubeConfig::new(&connection, &options.profiles));
        let profiles = Arc::new(Profiles::new(
            source,
            options.profiles.clone(),
            options.layers.clone(),
            metrics.clone(),
        ));
        Ok(Self { connection, cluster, profiles, metrics })
    }

    pub(crate) fn parts(&self) -> Parts {
        Parts {
            cluster: self.cluster.clone(),
            providers: self.profiles.clone(),
            metrics: self.metrics.clone(),
            hooks: Hooks::default(),
        }
    }
}

/// Runs the controller until `stop` fires.
///
/// # Errors
///
/// When it cannot begin: no API server is named, or an address is taken. One that does not answer is waited for.
pub async fn run(options: Options, env: &dyn EnvSource, stop: CancellationToken) -> Result<()> {
    let setting = Setting::new(&options, env).await?;
    let health = Health::new(setting.metrics.clone());
    let (reports, report) = watch::channel(None);
    let side = CancellationToken::new();
    let mut servers = JoinSet::new();
    if let Some(address) = options.health_address {
        let listener = http::bind("health-probe-bind-address", address).await?;
        servers.spawn(http::serve_health(listener, health.clone(), side.clone()));
    }
    if let Some(address) = options.metrics_address {
        let listener = http::bind("metrics-bind-address", address).await?;
        servers.spawn(http::serve_metrics(listener, setting.metrics.clone(), report, side.clone()));
    }
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespace = setting.connection.namespace,
        providers = cloud_providers_bundle::COMPILED_IN.join(", "),
        "the controller of peer pods begins"
    );
    let result = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(None),
        uid = cluster_uid(&setting.cluster, &health) => uid.map(Some),
    };
    let result = match result {
        Ok(Some(uid)) => work(options, &setting, uid, health, reports, stop).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    side.cancel();
    let ended = async { while servers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
    result
}

async fn work(
    options: Options,
    setting: &Setting,
    uid: String,
    health: Arc<Health>,
    reports: watch::Sender<Option<Arc<crate::sweep::Report>>>,
    stop: CancellationToken,
) -> Result<()> {
    let scope = Scope::Cluster(options.cluster_id.clone().unwrap_or_else(|| uid.clone()));
    tracing::info!(%scope, "deleting for this cluster");
    let settings = options.settings(scope);
    let mut sweep = options.sweep.clone();
    // Also where the id is somebody's choice: the view must be of the cluster that this program began with.
    sweep.cluster_uid = Some(uid);
    let following = CancellationToken::new();
    let mut followers = JoinSet::new();
    setting.profiles.reload().await;
    followers.spawn({
        let (profiles, following) = (setting.profiles.clone(), following.clone());
        async move { profiles.follow(following).await }
    });
    health.set_ready(Ok(()));
    let lead = |end: CancellationToken| {
        let (parts, settings, sweep, reports) =
            (setting.parts(), settings.clone(), sweep.clone(), reports.clone());
        async move {
            tokio::join!(
                controller::run(parts.clone(), settings.clone(), end.clone()),
                sweeper::run(parts, settings, sweep, reports, end),
            );
        }
    };
    if options.leader_elect {
        let leases = Arc::new(KubeLease::new(&setting.connection));
        let identity = ElectionSettings::new(identity());
        election::take_part(leases, identity, setting.metrics.clone(), Hooks::default(), stop, lead).await;
    } else {
        setting.metrics.leader.set(1);
        let work = lead(stop.clone());
        tokio::pin!(work);
        tokio::select! {
            biased;
            () = &mut work => {}
            () = async { stop.cancelled().await; tokio::time::sleep(END_LIMIT).await } => {
                tracing::warn!("the work did not end in time and is dropped");
            }
        }
        setting.metrics.leader.set(0);
    }
    following.cancel();
    let ended = async { while followers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(3), ended).await;
    tracing::info!("the controller ends");
    Ok(())
}

/// Names this process in the election; no other has this name.
fn identity() -> String {
    use std::{
        collections::hash_map::RandomState,
        hash::{BuildHasher as _, Hasher as _},
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // Two processes of one host, also in namespaces where both have the same number, differ by this.
    let random = RandomState::new().build_hasher().finish();
    format!("{}_{}_{random:016x}", host.trim(), std::process::id())
}

/// Asks for the cluster's id until there is an answer.
async fn cluster_uid(cluster: &KubeCluster, health: &Health) -> Result<String> {
    loop {
        match cluster.cluster_uid().await {
            Ok(uid) => return Ok(uid),
            Err(error @ ClusterError::Forbidden(_)) => {
                return Err(error).context(
                    "read the namespace kube-system, whose UID is the cluster's id: the role needs `get` for it",
                );
            }
            Err(error) => {
                tracing::warn!(%error, "waiting for the API server");
                health.set_ready(Err(format!("waiting for the API server: {error}")));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

//! Puts the parts together, serves until a signal, and takes everything down in order.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use cloud_providers::{Capabilities, Provider, Scope, layers};
use peerpod_gateway::{AgentProxies, Gateway, RemoteGateway};
use peerpod_net::InspectOptions;
use peerpod_proto::Server;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{ClusterRecord, NoCluster},
    config::{DEFAULT_STATE_DIR, DaemonConfig},
    handover::{self, Offer, Taken, Terms},
    hooks::Hooks,
    http,
    journal::Journal,
    kubernetes,
    metrics::Metrics,
    network::KernelNetwork,
    orphans::{self, OrphanSettings},
    sandbox::{Parts, Sandboxes},
    service::NodeService,
    socket::BoundSocket,
};

/// Where the state is kept in a container that has no folder of the node for it.
pub(crate) const STATE_IN_RUN: &str = "/run/peerpod/state";

/// Where this daemon takes calls, beside the control socket of a gateway that serves the shims.
pub(crate) const OWN_SOCKET: &str = "daemon.sock";
/// The pause before a gateway that was restarted is told again.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);

/// File in the folder of the state that keeps the cluster id.
const CLUSTER_ID: &str = "cluster-id";

/// How long calls under way may take when the daemon ends.
const DRAIN: Duration = Duration::from_secs(5);
/// How long clients of the probe and the metrics may take to finish when the daemon ends.
const HTTP_DRAIN: Duration = Duration::from_secs(1);
/// How long starts and deletions under way may take when the daemon ends; the next daemon finishes the others.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How long the same may take when another daemon waits for the journal.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(5);
/// How long the provider may take to free what it holds.
const TEARDOWN_LIMIT: Duration = Duration::from_secs(15);
/// How long the provider may take to verify its configuration.
pub(crate) const VERIFY_LIMIT: Duration = Duration::from_secs(60);

/// Serves until `stop` fires. `provider_name` labels logs and metrics.
///
/// # Errors
///
/// What kept the daemon from serving, or what is left after it served.
pub async fn run(
    config: DaemonConfig,
    provider: Arc<dyn Provider>,
    provider_name: &str,
    stop: CancellationToken,
) -> Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let metrics = Metrics::with_spans(provider_name, &config.spans);
    let provider = layers::standard(provider_name, provider, &config.layers, metrics.clone());
    check_provider(&config, &*provider, provider_name)?;
    let config = Arc::new(config);
    let remote = config
        .gateway_socket
        .as_ref()
        .map(|path| Arc::new(RemoteGateway::new(path).with_name("cloud-api-adaptor")));
    let gateway: Arc<dyn AgentProxies> = match &remote {
        Some(remote) => remote.clone(),
        None => Arc::new(Gateway::new()),
    };
    // A gateway that is not there is found now and not by the first pod.
    let known = gateway.list().await.context("reach the gateway (-gateway-socket)")?;
    if !known.is_empty() {
        tracing::warn!(proxies = known.len(), "the gateway holds proxies of an earlier daemon");
    }
    fs::create_dir_all(&config.pods_dir)
        .with_context(|| format!("make the folder {} (-pods-dir)", config.pods_dir.display()))?;
    let mut inspect = InspectOptions::default();
    inspect.host_interface.clone_from(&config.host_interface);
    inspect.pod_subnet_cidrs.clone_from(&config.pod_subnets);
    inspect.vxlan_port = config.vxlan_port;
    inspect.external_net_via_pod_vm = config.external_network;
    // With a gateway of its own process, that one serves the shims and carries their calls here.
    let own_socket = match &config.gateway_socket {
        Some(control) => control.with_file_name(OWN_SOCKET),
        None => config.socket.clone(),
    };
    let state_dir = state_dir(&config);
    if state_dir != config.state_dir {
        tracing::warn!(
            path = %state_dir.display(),
            "{DEFAULT_STATE_DIR} is part of the container and goes with it: the journal is kept in /run, which a reboot \
             empties; mount a folder of the node there, or set -state-dir"
        );
    }
    let kubernetes = kubernetes::Side::connect(&config, provider_name).await.context("find the cluster")?;
    let cluster_uid = match &kubernetes {
        Some(side) if config.cluster_id.is_none() => {
            side.cluster_id(state_dir.join(CLUSTER_ID).exists()).await.context("find the cluster")?
        }
        _ => None,
    };
    // Everything that can be wrong with this daemon was looked at: from here on the other one may end for it.
    let predecessor = handover::ask(&state_dir).await.context("follow the daemon that runs on this node")?;
    let follows = predecessor.is_some();
    let (journal, own_bound, listener) = match predecessor {
        // Before anything else in the folder: whoever holds the journal is the daemon of this node.
        None => {
            let journal = Journal::open(&state_dir).await?;
            let (bound, listener) = BoundSocket::bind(&own_socket, config.in_cluster).await?;
            (journal, bound, listener)
        }
        // Who connects from now on waits in the queue of a socket that is there all the while.
        Some(predecessor) => {
            let take_over = config.in_cluster || predecessor.serves(&own_socket);
            let (bound, listener) = BoundSocket::bind(&own_socket, take_over).await?;
            predecessor.end().await?;
            (Journal::open(&state_dir).await?, bound, listener)
        }
    };
    let own_bound = Arc::new(own_bound);
    let scope = Scope::Cluster(cluster_id(&config, &state_dir, cluster_uid)?);
    let sandboxes = Sandboxes::new(Parts {
        scope: scope.clone(),
        provider: provider.clone(),
        gateway,
        store: Arc::new(journal),
        cluster: kubernetes
            .as_ref()
            .map_or_else(|| Arc::new(NoCluster) as Arc<dyn ClusterRecord>, |side| side.record()),
        network: Arc::new(KernelNetwork(inspect)),
        metrics: metrics.clone(),
        direct_volumes: config.direct_volumes_dir.clone(),
        hooks: Hooks::default(),
        config: config.clone(),
    });
    let restored = sandboxes.restore().await.context("read the journal")?;
    tracing::info!(
        ready = restored.ready,
        planned = restored.planned,
        leaving = restored.leaving,
        "sandboxes of an earlier daemon are taken on"
    );
    let side = CancellationToken::new();
    let signs = tokio::spawn(sandboxes.clone().watch_signs(config.pod_loss_grace, side.clone()));
    tokio::spawn(sandboxes.clone().follow_certificates(side.clone()));
    let watching = tokio::spawn(orphans::watch(
        provider.clone(),
        sandboxes.clone(),
        OrphanSettings {
            scope,
            node: config.node_name.clone(),
            policy: config.orphan_policy,
            grace: config.orphan_grace,
        },
        metrics.clone(),
        side.clone(),
    ));

    let mut http = JoinSet::new();
    let mut addresses: Vec<(SocketAddr, &str)> = Vec::new();
    addresses.extend(config.metrics_address.map(|address| (address, "-metrics-address")));
    if config.in_cluster {
        addresses.push((([127, 0, 0, 1], config.probe_port).into(), "PROBE_PORT"));
    }
    for (address, key) in addresses {
        let listener = http::bind(address).with_context(|| format!("serve HTTP (set {key})"))?;
        http.spawn(http::serve(listener, own_socket.clone(), metrics.clone(), side.clone()));
    }
    let calls = CancellationToken::new();
    let uids = [0, nix::unistd::getuid().as_raw()];
    let server =
        Server::new(Arc::new(NodeService::new(sandboxes.clone()))).with_grace(DRAIN).with_allowed_uids(uids);
    let serving = tokio::spawn({
        let (server, calls) = (server.clone(), calls.clone());
        async move { server.serve_unix(listener, calls).await }
    });
    // After the server is there, since kept StopVMs come at once.
    let mut sockets = vec![(own_socket.clone(), own_bound)];
    let following = match &remote {
        None => None,
        Some(remote) => {
            let connection = remote.connection().await.context("reach the gateway (-gateway-socket)")?;
            if !serve_shims(remote, &config.socket, &own_socket).await? {
                tracing::warn!(
                    "the gateway is of an earlier version and cannot serve shims: this daemon does, and its end breaks their connections"
                );
                let (socket, listener) =
                    BoundSocket::bind(&config.socket, config.in_cluster || follows).await?;
                sockets.push((config.socket.clone(), Arc::new(socket)));
                let (server, calls) = (server.clone(), calls.clone());
                tokio::spawn(async move { server.serve_unix(listener, calls).await });
            }
            let follow = follow_gateway(
                remote.clone(),
                connection,
                config.clone(),
                own_socket.clone(),
                sandboxes.clone(),
            );
            let side = side.clone();
            Some(tokio::spawn(async move { side.run_until_cancelled_owned(follow).await }))
        }
    };
    let terms = Terms {
        state_dir: state_dir.clone(),
        sockets: sockets.clone(),
        kept_until: follows.then(|| Instant::now() + config.handover_rest),
    };
    // A daemon that cannot offer its journal serves its node all the same; the next one says what to do.
    let offer = Offer::make(terms).await;
    let offer = offer
        .inspect_err(|error| {
            let error = format!("{error:#}");
            tracing::error!(
                error,
                "the journal cannot be offered: end this daemon before the next one starts"
            );
        })
        .ok();
    let lease = kubernetes.as_ref().map(|kubernetes| kubernetes.keep_lease(side.clone()));
    let offered = kubernetes.as_ref().and_then(|kubernetes| kubernetes.offer(config.limit));
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %config.socket.display(), provider = provider_name, node = %config.node_name, "serving Kata shims");

    let given = async {
        match &offer {
            Some(offer) => offer.taken().await,
            None => std::future::pending().await,
        }
    };
    let taken = tokio::select! {
        () = stop.cancelled() => None,
        taken = given => Some(taken),
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    let mut problems = Vec::new();
    if let Some(offered) = offered {
        // Before calls are refused, so that no pod is sent here any more. What another daemon takes over stays.
        let withdraw = !matches!(taken, Some(Taken::By(_)));
        if let Err(error) = offered.end(withdraw).await {
            tracing::warn!(error = %format!("{error:#}"), "the cluster goes on sending pods to this node");
        }
    }
    let mut limit = STOP_LIMIT;
    match taken {
        None => {}
        Some(Taken::By(successor)) => {
            tracing::info!(
                successor,
                "the journal is handed to another daemon, which serves this node from now on: this one ends"
            );
            limit = HAND_OVER_LIMIT;
            // Shims that are connected here are answered until nothing is under way any more.
            sandboxes.settle(limit).await;
        }
        Some(Taken::Lost(successor)) => problems.push(format!(
            "{successor} took the sockets of this daemon, and went away before it had the journal"
        )),
    }
    // Each step is taken whatever became of the one before; the first thing is that nobody starts anything new.
    calls.cancel();
    let leaving = sandboxes.suspend(limit).await;
    // One that was leaving may have gone since.
    let kept = sandboxes.list().iter().filter(|s| !leaving.contains(&s.id)).count();
    tracing::info!(kept, leaving = leaving.len(), "the journal keeps the sandboxes for the next daemon");
    if let Err(error) = serving.await {
        problems.push(format!("the server of {} ended: {error}", config.socket.display()));
    }
    side.cancel();
    // A client that sends half a request and stays would be waited for without end.
    if tokio::time::timeout(HTTP_DRAIN, async { while http.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!("clients of the probe and the metrics are cut off");
        http.shutdown().await;
    }
    if let Some(Err(error)) = match following {
        Some(following) => Some(following.await),
        None => None,
    } {
        problems.push(format!("the task that follows the gateway ended: {error}"));
    }
    if let Some(Err(error)) = match lease {
        Some(lease) => Some(lease.await),
        None => None,
    } {
        problems.push(format!("the task that renews the Lease ended: {error}"));
    }
    if let Err(error) = signs.await {
        problems.push(format!("the look-out for lost pods ended: {error}"));
    }
    match tokio::time::timeout(TEARDOWN_LIMIT, watching).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => problems.push(format!("the look-out for orphans ended: {error}")),
        Err(_) => tracing::warn!("the provider ignores that the look-out for orphans is over: it is dropped"),
    }
    match tokio::time::timeout(TEARDOWN_LIMIT, provider.teardown()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => problems.push(format!("provider {provider_name}: {}", error.report())),
        Err(_) => {
            problems.push(format!("provider {provider_name} holds on to something after {TEARDOWN_LIMIT:?}"))
        }
    }
    if let Some(offer) = offer {
        offer.end().await;
    }
    drop(sockets);
    if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("; ")) }
}

/// Has the gateway serve the shims. Returns `false` when it is of a version that cannot.
async fn serve_shims(remote: &RemoteGateway, socket: &Path, own: &Path) -> Result<bool> {
    // A shim takes the folder for granted, as with a daemon that serves it itself.
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("make the folder of the socket {}", socket.display()))?;
    }
    remote
        .serve_shims(socket, own)
        .await
        .with_context(|| format!("have the gateway serve shims at {} (-socket)", socket.display()))
}

/// Tells a gateway that was restarted what it has forgotten: the socket of the shims, and every running sandbox.
async fn follow_gateway(
    remote: Arc<RemoteGateway>,
    mut connection: CancellationToken,
    config: Arc<DaemonConfig>,
    own: PathBuf,
    sandboxes: Sandboxes,
) {
    loop {
        connection.cancelled().await;
        tracing::warn!("the connection to the gateway broke: it is told again what it serves");
        connection = loop {
            let told = async {
                // Before it is told: one that restarts once more right afterwards is told once more.
                let connection = remote.connection().await?;
                serve_shims(&remote, &config.socket, &own).await.map(|_| connection)
            };
            match told.await {
                Ok(connection) => break connection,
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "the gateway cannot be told what it serves, trying again")
                }
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
        };
        sandboxes.reattach().await;
    }
}

/// Says that calls of confidential VMs would travel in clear, where they would.
pub(crate) fn clear_calls(config: &DaemonConfig, can: &Capabilities, name: &str) -> Option<String> {
    let refused = config.disable_tls && !can.confidential.is_empty();
    refused.then(|| {
        format!(
            "-disable-tls is refused: provider {name} is configured for confidential VMs, whose calls would travel in clear"
        )
    })
}

/// Refuses what must not start and says what the provider lacks.
fn check_provider(config: &DaemonConfig, provider: &dyn Provider, name: &str) -> Result<()> {
    let can = provider.capabilities();
    if let Some(problem) = clear_calls(config, &can, name) {
        bail!("{problem}");
    }
    if !can.list_owned || !can.release {
        tracing::warn!(
            provider = name,
            list_owned = can.list_owned,
            release = can.release,
            "the provider cannot find what it made: no sweep and no adoption"
        );
    }
    Ok(())
}

/// Returns the folder of the state: in a container whose image holds the default folder, one that outlives the container.
pub(crate) fn state_dir(config: &DaemonConfig) -> PathBuf {
    let wanted = &config.state_dir;
    if !config.in_cluster || wanted != Path::new(DEFAULT_STATE_DIR) || outlives_container(wanted) {
        return wanted.clone();
    }
    STATE_IN_RUN.into()
}

/// Whether a folder, or what there is of its path, lies on another file system than the container's root.
fn outlives_container(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    path.ancestors().find_map(device) != device(Path::new("/"))
}

/// Returns the cluster id that is given; otherwise the one that the cluster `told`, or one that is made once. Both are kept
/// in the state directory.
fn cluster_id(config: &DaemonConfig, state_dir: &Path, told: Option<String>) -> Result<String> {
    if let Some(id) = &config.cluster_id {
        return Ok(id.clone());
    }
    let path = state_dir.join(CLUSTER_ID);
    stored_id(&path, told)
        .with_context(|| format!("keep the cluster id in {} (set -cluster-id)", path.display()))
}

fn stored_id(path: &Path, told: Option<String>) -> Result<String> {
    match fs::read_to_string(path).map(|text| text.trim().to_owned()) {
        Ok(id) if !id.is_empty() && told.as_ref().is_none_or(|told| *told == id) => return Ok(id),
        Ok(id) if !id.is_empty() => {
            tracing::warn!(
                before = id,
                now = told,
                "the cluster has another id than an earlier daemon kept; sandboxes keep theirs"
            );
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("read it"),
        _ => {}
    }
    let id = told.unwrap_or_else(fresh_id);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context("make its folder")?;
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, format!("{id}\n")).context("write it")?;
    fs::rename(&fresh, path).context("place it")?;
    Ok(id)
}

fn fresh_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told (NOTIFY_SOCKET)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cluster_tells_is_kept_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join(CLUSTER_ID);
        let made = stored_id(&path, None).unwrap();
        assert_eq!(stored_id(&path, None).unwrap(), made);
        assert_eq!(stored_id(&path, Some("uid-1".into())).unwrap(), "uid-1");
        assert_eq!(stored_id(&path, None).unwrap(), "uid-1", "also while the cluster is away");
    }

    #[test]
    fn what_is_on_another_file_system_than_the_root_outlives_a_container() {
        assert!(!outlives_container(Path::new("/")));
        assert!(!outlives_container(Path::new("/not/there")));
        assert!(outlives_container(Path::new("/proc/sys/not/there")));
    }
}

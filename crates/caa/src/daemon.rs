//! Puts the parts together, serves until a signal, and takes everything down in order.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use cloud_providers::{OpContext, Provider, Scope};
use peerpod_gateway::{AgentProxies, Gateway, RemoteGateway};
use peerpod_net::InspectOptions;
use peerpod_proto::Server;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::NoCluster,
    config::DaemonConfig,
    http,
    metrics::Metrics,
    network::KernelNetwork,
    sandbox::{Parts, Sandboxes},
    service::NodeService,
    socket::BoundSocket,
    store::MemoryStore,
};

/// How long calls under way may take when the daemon ends.
const DRAIN: Duration = Duration::from_secs(5);
/// How long clients of the probe and the metrics may take to finish when the daemon ends.
const HTTP_DRAIN: Duration = Duration::from_secs(1);
/// How long the instances may take to go when the daemon ends.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long the provider may take to list what it owns.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// How long the provider may take to verify its configuration.
const VERIFY_LIMIT: Duration = Duration::from_secs(60);

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
    check_provider(&config, &*provider, provider_name).await?;
    let config = Arc::new(config);
    let metrics = Metrics::new(provider_name);
    let gateway: Arc<dyn AgentProxies> = match &config.gateway_socket {
        Some(path) => Arc::new(RemoteGateway::new(path).with_name("cloud-api-adaptor")),
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
    let scope = Scope::Cluster(cluster_id(&config));
    report_strays(&*provider, &scope, &config.node_name).await;
    let sandboxes = Sandboxes::new(Parts {
        scope,
        provider: provider.clone(),
        gateway,
        store: Arc::new(MemoryStore::default()),
        cluster: Arc::new(NoCluster),
        network: Arc::new(KernelNetwork(inspect)),
        metrics: metrics.clone(),
        direct_volumes: config.direct_volumes_dir.clone(),
        config: config.clone(),
    });

    let (bound, listener) = BoundSocket::bind(&config.socket, config.in_cluster).await?;
    let side = CancellationToken::new();
    let mut http = JoinSet::new();
    let mut addresses: Vec<(SocketAddr, &str)> = Vec::new();
    addresses.extend(config.metrics_address.map(|address| (address, "-metrics-address")));
    if config.in_cluster {
        addresses.push((([127, 0, 0, 1], config.probe_port).into(), "PROBE_PORT"));
    }
    for (address, key) in addresses {
        let listener = http::bind(address).with_context(|| format!("serve HTTP (set {key})"))?;
        http.spawn(http::serve(listener, config.socket.clone(), metrics.clone(), side.clone()));
    }
    let calls = CancellationToken::new();
    let uids = [0, nix::unistd::getuid().as_raw()];
    let server =
        Server::new(Arc::new(NodeService::new(sandboxes.clone()))).with_grace(DRAIN).with_allowed_uids(uids);
    let serving = tokio::spawn({
        let calls = calls.clone();
        async move { server.serve_unix(listener, calls).await }
    });
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %config.socket.display(), provider = provider_name, node = %config.node_name, "serving Kata shims");

    stop.cancelled().await;
    notify(&[sd_notify::NotifyState::Stopping]);
    // Each step is taken whatever became of the one before; the first thing is that nobody starts anything new.
    calls.cancel();
    let ids = sandboxes.list().len();
    if ids > 0 {
        tracing::warn!(
            sandboxes = ids,
            "shutting down: the pod VMs of this node are removed, since nobody would find them afterwards"
        );
    }
    let left = sandboxes.shutdown(STOP_LIMIT).await;
    let mut problems = Vec::new();
    if !left.is_empty() {
        problems.push(format!("sandboxes whose deletion is not confirmed: {}", left.join(", ")));
    }
    if let Err(error) = serving.await {
        problems.push(format!("the server of {} ended: {error}", config.socket.display()));
    }
    side.cancel();
    // A client that sends half a request and stays would be waited for without end.
    if tokio::time::timeout(HTTP_DRAIN, async { while http.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!("clients of the probe and the metrics are cut off");
        http.shutdown().await;
    }
    if let Err(error) = provider.teardown().await {
        problems.push(format!("provider {provider_name}: {}", error.report()));
    }
    drop(bound);
    if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("; ")) }
}

/// Refuses what must not start and says what the provider lacks.
async fn check_provider(config: &DaemonConfig, provider: &dyn Provider, name: &str) -> Result<()> {
    let can = provider.capabilities();
    if config.disable_tls && !can.confidential.is_empty() {
        bail!(
            "-disable-tls is refused: provider {name} is configured for confidential VMs, whose calls would travel in clear"
        );
    }
    if !can.list_owned || !can.release {
        tracing::warn!(
            provider = name,
            list_owned = can.list_owned,
            release = can.release,
            "the provider cannot find what it made: no sweep and no adoption"
        );
    }
    if config.verify {
        let ctx = OpContext::new().with_timeout(VERIFY_LIMIT);
        let verified = provider.verify_config(&ctx).await;
        verified.map_err(|e| anyhow::anyhow!("-cloud-config-verify: provider {name}: {}", e.report()))?;
    }
    Ok(())
}

/// Says which instances an earlier daemon of this node left behind. They are not touched: only a record that survived it
/// could tell which of them serve a pod.
async fn report_strays(provider: &dyn Provider, scope: &Scope, node: &str) {
    if !provider.capabilities().list_owned {
        return;
    }
    let ctx = OpContext::new().with_timeout(LIST_LIMIT);
    let list = match provider.list_owned(&ctx, scope).await {
        Ok(list) => list,
        Err(error) => {
            tracing::warn!(error = %error.report(), "what an earlier daemon left could not be listed");
            return;
        }
    };
    // A holder may be stored encoded.
    let ours = [node.to_owned(), cloud_providers::tags::encode_value(node)];
    for entry in list.entries.iter().filter(|e| e.holder.as_ref().is_none_or(|h| ours.contains(h))) {
        let resources = entry.resources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let instance_id = entry.instance.as_ref().map_or_else(|| "none".to_owned(), |i| i.id.to_string());
        tracing::warn!(
            instance_id,
            resources,
            token = entry.token.as_ref().map_or_else(|| entry.token_tag.clone(), ToString::to_string),
            "an earlier daemon of this node left this behind: no StopVM will remove it"
        );
    }
    if !list.complete {
        tracing::warn!("the list of what an earlier daemon left is not complete");
    }
}

/// Returns the given cluster id, or one that is made once and kept in the state directory.
fn cluster_id(config: &DaemonConfig) -> String {
    if let Some(id) = &config.cluster_id {
        return id.clone();
    }
    let path = config.state_dir.join("cluster-id");
    match stored_id(&path) {
        Ok(id) => id,
        Err(error) => {
            let id = fresh_id();
            tracing::warn!(path = %path.display(), error = %format!("{error:#}"), id, "the cluster id could not be kept: it changes with the next start; set -cluster-id or -state-dir");
            id
        }
    }
}

fn stored_id(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("read it"),
        _ => {}
    }
    let id = fresh_id();
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

//! `caactl diagnose`: what daemon, journal, gateway and node know of sandboxes, in one file and without secrets.
//!
//! Everything is tried and nothing is needed: with a daemon that is dead, what is on the disk and in the kernel is
//! collected, and the file says what is missing and why.

mod bundle;
mod daemon;
mod node;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use cloud_providers::ConsoleTail;
use peerpod_gateway::{AgentProxies as _, RemoteGateway};
use peerpod_proto::Client;
use serde_json::Value;

use crate::{
    journal::Journal,
    service::{NODE_DIAGNOSE, NODE_SERVICE},
    store::SandboxRecord,
};

use bundle::Bundle;
pub use daemon::{Diagnosis, Known};

/// How long the daemon may take to answer.
const DAEMON_LIMIT: Duration = Duration::from_secs(20);

/// What is to be collected, and from where.
#[derive(Clone, Debug)]
pub struct Request {
    /// Id of a sandbox, or its beginning; all sandboxes without.
    pub sandbox: Option<String>,
    /// Socket of the daemon.
    pub socket: PathBuf,
    /// Control socket of a gateway of its own process.
    pub gateway: PathBuf,
    /// Folders in which the journal may be.
    pub state_dirs: Vec<PathBuf>,
    /// The file that is written; one is named after the time without.
    pub output: Option<PathBuf>,
}

/// Collects everything and writes the file. Returns its path and a list of what is in it.
///
/// # Errors
///
/// When nobody knows the sandbox that was asked for, or the file cannot be written.
pub async fn run(request: Request) -> Result<(PathBuf, String)> {
    let bundle = collect(&request).await?;
    let path = request.output.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("{}-{now}.tar.gz", bundle::FOLDER).into()
    });
    let summary = bundle.write(&path)?;
    Ok((path, summary))
}

async fn collect(request: &Request) -> Result<Bundle> {
    let mut bundle = Bundle::default();
    let wanted = request.sandbox.as_deref().unwrap_or_default();
    bundle.add("versions.txt", format!("caactl {}\n", env!("CARGO_PKG_VERSION")));
    let mut sandboxes = match ask(&request.socket, wanted).await {
        Ok(diagnosis) => of_daemon(&mut bundle, diagnosis),
        Err(error) => {
            bundle.lacks(format!(
                "what the daemon knows (options, metrics, recent log, consoles): {error:#}; its log may be with the \
                 service manager (journalctl -u cloud-api-adaptor) or in its pod (kubectl logs --previous)"
            ));
            on_disk(&mut bundle, request, wanted).await
        }
    };
    if sandboxes.values().all(|known| known.gateway.is_none()) {
        of_gateway(&mut bundle, request, wanted, &mut sandboxes).await;
    }
    if let Some(wanted) = &request.sandbox
        && sandboxes.is_empty()
    {
        bail!(
            "nobody knows a sandbox whose id begins with {wanted:?}: see `caactl list`\n{}",
            bundle.summary().trim_end()
        );
    }
    for (id, known) in &sandboxes {
        of_sandbox(&mut bundle, id, known).await;
    }
    for (name, (text, missing)) in
        [("node/network.txt", node::network(None).await), ("node/machine.txt", node::machine())]
    {
        bundle.add(name, text);
        missing.into_iter().for_each(|what| bundle.lacks(format!("{name}: {what}")));
    }
    Ok(bundle)
}

/// Asks the daemon.
async fn ask(socket: &Path, wanted: &str) -> Result<Diagnosis> {
    let client = Client::connect_unix(socket).await;
    let client = client.with_context(|| format!("no daemon answers at {} (--socket)", socket.display()))?;
    let payload = Bytes::copy_from_slice(wanted.as_bytes());
    let answer = client.request(NODE_SERVICE, NODE_DIAGNOSE, payload, Some(DAEMON_LIMIT), Vec::new());
    let answer =
        answer.await.map_err(|status| anyhow::anyhow!("{} ({:?})", status.message, status.code()))?;
    serde_json::from_slice(&answer).context("the daemon's answer cannot be read")
}

fn of_daemon(bundle: &mut Bundle, mut diagnosis: Diagnosis) -> BTreeMap<String, Known> {
    let sandboxes = std::mem::take(&mut diagnosis.sandboxes);
    bundle.add("metrics.txt", std::mem::take(&mut diagnosis.metrics));
    for what in std::mem::take(&mut diagnosis.missing) {
        bundle.lacks(what);
    }
    bundle.json("daemon.json", &diagnosis);
    sandboxes
}

/// Reads the journal of a daemon that does not answer.
async fn on_disk(bundle: &mut Bundle, request: &Request, wanted: &str) -> BTreeMap<String, Known> {
    let mut sandboxes = BTreeMap::new();
    for dir in &request.state_dirs {
        match Journal::peek(dir).await {
            Ok(records) => {
                let records = records.iter().filter(|record| record.id.starts_with(wanted));
                for record in records {
                    let known = Known { record: Some(SandboxRecord::view(record)), ..Known::default() };
                    sandboxes.insert(record.id.clone(), known);
                }
                bundle.add("journal.txt", format!("read from {}, without its daemon\n", dir.display()));
                return sandboxes;
            }
            Err(error) => bundle.lacks(format!("the journal in {} (--state-dir): {error:#}", dir.display())),
        }
    }
    sandboxes
}

/// Asks a gateway of its own process, which goes on without a daemon.
async fn of_gateway(
    bundle: &mut Bundle,
    request: &Request,
    wanted: &str,
    sandboxes: &mut BTreeMap<String, Known>,
) {
    if !request.gateway.exists() {
        // Most nodes have none.
        return;
    }
    let gateway =
        RemoteGateway::new(&request.gateway).with_name("caactl").with_reconnect_time(Duration::ZERO);
    match tokio::time::timeout(DAEMON_LIMIT, gateway.list()).await {
        Ok(Ok(list)) => {
            for status in list.into_iter().filter(|status| status.sandbox_id.starts_with(wanted)) {
                let known = sandboxes.entry(status.sandbox_id.clone()).or_default();
                known.gateway = Some(status);
            }
        }
        Ok(Err(error)) => bundle.lacks(format!("the gateway's view (--gateway-socket): {error}")),
        Err(_) => bundle.lacks("the gateway's view (--gateway-socket): it does not answer"),
    }
}

async fn of_sandbox(bundle: &mut Bundle, id: &str, known: &Known) {
    let folder = format!("sandboxes/{}", file_name(id));
    let mut lacks = BTreeSet::new();
    match &known.record {
        Some(record) => {
            bundle.json(format!("{folder}/record.json"), record);
            match record.get("netns").and_then(Value::as_str).filter(|netns| !netns.is_empty()) {
                Some(netns) => {
                    let (text, missing) = node::network(Some(Path::new(netns))).await;
                    bundle.add(format!("{folder}/network.txt"), text);
                    lacks.extend(missing);
                }
                None => drop(lacks.insert("its network: the record names no network namespace".to_owned())),
            }
        }
        None => drop(lacks.insert("its record and network: everything of it was taken back".to_owned())),
    }
    if let Some(now) = &known.now {
        bundle.json(format!("{folder}/state.json"), now);
    }
    match &known.gateway {
        Some(status) => bundle.json(format!("{folder}/gateway.json"), status),
        None => drop(lacks.insert("the gateway's view: it does not serve the sandbox".to_owned())),
    }
    match &known.past {
        Some(past) => {
            let cut = if past.cut { "[there were lines before]\n" } else { "" };
            bundle.add(format!("{folder}/log.txt"), format!("{cut}{}\n", past.log.join("\n")));
            let console = past.console.as_ref().map(ConsoleTail::text).unwrap_or_default();
            bundle.add(format!("{folder}/console.txt"), console);
            if console.is_empty() {
                lacks
                    .insert("the guest's console: it is read when a start fails after the launch".to_owned());
            }
        }
        None => drop(lacks.insert("its recent log: the daemon keeps it in memory".to_owned())),
    }
    lacks.into_iter().for_each(|what| bundle.lacks(format!("{id}: {what}")));
}

/// A name of a file made of an id, which a journal that was tampered with may have from anybody.
fn file_name(id: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = id.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if name.trim_matches('.').is_empty() { "_".into() } else { name }
}

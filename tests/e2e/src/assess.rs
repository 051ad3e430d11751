//! The assessments of a pod. They are the same whoever made the worker machine.

mod dns;
mod files;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use peerpod_proto::messages::oci::Mount;
use test_support::{AgentPlayer, PROGRAMS, ShimPlayer, process, spec, wait_for_async};

use crate::node::{Node, PodNetwork};
use crate::report::Outcome;

/// The assessments in their order.
pub const ASSESSMENTS: &[&str] =
    &["start", "page", "exec", "environment", "dns", "big-file", "daemon-restart", "delete"];

const WEB: &str = "web";
const WEB_PORT: u16 = 8080;
const WEB_LIMIT: Duration = Duration::from_secs(20);
const GONE_LIMIT: Duration = Duration::from_secs(60);
/// What a container finds in its environment.
const GREETING: &str = "GREETING=two words, \"quoted\"";

/// A pod whose web server runs.
struct Pod {
    shim: ShimPlayer,
    agent: AgentPlayer,
    network: PodNetwork,
}

/// Runs every assessment on `node` and hands each outcome to `tell`. What cannot run since an earlier one failed is
/// told as failed, so that the count is always the same.
pub async fn run(node: &mut Node, mut tell: impl FnMut(Outcome)) {
    let mut pod = None;
    for name in ASSESSMENTS {
        let start = Instant::now();
        let result = one(name, node, &mut pod).await;
        let seconds = start.elapsed().as_secs_f64();
        let (error, seen) = match result {
            Ok(seen) => (None, seen),
            Err(error) => (Some(format!("{error:#}")), String::new()),
        };
        tell(Outcome { assessment: (*name).to_owned(), error, seconds, seen });
    }
}

async fn one(name: &str, node: &mut Node, pod: &mut Option<Pod>) -> Result<String> {
    if name == "start" {
        node.start().await?;
        let started = Pod::start(node).await?;
        let seen = format!("pod {} runs", started.network.address);
        *pod = Some(started);
        return Ok(seen);
    }
    if name == "delete" {
        return delete(node, pod.take().context("no pod was started")?).await;
    }
    let pod = pod.as_ref().context("no pod was started")?;
    match name {
        "page" => page(pod).await,
        "exec" => exec(pod).await,
        "environment" => environment(pod).await,
        "dns" => dns::assess(&pod.agent, pod.network.address).await,
        "big-file" => files::assess(&pod.agent).await,
        "daemon-restart" => daemon_restart(node, pod).await,
        other => anyhow::bail!("there is no assessment {other}"),
    }
}

impl Pod {
    /// Plays the shim from CreateVM to a web server in a container.
    async fn start(node: &mut Node) -> Result<Self> {
        let network = node.add_pod()?;
        let sandbox = format!("{:08x}{:024x}", std::process::id(), 1);
        let shim = ShimPlayer::connect(&node.socket(), &sandbox).await?;
        let socket = shim.create_vm("e2e", &network.netns.path()).await.context("CreateVM failed")?;
        shim.start_vm().await.context("StartVM failed")?;
        let agent = AgentPlayer::connect(&socket).await?;
        agent.check().await?;
        agent.create_sandbox(&sandbox, "e2e").await.context("CreateSandbox failed")?;
        let listen = format!("0.0.0.0:{WEB_PORT}");
        let web = [&format!("{PROGRAMS}/test-agent"), "web", "--listen", &listen];
        agent.start_container(WEB, &web).await.context("starting the web server failed")?;
        Ok(Self { shim, agent, network })
    }
}

/// The page comes from the pod's address, and from a network namespace that is none of the node's.
async fn page(pod: &Pod) -> Result<String> {
    let page = fetch(pod.network.address).await?;
    let page: serde_json::Value = serde_json::from_str(&page).with_context(|| format!("no JSON: {page}"))?;
    let inside = page["netns"].as_u64().context("the page has no netns")?;
    ensure!(inside != pod.network.netns.inode()?, "the web server runs in the pod's namespace on the node");
    Ok(format!("network namespace {inside}"))
}

async fn fetch(address: Ipv4Addr) -> Result<String> {
    let mut last = None;
    let page = wait_for_async("the page", WEB_LIMIT, || {
        let page = tokio::task::block_in_place(|| get(SocketAddr::from((address, WEB_PORT))));
        let page = page.map_err(|error| last = Some(error)).ok();
        async move { page }
    })
    .await;
    match (page, last) {
        (Err(error), Some(last)) => Err(last.context(error)),
        (page, _) => page,
    }
}

fn get(server: SocketAddr) -> Result<String> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is cut off")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "the answer is {head}");
    Ok(body.to_owned())
}

/// A command in the container gives its output and its exit code, also when it fails.
async fn exec(pod: &Pod) -> Result<String> {
    let (code, text) = pod.agent.exec(WEB, "exec-1", &["echo", "hello", "pod"]).await.context("echo")?;
    ensure!((code, text.as_str()) == (0, "hello pod\n"), "echo ended with {code} and wrote {text:?}");
    let (code, _) = pod.agent.exec(WEB, "exec-2", &["sh", "-c", "exit 42"]).await.context("sh")?;
    ensure!(code == 42, "`exit 42` gave {code}");
    let size = 1 << 20;
    let many = ["head", "-c", &size.to_string(), "/dev/zero"];
    let (code, text) = pod.agent.exec(WEB, "exec-3", &many).await.context("head")?;
    ensure!(code == 0 && text.len() == size, "{} bytes of {size} came, code {code}", text.len());
    Ok("output, exit code 42, 1 MiB of output".to_owned())
}

/// A container has the environment of its specification and nothing of the agent's.
async fn environment(pod: &Pod) -> Result<String> {
    let mut oci = spec(&["env"]);
    let mut program = process(&["env"]);
    program.env.push(GREETING.to_owned());
    let expected = program.env.clone();
    oci.process = Some(program);
    pod.agent.start_container_of("environment", oci).await.context("starting `env` failed")?;
    let text = pod.agent.read_stdout("environment", "").await.context("reading its output")?;
    let text = String::from_utf8(text.to_vec())?;
    // A shell between agent and program may add these.
    let added = |line: &&str| !["PWD=", "SHLVL=", "_="].iter().any(|key| line.starts_with(key));
    let mut found: Vec<&str> = text.lines().filter(added).collect();
    found.sort_unstable();
    let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    expected.sort_unstable();
    ensure!(found == expected, "the environment is {found:?}, expected {expected:?}");
    Ok(format!("{} variables", found.len()))
}

/// The daemon is killed and started again: the pod answers before, without and after it.
async fn daemon_restart(node: &mut Node, pod: &Pod) -> Result<String> {
    node.kill_daemon()?;
    fetch(pod.network.address).await.context("without a daemon")?;
    let (code, _) = pod.agent.exec(WEB, "without", &["true"]).await.context("exec without a daemon")?;
    ensure!(code == 0, "exec without a daemon gave {code}");
    node.start_daemon().await?;
    fetch(pod.network.address).await.context("after the daemon's return")?;
    let (code, _) = pod.agent.exec(WEB, "after", &["true"]).await.context("exec after its return")?;
    ensure!(code == 0, "exec after the daemon's return gave {code}");
    Ok("page and exec before, without and after it".to_owned())
}

/// StopVM, as often as shims send it, leaves nothing of the pod on the machine.
async fn delete(node: &mut Node, pod: Pod) -> Result<String> {
    let shim = ShimPlayer::connect(&node.socket(), &pod.shim.sandbox_id).await?;
    for _ in 0..3 {
        shim.stop_vm().await.context("StopVM failed")?;
    }
    let gone = wait_for_async("the instance to be gone", GONE_LIMIT, || {
        let gone = node.instances().is_empty().then_some(());
        async move { gone }
    });
    gone.await?;
    let netns = pod.network.netns.ip(&["-oneline", "link", "show"])?;
    ensure!(!netns.contains("vxlan"), "the tunnel is still in the pod's namespace:\n{netns}");
    drop((pod.agent, pod.shim));
    pod.network.netns.delete()?;
    node.end()?;
    // The kernel takes the links of a namespace that is gone in its own time.
    let mut left = Vec::new();
    let empty = wait_for_async("nothing to be left", GONE_LIMIT, || {
        left = node.leftovers().unwrap_or_else(|error| vec![format!("{error:#}")]);
        let empty = left.is_empty().then_some(());
        async move { empty }
    })
    .await;
    ensure!(empty.is_ok(), "left on the machine: {}", left.join(", "));
    Ok("no instance, link, mount or process".to_owned())
}

/// A bind mount of a file that the node copied.
fn bind(source: &str, destination: &str) -> Mount {
    Mount {
        destination: destination.to_owned(),
        source: source.to_owned(),
        kind: "bind".to_owned(),
        options: ["rbind", "ro"].map(str::to_owned).into(),
    }
}

//! `cargo xtask demo`: one pod from the first call of the shim to the last trace of it.

pub(crate) mod aws;
mod clean;
mod report;
mod rootless;
mod volume;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ArgMatches;
use test_support::{AgentPlayer, Netns, ShimPlayer, spec, wait_for_async};
use tokio::task::block_in_place;

use self::report::{Counters, Report};
pub(crate) use self::rootless::stage as rootless_stage;
use self::volume::Disk;
use crate::context::Context;
use crate::machines::{GuestSystem, Provider, Wanted};
use crate::signals::Ends;
use crate::world::{GatewayMode, World};
use crate::{metrics, programs, setup};

const POD_NAME: &str = "demo";
const CONTAINER: &str = "web";
const WEB_PORT: u16 = 8080;
/// How long a call may take that starts no instance; a shim would wait longer, or for ever.
const CALL_LIMIT: Duration = Duration::from_secs(90);
/// How long the web server may take to listen.
const WEB_LIMIT: Duration = Duration::from_secs(10);
/// How long the provider may take to remove the instance after StopVM.
const GONE_LIMIT: Duration = Duration::from_secs(60);

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Options {
    provider: Provider,
    keep: bool,
    clean: bool,
    json: bool,
    agent: Option<PathBuf>,
    image: Option<PathBuf>,
    uri: Option<String>,
    gateway: GatewayMode,
    programs: Option<PathBuf>,
    one_id: bool,
}

impl Options {
    /// Reads the flags of `demo`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let in_process = matches.get_one::<String>("gateway").is_some_and(|mode| mode == "in-process");
        Self {
            provider: Provider::from_matches(matches),
            keep: matches.get_flag("keep"),
            clean: matches.get_flag("clean"),
            json: matches.get_flag("json"),
            agent: matches.get_one::<PathBuf>("agent").cloned(),
            image: matches.get_one::<PathBuf>("image").cloned(),
            uri: matches.get_one::<String>("uri").cloned(),
            gateway: if in_process { GatewayMode::InProcess } else { GatewayMode::Process },
            programs: matches.get_one::<PathBuf>("programs").cloned(),
            one_id: matches.get_flag("one-id"),
        }
    }

    /// The demo as a stage of the test runs it.
    pub(crate) fn for_test(provider: Provider, gateway: GatewayMode) -> Self {
        Self {
            provider,
            keep: false,
            clean: false,
            json: false,
            agent: None,
            image: None,
            uri: None,
            gateway,
            programs: None,
            one_id: false,
        }
    }

    /// Whether standard output is for one JSON object alone.
    pub(crate) fn json(&self) -> bool {
        self.json
    }
}

/// Runs the demo.
///
/// # Errors
///
/// When something is missing that cannot be installed, or a step fails; then the last log lines are printed and
/// everything is cleaned up.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let provider = options.provider;
    let is_root = nix::unistd::geteuid().is_root();
    if provider != Provider::Local {
        setup::require_root("cargo xtask demo with another provider than local")?;
    }
    if options.clean {
        return clean::run(context);
    }
    if !is_root {
        return rootless::run(context, options);
    }
    if options.uri.is_some() {
        ensure!(provider == Provider::Libvirt, "--uri is for --provider libvirt");
        ensure!(!options.keep, "--keep needs a libvirtd of the demo's own: leave out --uri");
    }
    setup::install(context, provider.need())?;
    if provider == Provider::Aws {
        return aws::run(context, options);
    }
    let mut report = Report::new(provider, options.gateway, options.uri.is_some());
    let absolute = |flag: &str, path: &Option<PathBuf>| {
        let find = |path: &PathBuf| path.canonicalize().with_context(|| format!("{flag} {}", path.display()));
        path.as_ref().map(find).transpose()
    };
    let wanted =
        Wanted { agent: absolute("--agent", &options.agent)?, image: absolute("--image", &options.image)? };
    let start = Instant::now();
    let node = match &options.programs {
        Some(folder) => programs::node_in(folder)?,
        None => programs::build_node(context, provider)?,
    };
    report.phase("build the programs of the node", start.elapsed());
    let start = Instant::now();
    let guest = match &options.programs {
        Some(folder) => GuestSystem::Programs { programs: programs::guest_in(folder)?, agent: wanted.agent },
        None => provider.build_guest(context, &wanted)?,
    };
    report.guest = guest.summary();
    report.phase("build the guest", start.elapsed());

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Before the first namespace is made: from here on a signal is followed by cleaning up.
    let mut ends = Ends::watch(&runtime)?;
    let start = Instant::now();
    let mut world = World::new(provider, &guest, options.uri.as_deref())?;
    world.add_pod()?;
    report.phase("make the stand-in node and pod", start.elapsed());
    report.host_boot_id = boot_id()?;

    let shown = runtime.block_on(async {
        tokio::select! {
            biased;
            told = ends.told() => Err(told),
            shown = show(context, options, &node, &mut world, &mut report) => shown,
        }
    });
    if let Err(error) = shown {
        context.say(format!("\nthe demo failed: {error:#}\n{}cleaning up", world.logs(40)));
        report.error = Some(format!("{error:#}"));
        report.leftovers = world.delete();
        report.print(options.json);
        return Ok(ExitCode::FAILURE);
    }
    if options.keep {
        report.print(options.json);
        context.say(clean::how_to_look(&world, &report));
        world.keep()?;
        return Ok(ExitCode::SUCCESS);
    }
    let gone = world.delete();
    report.leftovers.extend(gone);
    report.print(options.json);
    Ok(if report.leftovers.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs as a stage of the test, with the gateway in both modes.
///
/// # Errors
///
/// When a demo fails or leaves something.
pub(crate) fn stage(context: &Context, provider: Provider) -> Result<String> {
    for mode in [GatewayMode::Process, GatewayMode::InProcess] {
        ensure!(run(context, &Options::for_test(provider, mode))? == ExitCode::SUCCESS, "see above");
    }
    Ok("gateway as a process and inside the daemon".to_owned())
}

async fn show(
    context: &Context,
    options: &Options,
    node: &programs::Node,
    world: &mut World,
    report: &mut Report,
) -> Result<()> {
    let start = Instant::now();
    world.start(node, options.gateway).await?;
    report.phase("start gateway and daemon", start.elapsed());
    (report.daemon_pid, report.gateway_pid) = (world.daemon_pid(), world.gateway_pid());
    report.socket = world.socket();
    let disk = Disk::make(world)?;

    let pod = Pod::start(world, disk.as_ref(), 0, report).await?;
    through_the_tunnel(world, &pod.agent, report).await?;
    if let Some(disk) = &disk {
        let start = Instant::now();
        disk.write_in(&pod, report).await?;
        report.phase("volume: formatted, mounted, a file is written", start.elapsed());
    }
    world.note_instances();
    if options.keep {
        if let Some(disk) = disk {
            disk.keep();
        }
        return Ok(());
    }
    pod.stop(world, report).await?;
    if let Some(disk) = &disk {
        world.add_pod()?;
        report.later_pod("second pod, ");
        disk.check_alone(report)?;
        let pod = Pod::start(world, Some(disk), 1, report).await?;
        let start = Instant::now();
        disk.read_in(&pod, report).await?;
        report.phase("volume: the first pod's file is read", start.elapsed());
        pod.stop(world, report).await?;
        disk.check_alone(report)?;
        report.later_pod("");
    }
    drop(disk);
    let start = Instant::now();
    block_in_place(|| world.end())?;
    report.phase("SIGTERM until daemon and gateway ended", start.elapsed());
    report.leftovers = block_in_place(|| world.leftovers())?;
    context.say(format!("looked for {}", report.looked_for()));
    Ok(())
}

/// A pod with the web server running in it.
struct Pod {
    shim: ShimPlayer,
    agent: AgentPlayer,
}

impl Pod {
    /// Plays the shim from CreateVM to StartContainer.
    async fn start(
        world: &mut World,
        disk: Option<&Disk>,
        index: usize,
        report: &mut Report,
    ) -> Result<Self> {
        let start = Instant::now();
        // The name of an instance has the first eight digits: demos on one libvirtd differ in them.
        let sandbox = format!("{:08x}{:024x}", std::process::id(), 1 + index);
        let shim = ShimPlayer::connect(&world.socket(), &sandbox).await?;
        let netns = world.pod(index).netns.path();
        let name = format!("{POD_NAME}{}", if index == 0 { String::new() } else { (index + 1).to_string() });
        let mut annotations = ShimPlayer::annotations(&name);
        if let Some(disk) = disk {
            annotations.extend(disk.describe(world, index)?);
        }
        let created = limited("the answer to CreateVM", shim.create_vm_with(annotations, &netns)).await?;
        let agent_socket = created.context("CreateVM failed")?;
        report.phase("CreateVM", start.elapsed());
        let start = Instant::now();
        let started = limited_by(report.provider.start_limit(), "the answer to StartVM", shim.start_vm());
        started.await?.context("StartVM failed")?;
        report.phase("StartVM", start.elapsed());
        let instance = shim.instance_of("default", &name, false).await.context("GetInfo failed")?;
        let address = block_in_place(|| world.machines().address(&instance))?;
        if index == 0 {
            for (name, took) in metrics::phases(&world.metrics()?) {
                report.inner_phase(&name, took);
            }
            report.agent_socket.clone_from(&agent_socket);
            report.instance = instance;
            report.instance_address = Some(address);
        }
        world.note_instances();

        let start = Instant::now();
        let agent = AgentPlayer::connect(&agent_socket).await?;
        agent.check().await?;
        report.phase("agent: two connections, Check", start.elapsed());
        let start = Instant::now();
        agent.create_sandbox(&sandbox, &name).await.context("CreateSandbox failed")?;
        report.phase("agent: CreateSandbox", start.elapsed());
        let start = Instant::now();
        let programs = world.machines().programs();
        let listen = format!("0.0.0.0:{WEB_PORT}");
        let mut oci = spec(&[&format!("{programs}/test-agent"), "web", "--listen", &listen]);
        if !world.machines().mounts_programs() {
            oci.mounts.retain(|mount| mount.destination != test_support::PROGRAMS);
        }
        oci.mounts.extend(disk.map(|disk| disk.mount(index)));
        agent.start_container_of(CONTAINER, oci).await.context("starting the web server failed")?;
        report.phase("agent: CreateContainer, StartContainer", start.elapsed());
        Ok(Self { shim, agent })
    }

    /// Plays the shim to the end, and waits until the instance is gone.
    async fn stop(self, world: &World, report: &mut Report) -> Result<()> {
        let start = Instant::now();
        let stopped = limited("the web server to end", self.agent.stop_container(CONTAINER, 15)).await?;
        let code = stopped.context("stopping the web server failed")?;
        // The Kata agent kills the first process of a container when it does not handle SIGTERM: nothing else would end it.
        ensure!(
            [128 + 15, 128 + 9].contains(&code),
            "the web server ended with {code} instead of the signal"
        );
        report.phase("agent: SignalProcess, WaitProcess, RemoveContainer", start.elapsed());
        let start = Instant::now();
        for _ in 0..3 {
            // runtime-rs sends it three times in a row.
            self.shim.stop_vm().await.context("StopVM failed")?;
        }
        report.phase("StopVM, three times", start.elapsed());
        let start = Instant::now();
        world.wait_until_empty(GONE_LIMIT).await?;
        report.phase("until the instance is gone", start.elapsed());
        Ok(())
    }

    /// Runs a program in the container and returns what it wrote.
    async fn output(&self, id: &str, args: &[&str]) -> Result<String> {
        let (code, text) = exec(&self.agent, id, args).await?;
        ensure!(code == 0, "`{}` in the container ended with {code}: {text}", args.join(" "));
        Ok(text)
    }
}

/// Fetches the page out of the pod and proves which way it came.
async fn through_the_tunnel(world: &World, agent: &AgentPlayer, report: &mut Report) -> Result<()> {
    let pod = world.pod(0);
    report.pod_address = Some(pod.address);
    report.tunnel = tunnel_of(&pod.netns)?;
    let (node_before, guest_before) = (pod_counters(&pod.netns)?, guest_counters(agent, "before").await?);

    let server = SocketAddr::from((pod.address, WEB_PORT));
    let start = Instant::now();
    let mut last = None;
    let page = wait_for_async("the page", WEB_LIMIT, || {
        let page = block_in_place(|| crate::http::get(&world.node, server, "/"));
        let page = page.map_err(|error| last = Some(error)).ok();
        async move { page }
    })
    .await;
    let page = match (page, last) {
        (Ok(page), _) => page,
        (Err(error), Some(last)) => return Err(last.context(error)),
        (Err(error), None) => return Err(error),
    };
    report.phase("the page from the pod's address", start.elapsed());
    report.page = serde_json::from_str(&page).with_context(|| format!("the page is no JSON: {page}"))?;

    let start = Instant::now();
    let (code, link) = exec(agent, "netns", &["readlink", "/proc/self/ns/net"]).await?;
    report.phase("agent: ExecProcess, ReadStdout, WaitProcess", start.elapsed());
    ensure!(code == 0, "readlink in the container ended with {code}");
    let (node_after, guest_after) = (pod_counters(&pod.netns)?, guest_counters(agent, "after").await?);

    report.netns_host = inode_of("/proc/self/ns/net")?;
    report.netns_node = world.node.inode()?;
    report.netns_pod = pod.netns.inode()?;
    report.netns_instance = report.page["netns"].as_u64().context("the page has no netns")?;
    let others = [report.netns_host, report.netns_node, report.netns_pod];
    let inside = report.netns_instance;
    report.boot_id = report.page["boot_id"].as_str().context("the page has no boot_id")?.to_owned();
    match report.provider {
        Provider::Local => ensure!(
            !others.contains(&inside),
            "the web server runs in namespace {inside}, which is one of the node's"
        ),
        // The kernel of a machine numbers its namespaces by itself.
        Provider::Libvirt | Provider::Aws => ensure!(
            report.boot_id != report.host_boot_id,
            "the web server runs on the kernel of this host, boot id {}",
            report.boot_id
        ),
    }
    ensure!(link.trim() == format!("net:[{inside}]"), "exec sees {}, the page says {inside}", link.trim());
    report.node_counters = node_after.since(node_before);
    report.guest_counters = guest_after.since(guest_before);
    for (end, counters) in [
        ("vxlan1 in the pod's namespace", report.node_counters),
        ("eth0 in the guest", report.guest_counters),
    ] {
        ensure!(counters.rx > 0 && counters.tx > 0, "the page did not pass {end}: {counters:?}");
    }
    Ok(())
}

/// Returns the boot id of the kernel that runs us.
fn boot_id() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn inode_of(link: &str) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(link)?.ino())
}

/// Reads what the tunnel in the pod's namespace is: id and UDP port.
fn tunnel_of(pod: &Netns) -> Result<String> {
    let text = pod.ip(&["-details", "-json", "link", "show", "dev", "vxlan1"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let data = &links[0]["linkinfo"]["info_data"];
    let (id, port) = (data["id"].as_u64(), data["port"].as_u64());
    Ok(format!("VXLAN {} over UDP {}", id.context("vxlan1 has no id")?, port.context("vxlan1 has no port")?))
}

fn pod_counters(pod: &Netns) -> Result<Counters> {
    let text = pod.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
    Counters::parse(&text, "vxlan1")
}

/// A shim waits for some calls without any limit; a demo does not.
async fn limited<T>(what: &str, call: impl Future<Output = T>) -> Result<T> {
    limited_by(CALL_LIMIT, what, call).await
}

async fn limited_by<T>(limit: Duration, what: &str, call: impl Future<Output = T>) -> Result<T> {
    let done = tokio::time::timeout(limit, call).await;
    done.map_err(|_| anyhow::anyhow!("waited {} s in vain for {what}", limit.as_secs()))
}

async fn exec(agent: &AgentPlayer, id: &str, args: &[&str]) -> Result<(i32, String)> {
    let what = format!("`{}` in the container", args.join(" "));
    limited(&what, agent.exec(CONTAINER, id, args)).await?.with_context(|| format!("{what} failed"))
}

async fn guest_counters(agent: &AgentPlayer, id: &str) -> Result<Counters> {
    let (code, text) = exec(agent, id, &["cat", "/proc/self/net/dev"]).await?;
    ensure!(code == 0, "cat in the container ended with {code}");
    Counters::parse(&text, "eth0")
}

//! `cargo xtask bench start`: how long starts take, and how much memory and CPU time the node's programs use.
//!
//! The first possible answer of a guest is the moment at which its forwarder accepts a TCP connection. A thread in the
//! node's namespace tries to connect every half millisecond from the moment at which the provider's record says that
//! the instance runs. Nothing that the daemon reports is used for that moment.
//!
//! What our code does outside waits is the CPU time of daemon and gateway from before StartVM to after the answer to
//! it, by the clocks that the kernel keeps for their processes, with all threads, also those that ended, but for those
//! of the provider `local`: what they do is a cloud's work, and a daemon waits for it. What CreateVM took before is told
//! beside it.

mod cloud;
mod goals;
pub(super) mod print;

use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{ArgMatches, Command};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use test_support::{ShimPlayer, wait_for_async};
use tokio::runtime::Runtime;
use tokio::task::block_in_place;

use self::cloud::Cloud;
use crate::bench::goals::table;
use crate::bench::quantile;
use crate::context::Context;
use crate::machines::{GuestSystem, Provider, Wanted};
use crate::metrics::{PHASES, phases, sandboxes};
use crate::programs::{self, Node};
use crate::setup;
use crate::signals::Ends;
use crate::world::{FORWARDER_PORT, GatewayMode, World};

const REPLY: &str = "forwarder listens → StartVM answers";
const CPU: &str = "CPU time of daemon and gateway";
const CPU_DAEMON: &str = "    of which the daemon";
const CPU_GATEWAY: &str = "    of which the gateway";
const CPU_CREATE_VM: &str = "    of which CreateVM";
const CPU_CLOUD: &str = "    of which the cloud, in the daemon";
const CPU_OWN: &str = "CPU time of StartVM without the cloud's";
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What was asked for on the command line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    provider: Provider,
    starts: usize,
    sandboxes: usize,
    json: bool,
}

/// The command line.
pub(crate) fn command() -> Command {
    Command::new("start")
        .about("Times the phases of starts, and measures memory and CPU time of our programs")
        .arg(Provider::arg())
        .arg(crate::number(
            "starts",
            "How many sandboxes to start and stop, one after another [default: 50, or 5 with libvirt]",
        ))
        .arg(crate::number(
            "sandboxes",
            "How many to run at the same time for the memory [default: 20, or 2 with libvirt]",
        ))
        .arg(crate::flag("json", "Print one JSON object; everything else goes to standard error"))
}

impl Options {
    /// Reads the flags of `bench start`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let provider = Provider::from_matches(matches);
        let Self { starts, sandboxes, .. } = Self::usual(provider);
        let number = |name: &str| matches.get_one::<usize>(name).copied();
        Self {
            provider,
            starts: number("starts").unwrap_or(starts),
            sandboxes: number("sandboxes").unwrap_or(sandboxes),
            json: matches.get_flag("json"),
        }
    }

    /// So many starts and sandboxes that medians say something.
    pub(super) fn usual(provider: Provider) -> Self {
        // A machine takes ten seconds and more to boot where there is no hardware for virtualisation.
        let (starts, sandboxes) = if provider == Provider::Local { (50, 20) } else { (5, 2) };
        Self { provider, starts, sandboxes, json: false }
    }

    /// A few, to see that it works.
    pub(super) fn quick(provider: Provider) -> Self {
        let (starts, sandboxes) = if provider == Provider::Local { (3, 3) } else { (1, 1) };
        Self { provider, starts, sandboxes, json: false }
    }

    /// Whether standard output is for one JSON object alone.
    pub(crate) fn json(&self) -> bool {
        self.json
    }
}

/// One row of the table: a name and one time for each start, in milliseconds.
struct Row {
    name: String,
    times: Vec<f64>,
}

/// Resident memory of the node's programs, in KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    daemon: u64,
    gateway: u64,
}

/// What is run: the programs of the node, and what instances run.
#[derive(Debug)]
pub(super) struct Programs {
    node: Node,
    guest: GuestSystem,
}

impl Programs {
    /// Builds those of the node as they ship, so that figures are those of what users get.
    ///
    /// # Errors
    ///
    /// When something does not build.
    pub(super) fn build(context: &Context, provider: Provider) -> Result<Self> {
        let node = programs::build_node_shipped(context, provider)?;
        Ok(Self { node, guest: provider.build_guest(context, &Wanted::default())? })
    }
}

/// All that was measured.
pub(super) struct Measured {
    rows: Vec<Row>,
    idle: Memory,
    /// With the sandboxes.
    busy: Memory,
}

/// Runs the benchmark.
///
/// # Errors
///
/// When a start fails, or something is left behind.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    prepare(context, options.provider)?;
    let programs = Programs::build(context, options.provider)?;
    run_with(context, options, &programs)
}

/// Runs a short benchmark as a stage of the test. Its times are for information and decide nothing.
///
/// # Errors
///
/// When a start fails, or something is left behind.
pub(crate) fn stage(context: &Context, provider: Provider) -> Result<String> {
    prepare(context, provider)?;
    // The programs of the demo are there already; those that ship would take minutes to build.
    let node = programs::build_node(context, provider)?;
    let programs = Programs { node, guest: provider.build_guest(context, &Wanted::default())? };
    let options = Options::quick(provider);
    ensure!(run_with(context, &options, &programs)? == ExitCode::SUCCESS, "see above");
    Ok("times are for information".to_owned())
}

/// Sees to what the benchmark needs.
///
/// # Errors
///
/// When that is missing and cannot be installed.
pub(super) fn prepare(context: &Context, provider: Provider) -> Result<()> {
    setup::require_root("cargo xtask bench")?;
    setup::install(context, provider.need())
}

fn run_with(context: &Context, options: &Options, programs: &Programs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut ends = Ends::watch(&runtime)?;
    let measured = measure(context, options, programs, &runtime, &mut ends)?;
    let goals = measured.goals(options);
    if options.json {
        println!("{}", print::json(options, &measured, &goals));
    } else {
        print::tables(options, &measured);
        println!("\n{}", table(&[&goals]));
    }
    // Times differ from machine to machine: whoever wants to fail for them runs `bench goals`.
    Ok(ExitCode::SUCCESS)
}

/// Measures these programs, unless somebody asks us to end.
///
/// # Errors
///
/// When a start fails, or something is left behind.
pub(super) fn measure(
    context: &Context,
    options: &Options,
    programs: &Programs,
    runtime: &Runtime,
    ends: &mut Ends,
) -> Result<Measured> {
    let mut world = World::new(options.provider, &programs.guest, None)?;
    for _ in 0..options.sandboxes.max(1) {
        world.add_pod()?;
    }
    let measured = runtime.block_on(async {
        tokio::select! {
            biased;
            told = ends.told() => Err(told),
            measured = all(context, options, &programs.node, &mut world) => measured,
        }
    });
    let measured = measured.inspect_err(|_| context.say(world.logs(40)))?;
    let left = world.delete();
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    Ok(measured)
}

async fn all(context: &Context, options: &Options, node: &Node, world: &mut World) -> Result<Measured> {
    world.start(node, GatewayMode::Process).await?;
    let idle = memory(world)?;
    let mut rows: Vec<Row> = [REPLY, CPU, CPU_DAEMON, CPU_GATEWAY, CPU_CREATE_VM, CPU_CLOUD, CPU_OWN]
        .into_iter()
        .chain(PHASES)
        .chain(["StopVM answers", "instance is gone"])
        .map(|name| Row { name: name.to_owned(), times: Vec::new() })
        .collect();
    for index in 0..options.starts {
        let times = one_start(world, options.provider, &format!("{index:032x}")).await;
        let times = times.with_context(|| format!("start {} of {}", index + 1, options.starts))?;
        for (row, time) in rows.iter_mut().zip(times) {
            row.times.push(time);
        }
    }
    context.say(format!("{} starts are measured", options.starts));

    let mut shims = Vec::new();
    for index in 0..options.sandboxes {
        let shim = ShimPlayer::connect(&world.socket(), &format!("{:032x}", 0x1000 + index)).await?;
        shim.create_vm(&format!("bench-{index}"), &world.pod(index).netns.path())
            .await
            .context("CreateVM failed")?;
        shim.start_vm().await.context("StartVM failed")?;
        shims.push(shim);
    }
    let busy = memory(world)?;
    world.note_instances();
    for shim in &shims {
        shim.stop_vm().await.context("StopVM failed")?;
    }
    world.wait_until_empty(STOP_LIMIT).await?;
    drop(shims);
    block_in_place(|| world.end())?;
    let left = block_in_place(|| world.leftovers())?;
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    Ok(Measured { rows, idle, busy })
}

/// Starts and stops one sandbox; returns the times in the order of the rows.
async fn one_start(world: &World, provider: Provider, sandbox: &str) -> Result<Vec<f64>> {
    let before = phases(&world.metrics()?);
    let shim = ShimPlayer::connect(&world.socket(), sandbox).await?;
    let cloud = Cloud::watch(world.daemon_pid().filter(|_| provider == Provider::Local));
    let cpu = cpu_time(world)?;
    shim.create_vm("bench", &world.pod(0).netns.path()).await.context("CreateVM failed")?;
    let created = cpu_time(world)?;
    let given_up = Arc::new(AtomicBool::new(false));
    let (listens, answered) = std::thread::scope(|scope| {
        let stop = Arc::clone(&given_up);
        let probe = scope.spawn(move || first_answer(world, &stop));
        let answered = block_in_place(|| {
            tokio::runtime::Handle::current()
                .block_on(async { shim.start_vm().await.map(|()| Instant::now()) })
        });
        if answered.is_err() {
            given_up.store(true, Ordering::Relaxed);
        }
        (probe.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), answered)
    });
    let after = cpu_time(world)?;
    let cloud = cloud.end();
    let since = |now: [Duration; 2]| [0, 1].map(|program| now[program].saturating_sub(cpu[program]));
    let [daemon, gateway] = since(after);
    let create_vm: Duration = since(created).iter().sum();
    let answered = answered.context("StartVM failed")?;
    let listens = listens?;
    let after = phases(&world.metrics()?);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    // The probe may be later than the daemon by the time between two of its attempts; that is no time at all.
    let mut times = vec![ms(answered.saturating_duration_since(listens))];
    let all = daemon + gateway;
    times.extend([all, daemon, gateway, create_vm, cloud, all.saturating_sub(create_vm + cloud)].map(ms));
    for phase in PHASES {
        let find =
            |list: &[(String, Duration)]| list.iter().find(|(name, _)| name == phase).map(|(_, time)| *time);
        let now = find(&after).with_context(|| format!("the daemon's metrics have no phase {phase}"))?;
        times.push(ms(now.saturating_sub(find(&before).unwrap_or_default())));
    }
    let start = Instant::now();
    shim.stop_vm().await.context("StopVM failed")?;
    times.push(ms(start.elapsed()));
    world.wait_until_empty(STOP_LIMIT).await?;
    times.push(ms(start.elapsed()));
    // What the daemon has still to do for this one would be counted with the next.
    let idle = || async { world.metrics().is_ok_and(|text| sandboxes(&text) == Some(0)).then_some(()) };
    wait_for_async("the daemon to forget the sandbox", STOP_LIMIT, idle).await?;
    Ok(times)
}

/// Returns the moment at which the forwarder of the one instance first accepts a connection.
fn first_answer(world: &World, stop: &AtomicBool) -> Result<Instant> {
    const REST: Duration = Duration::from_micros(500);
    let limit = Instant::now() + world.start_limit();
    let go_on = || !stop.load(Ordering::Relaxed) && Instant::now() < limit;
    world.node.run(|| {
        while go_on() {
            if let Some(address) = world.machines().running() {
                let server = SocketAddr::from((address, FORWARDER_PORT));
                if TcpStream::connect_timeout(&server, Duration::from_millis(50)).is_ok() {
                    return Ok(Instant::now());
                }
            }
            std::thread::sleep(REST);
        }
        anyhow::bail!("the forwarder never listened")
    })
}

/// Returns the CPU time that the daemon and the gateway have used so far.
fn cpu_time(world: &World) -> Result<[Duration; 2]> {
    let of = |pid: Option<u32>| -> Result<Duration> {
        let Some(pid) = pid else { return Ok(Duration::ZERO) };
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?));
        let time = clock.and_then(clock_gettime).with_context(|| format!("no clock for process {pid}"))?;
        Ok(time.into())
    };
    Ok([of(world.daemon_pid())?, of(world.gateway_pid())?])
}

fn memory(world: &World) -> Result<Memory> {
    let read = |pid: Option<u32>| -> Result<u64> {
        let Some(pid) = pid else { return Ok(0) };
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the status has no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    };
    Ok(Memory { daemon: read(world.daemon_pid())?, gateway: read(world.gateway_pid())? })
}

impl Row {
    /// Returns the time that the given part of all starts does not exceed.
    fn at(&self, part: f64) -> f64 {
        quantile(&self.times, part)
    }
}

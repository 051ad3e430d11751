//! `cargo xtask bench start`: how long starts take, and how much memory and CPU time the node's programs use.
//!
//! The first possible answer of a guest is the moment at which its forwarder accepts a TCP connection. A thread in the
//! node's namespace tries to connect every half millisecond from the moment at which the provider's record says that
//! the instance runs. Nothing that the daemon reports is used for that moment.
//!
//! What our code does outside waits is the CPU time of daemon and gateway from before CreateVM to after the answer to
//! StartVM, by the clocks that the kernel keeps for their processes, with all threads, also those that ended.

use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{ArgMatches, Command};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::json;
use test_support::ShimPlayer;
use tokio::task::block_in_place;

use crate::context::Context;
use crate::machines::{Provider, Wanted};
use crate::metrics::{PHASES, phases};
use crate::signals::Ends;
use crate::world::{FORWARDER_PORT, GatewayMode, World};
use crate::{programs, setup};

/// How much later than the guest's first possible answer StartVM may answer, in the median.
const GOAL_MS: f64 = 50.0;
const REPLY: &str = "forwarder listens → StartVM answers";
/// How much CPU time a start may take in our programs, in the median.
const CPU_GOAL_MS: f64 = 100.0;
const CPU: &str = "CPU time of daemon and gateway";
const CPU_DAEMON: &str = "    of which the daemon";
const CPU_GATEWAY: &str = "    of which the gateway";
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Options {
    provider: Provider,
    starts: usize,
    sandboxes: usize,
    json: bool,
    optimised: bool,
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
        // A machine takes ten seconds and more to boot where there is no hardware for virtualisation.
        let (starts, sandboxes) = if provider == Provider::Local { (50, 20) } else { (5, 2) };
        let number = |name: &str| matches.get_one::<usize>(name).copied();
        Self {
            provider,
            starts: number("starts").unwrap_or(starts),
            sandboxes: number("sandboxes").unwrap_or(sandboxes),
            json: matches.get_flag("json"),
            optimised: true,
        }
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

/// Runs the benchmark.
///
/// # Errors
///
/// When a start fails, or something is left behind.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    setup::require_root("cargo xtask bench")?;
    let provider = options.provider;
    setup::install(context, provider.need())?;
    let node = if options.optimised {
        programs::build_node_optimised(context, provider)?
    } else {
        programs::build_node(context, provider)?
    };
    let guest = provider.build_guest(context, &Wanted::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut ends = Ends::watch(&runtime)?;
    let mut world = World::new(provider, &guest, None)?;
    for _ in 0..options.sandboxes.max(1) {
        world.add_pod()?;
    }
    let measured = runtime.block_on(async {
        tokio::select! {
            biased;
            told = ends.told() => Err(told),
            measured = measure(context, options, &node, &mut world) => measured,
        }
    });
    let (rows, idle, busy) = match measured {
        Ok(measured) => measured,
        Err(error) => {
            context.say(world.logs(40));
            drop(world);
            return Err(error);
        }
    };
    let left = world.delete();
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    print(options, &rows, idle, busy);
    Ok(ExitCode::SUCCESS)
}

/// Runs a short benchmark as a stage of the test. Its times are for information and decide nothing.
///
/// # Errors
///
/// When a start fails, or something is left behind.
pub(crate) fn stage(context: &Context, provider: Provider) -> Result<String> {
    let (starts, sandboxes) = if provider == Provider::Local { (3, 3) } else { (1, 1) };
    // The programs of the demo are there already; optimised ones would take minutes to build.
    let options = Options { provider, starts, sandboxes, json: false, optimised: false };
    ensure!(run(context, &options)? == ExitCode::SUCCESS, "see above");
    Ok("times are for information".to_owned())
}

async fn measure(
    context: &Context,
    options: &Options,
    node: &programs::Node,
    world: &mut World,
) -> Result<(Vec<Row>, Memory, Memory)> {
    world.start(node, GatewayMode::Process).await?;
    let idle = memory(world)?;
    let mut rows: Vec<Row> = [REPLY, CPU, CPU_DAEMON, CPU_GATEWAY]
        .into_iter()
        .chain(PHASES)
        .chain(["StopVM answers", "instance is gone"])
        .map(|name| Row { name: name.to_owned(), times: Vec::new() })
        .collect();
    for index in 0..options.starts {
        let times = one_start(world, &format!("{index:032x}")).await;
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
    Ok((rows, idle, busy))
}

/// Starts and stops one sandbox; returns the times in the order of the rows.
async fn one_start(world: &World, sandbox: &str) -> Result<Vec<f64>> {
    let before = phases(&world.metrics()?);
    let shim = ShimPlayer::connect(&world.socket(), sandbox).await?;
    let cpu = cpu_time(world)?;
    shim.create_vm("bench", &world.pod(0).netns.path()).await.context("CreateVM failed")?;
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
    let [daemon, gateway] = [0, 1].map(|program| after[program].saturating_sub(cpu[program]));
    let answered = answered.context("StartVM failed")?;
    let listens = listens?;
    let after = phases(&world.metrics()?);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    // The probe may be later than the daemon by the time between two of its attempts; that is no time at all.
    let mut times = vec![ms(answered.saturating_duration_since(listens))];
    times.extend([daemon + gateway, daemon, gateway].map(ms));
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

fn print(options: &Options, rows: &[Row], idle: Memory, busy: Memory) {
    let median = |name: &str| rows.iter().find(|row| row.name == name).map_or(0.0, |row| row.at(0.5));
    let goals = [
        ("StartVM answers after the forwarder listens", median(REPLY), GOAL_MS),
        ("a start takes in our code outside waits", median(CPU), CPU_GOAL_MS),
    ];
    if options.json {
        let row = |row: &Row| {
            let values =
                json!({ "median": row.at(0.5), "p90": row.at(0.9), "max": row.at(1.0), "all": row.times });
            (row.name.clone(), values)
        };
        let memory = |memory: Memory| json!({ "daemon": memory.daemon, "gateway": memory.gateway });
        let object = json!({
            "starts": options.starts,
            "ms": rows.iter().map(row).collect::<serde_json::Map<_, _>>(),
            "provider": options.provider.name(),
            "goal_ms": GOAL_MS,
            "goal_met": goals[0].1 < GOAL_MS,
            "cpu_goal_ms": CPU_GOAL_MS,
            "cpu_goal_met": goals[1].1 < CPU_GOAL_MS,
            "sandboxes": options.sandboxes,
            "resident_kib": { "idle": memory(idle), "with_sandboxes": memory(busy) },
        });
        println!("{object}");
        return;
    }
    println!(
        "\n{:<40} {:>10} {:>10} {:>10}   ms over {} starts on {}",
        "phase",
        "median",
        "p90",
        "max",
        options.starts,
        options.provider.name()
    );
    for row in rows {
        println!("{:<40} {:>10.1} {:>10.1} {:>10.1}", row.name, row.at(0.5), row.at(0.9), row.at(1.0));
    }
    println!();
    for (what, median, goal) in goals {
        // An emulated processor takes longer for the handshake of TLS alone.
        if options.provider != Provider::Local && what.starts_with("StartVM") {
            continue;
        }
        let verdict = if median < goal { "met" } else { "MISSED" };
        println!("goal: {what}: under {goal} ms in the median, {median:.1} ms: {verdict}");
    }
    let with = format!("{} sandboxes", options.sandboxes);
    println!("\n{:<40} {:>10} {with:>14}   KiB resident", "program", "idle");
    println!("{:<40} {:>10} {:>14}", "cloud-api-adaptor", idle.daemon, busy.daemon);
    println!("{:<40} {:>10} {:>14}", "peerpod-gateway", idle.gateway, busy.gateway);
}

impl Row {
    /// Returns the time that the given part of all starts does not exceed.
    fn at(&self, part: f64) -> f64 {
        let mut sorted = self.times.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_maximum_are_of_the_sorted_times() {
        let row = Row { name: String::new(), times: vec![5.0, 1.0, 3.0, 2.0, 4.0] };
        assert_eq!((row.at(0.5), row.at(1.0), row.at(0.0)), (3.0, 5.0, 1.0));
        assert_eq!(Row { name: String::new(), times: vec![] }.at(0.5), 0.0);
    }
}

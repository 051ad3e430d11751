//! `cargo xtask campaign real`: the daemon is killed at random moments under running pods.
//!
//! Every pod has a shim that keeps its connections as the shim of runtime-rs does, and a process whose output is read
//! all the while. Beside them one more pod is made and stopped again and again, so that kills fall into every step of a
//! start and of an end. After each kill every connection must still answer. At the end every stream must be whole; all
//! pods are stopped at once while the provider answers no deletion; and nothing may be left.

mod stops;

pub(crate) mod sim;
pub(crate) mod together;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ArgMatches;
use peerpod_proto::Code;
use peerpod_proto::messages::agent::{SignalProcessRequest, method};
use test_support::{AgentPlayer, ShimPlayer};
use tokio::task::{JoinHandle, block_in_place};

use crate::context::Context;
use crate::machines::{Provider, Wanted};
use crate::signals::Ends;
use crate::world::{GatewayMode, World};
use crate::{programs, setup};

const CONTAINER: &str = "counter";
/// Counts aloud until it is asked to end, and says so at last.
const COUNTER: &str = "trap 'echo end; exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.2; done";
/// How long a call on a connection that outlived a kill may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// Bounds of the pause before a kill, in milliseconds.
const PAUSE_MS: (u64, u64) = (20, 900);
/// What CI does.
const SHORT: (usize, usize) = (10, 20);

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Options {
    kills: usize,
    sandboxes: usize,
    seed: u64,
}

impl Options {
    /// Reads the flags of `campaign real`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let number = |name: &str, default| matches.get_one::<usize>(name).copied().unwrap_or(default);
        Self {
            kills: number("kills", 100),
            sandboxes: number("sandboxes", 20),
            seed: matches.get_one::<u64>("seed").copied().unwrap_or_else(fresh_seed),
        }
    }
}

fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) << 16 | u64::from(std::process::id()) | 1
}

/// Runs as a stage of the test.
///
/// # Errors
///
/// When an invariant is broken.
pub(crate) fn stage(context: &Context) -> Result<String> {
    let (kills, sandboxes) = SHORT;
    let ended = run(context, &Options { kills, sandboxes, seed: fresh_seed() })?;
    ensure!(ended == ExitCode::SUCCESS, "see above");
    Ok(format!("{kills} kills under {sandboxes} pods"))
}

/// Runs the campaign.
///
/// # Errors
///
/// When something is missing that cannot be installed, or an invariant is broken.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    setup::require_root("cargo xtask campaign")?;
    setup::install(context, setup::Need::Demo)?;
    let provider = Provider::Local;
    let node = programs::build_node(context, provider)?;
    let guest = provider.build_guest(context, &Wanted::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut ends = Ends::watch(&runtime)?;
    let mut world = World::new(provider, &guest, None)?;
    for _ in 0..=options.sandboxes {
        world.add_pod()?;
    }
    context.say(format!("{} kills under {} pods, --seed {}", options.kills, options.sandboxes, options.seed));
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            told = ends.told() => Err(told),
            outcome = campaign(context, options, &node, &mut world) => outcome,
        }
    });
    match outcome {
        Ok(left) if left.is_empty() => {
            let gone = world.delete();
            ensure!(gone.is_empty(), "left behind: {}", gone.join(", "));
            Ok(ExitCode::SUCCESS)
        }
        Ok(left) => bail!("left behind: {}", left.join(", ")),
        Err(error) => {
            context.say(format!("\n{}", world.logs(60)));
            Err(error.context(format!("repeat it with --seed {}", options.seed)))
        }
    }
}

/// A pod that must not notice anything.
struct Running {
    shim: ShimPlayer,
    agent: AgentPlayer,
    output: JoinHandle<Result<bytes::Bytes, peerpod_proto::Status>>,
}

async fn campaign(
    context: &Context,
    options: &Options,
    node: &programs::Node,
    world: &mut World,
) -> Result<Vec<String>> {
    world.start(node, GatewayMode::Process).await?;
    let mut pods = Vec::new();
    for index in 0..options.sandboxes {
        pods.push(running(world, index).await.with_context(|| format!("start pod {index}"))?);
    }
    world.note_instances();
    let churn = Churn::start(world, options.sandboxes);
    let mut random = Random(options.seed | 1);
    let (mut recoveries, mut checks) = (Vec::new(), 0);
    for kill in 1..=options.kills {
        tokio::time::sleep(Duration::from_millis(random.between(PAUSE_MS.0, PAUSE_MS.1))).await;
        block_in_place(|| world.kill_daemon())?;
        let begun = Instant::now();
        world.start_daemon(node).await?;
        for (index, pod) in pods.iter().enumerate() {
            let what = || format!("after kill {kill}, pod {index}");
            let version = tokio::time::timeout(ANSWER_LIMIT, pod.shim.version()).await;
            version.with_context(what)?.with_context(|| format!("{}: the shim's connection", what()))?;
            let check = tokio::time::timeout(ANSWER_LIMIT, pod.agent.check()).await;
            check.with_context(what)?.with_context(|| format!("{}: the agent's connection", what()))?;
            ensure!(!pod.output.is_finished(), "{}: the stream of its output ended", what());
            checks += 2;
        }
        recoveries.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let churn = churn.end().await?;
    let mut bytes = 0;
    for (index, pod) in pods.iter_mut().enumerate() {
        let container_id = CONTAINER.to_owned();
        let signal = SignalProcessRequest { container_id, exec_id: String::new(), signal: 15 };
        let told = pod.agent.call(method::SIGNAL_PROCESS, &signal).await;
        told.with_context(|| format!("pod {index}: its process cannot be told to end"))?;
        let output = (&mut pod.output).await?.with_context(|| format!("pod {index}: its output"))?;
        whole(&output).with_context(|| format!("pod {index}"))?;
        bytes += output.len();
    }
    let shims = pods.iter().map(|pod| pod.shim.clone()).collect();
    let stops = stops::run(world, node, shims).await?;
    world.wait_until_empty(STOP_LIMIT).await?;
    drop(pods);
    block_in_place(|| world.end())?;
    let left = block_in_place(|| world.leftovers())?;
    recoveries.sort_by(f64::total_cmp);
    let median = recoveries.get(recoveries.len() / 2).copied().unwrap_or(0.0);
    let worst = recoveries.last().copied().unwrap_or(0.0);
    context.say(format!(
        "\nkills                                                 {:>8}\n\
         pods that ran all the while                           {:>8}\n\
         connections that answered after a kill                {:>8}\n\
         connections that broke                                       0\n\
         bytes of output, none lost                            {:>8}\n\
         pods made and stopped meanwhile                       {:>8}\n\
         pods whose start a kill cut off, undone               {:>8}\n\
         kill → daemon serves, all pods answer, median ms      {:>8.0}\n\
         kill → daemon serves, all pods answer, worst ms       {:>8.0}\n\
         left behind                                           {:>8}",
        options.kills,
        options.sandboxes,
        checks,
        bytes,
        churn.0,
        churn.1,
        median,
        worst,
        left.len()
    ));
    stops.print(context);
    Ok(left)
}

async fn running(world: &World, index: usize) -> Result<Running> {
    let id = sandbox_id(index);
    let shim = ShimPlayer::connect(&world.socket(), &id).await?;
    let socket = shim.create_vm(&format!("pod-{index}"), &world.pod(index).netns.path()).await?;
    shim.start_vm().await?;
    let agent = AgentPlayer::connect(&socket).await?;
    agent.create_sandbox(&id, "campaign").await?;
    agent.start_container(CONTAINER, &["sh", "-c", COUNTER]).await?;
    let reader = AgentPlayer::connect(&socket).await?;
    let output = tokio::spawn(async move { reader.read_stdout(CONTAINER, "").await });
    Ok(Running { shim, agent, output })
}

/// Names of instances hold the first eight characters only, so those differ, as they do in the random ids of shims.
fn sandbox_id(index: usize) -> String {
    format!("{index:08x}{:08x}", std::process::id())
}

/// Checks that a counter's output has every line from the first to the end.
fn whole(output: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(output).context("its output is no text")?;
    let mut lines = text.lines();
    ensure!(lines.next_back() == Some("end"), "its output has no end");
    for (number, line) in lines.enumerate() {
        ensure!(line == number.to_string(), "line {number} of its output is {line:?}");
    }
    Ok(())
}

/// Makes and stops one more pod until it is told to end. Its calls may fail: the kills fall into them.
struct Churn {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
    made: Arc<AtomicUsize>,
    cut: Arc<AtomicUsize>,
}

impl Churn {
    fn start(world: &World, index: usize) -> Self {
        let (stop, made, cut) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (socket, netns) = (world.socket(), world.pod(index).netns.path());
        let (stopping, done, failed) = (stop.clone(), made.clone(), cut.clone());
        let task = tokio::spawn(async move {
            let mut number = index;
            while !stopping.load(Ordering::Relaxed) {
                number += 1;
                let shim = ShimPlayer::connect(&socket, &sandbox_id(number)).await?;
                let start = async {
                    shim.create_vm("churn", &netns).await?;
                    shim.start_vm().await
                };
                match tokio::time::timeout(ANSWER_LIMIT * 4, start).await.context("a start hangs")? {
                    Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                    Err(status) if cut_off(&status) => failed.fetch_add(1, Ordering::Relaxed),
                    Err(status) => bail!("a start failed although no kill explains it: {status}"),
                };
                shim.stop_vm().await.context("a StopVM was not answered")?;
            }
            Ok(())
        });
        Self { stop, task, made, cut }
    }

    async fn end(self) -> Result<(usize, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?.context("the pod that is made and stopped again and again")?;
        Ok((self.made.load(Ordering::Relaxed), self.cut.load(Ordering::Relaxed)))
    }
}

/// Whether a failed start is one that a kill explains.
fn cut_off(status: &peerpod_proto::Status) -> bool {
    // The next daemon undoes a start that was under way, and knows nothing of a plan that was not written down yet.
    matches!(status.code(), Code::Unavailable | Code::Canceled | Code::NotFound | Code::FailedPrecondition)
}

/// Xorshift: enough for moments, and repeated by its seed.
struct Random(u64);

impl Random {
    fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        least + self.0 % (most - least + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_with_a_hole_or_without_its_end_is_not_whole() {
        assert!(whole(b"0\n1\n2\nend\n").is_ok());
        for broken in ["0\n2\nend\n", "0\n1\n", "0\n11\nend\n", "1\nend\n", ""] {
            assert!(whole(broken.as_bytes()).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_seed_repeats_its_moments() {
        let moments = |seed| {
            let mut random = Random(seed);
            [0; 4].map(|_| random.between(20, 900))
        };
        assert_eq!(moments(7), moments(7));
        assert_ne!(moments(7), moments(9));
        assert!(moments(7).iter().all(|ms| (20..=900).contains(ms)));
    }
}

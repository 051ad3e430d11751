//! `cargo xtask campaign together`: daemon, controllers and a real API server, all killed at random moments.
//!
//! Pods come and go on one node: objects in the API server, and the calls of their shims to the daemon. Some end as pods
//! do, some are deleted while their start is under way, and of some the shim is gone without a word. Meanwhile daemon,
//! controllers and API server are killed and started again. At last the daemon is away for good while pods go, and the
//! controllers do its work. Nothing may be left: no object, no instance, no tunnel, no file.

mod cluster;
mod pods;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches, Command};
use test_support::{Part, wait_for_async};
use tokio::task::block_in_place;

use self::cluster::Installation;
use self::pods::{Pods, Tally};
use super::{Random, fresh_seed};
use crate::context::Context;
use crate::machines::{Provider, Wanted};
use crate::signals::Ends;
use crate::world::{GatewayMode, World};
use crate::{kubernetes, programs, setup};

/// Bounds of the pause before a kill, in milliseconds.
const PAUSE_MS: (u64, u64) = (50, 1500);
/// Pods whose node's daemon is away when they go.
const ABANDONED: usize = 5;
/// The daemon counts as silent after 40 seconds, and whoever leads may have been killed a moment ago.
const TAKEN_OVER: Duration = Duration::from_secs(240);
const GONE: Duration = Duration::from_secs(300);
/// What CI does: pods, and kills of each program.
const SHORT: (usize, usize) = (60, 4);
/// What the long run does.
const LONG: (usize, usize) = (200, 10);

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Options {
    pods: usize,
    kills: usize,
    seed: u64,
}

/// The subcommand.
pub(crate) fn command() -> Command {
    let number = |name: &'static str, help: &'static str| {
        let parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=2000);
        Arg::new(name).long(name).value_name("N").value_parser(parser).help(help)
    };
    Command::new("together")
        .about("Kills daemon, controllers and API server at random moments while pods come and go")
        .arg(number("pods", "How many pods come and go [default: 200]"))
        .arg(number("kills", "How often each of the three is killed [default: 10]"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("NUMBER")
                .value_parser(clap::value_parser!(u64))
                .help("Where the random moments begin; the one in use is printed"),
        )
}

impl Options {
    /// Reads the flags of `campaign together`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let number = |name: &str, default| matches.get_one::<usize>(name).copied().unwrap_or(default);
        let seed = matches.get_one::<u64>("seed").copied().unwrap_or_else(fresh_seed);
        Self { pods: number("pods", LONG.0), kills: number("kills", LONG.1), seed }
    }
}

/// Runs as a stage of the test.
///
/// # Errors
///
/// When something is left behind.
pub(crate) fn stage(context: &Context) -> Result<String> {
    some(context, SHORT)
}

/// Runs the long one as a stage of the test.
///
/// # Errors
///
/// When something is left behind.
pub(crate) fn stage_all(context: &Context) -> Result<String> {
    some(context, LONG)
}

fn some(context: &Context, (pods, kills): (usize, usize)) -> Result<String> {
    let ended = run(context, &Options { pods, kills, seed: fresh_seed() })?;
    ensure!(ended == ExitCode::SUCCESS, "see above");
    Ok(format!("{pods} pods, {kills} kills of each program"))
}

/// Runs the campaign.
///
/// # Errors
///
/// When something is missing that cannot be installed, or something is left behind.
pub(crate) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    setup::require_root("cargo xtask campaign")?;
    setup::install(context, setup::Need::Tests)?;
    let assets = kubernetes::assets(context)?;
    let provider = Provider::Local;
    let node = programs::build_node(context, provider)?;
    let controller = programs::build_controller(context)?;
    let guest = provider.build_guest(context, &Wanted::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut ends = Ends::watch(&runtime)?;
    let mut world = World::new(provider, &guest, None)?;
    context.say(format!(
        "{} pods, {} kills of each program, --seed {}",
        options.pods, options.kills, options.seed
    ));
    let mut installation = Installation::start(context, &world, &assets, &controller)?;
    world.set_daemon(installation.daemon(&world)?);
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            told = ends.told() => Err(told),
            outcome = campaign(context, options, &node, &mut world, &mut installation) => outcome,
        }
    });
    match outcome {
        Ok(left) if left.is_empty() => {
            drop(installation);
            let gone = world.delete();
            ensure!(gone.is_empty(), "left behind: {}", gone.join(", "));
            Ok(ExitCode::SUCCESS)
        }
        Ok(left) => {
            context.say(format!("\n{}{}", world.logs(60), installation.logs(60)));
            bail!("left behind: {}; repeat it with --seed {}", left.join(", "), options.seed)
        }
        Err(error) => {
            context.say(format!("\n{}{}", world.logs(60), installation.logs(60)));
            Err(error.context(format!("repeat it with --seed {}", options.seed)))
        }
    }
}

/// What is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Daemon,
    Controller,
    ApiServer,
}

async fn campaign(
    context: &Context,
    options: &Options,
    node: &programs::Node,
    world: &mut World,
    installation: &mut Installation,
) -> Result<Vec<String>> {
    let begun = Instant::now();
    world.start(node, GatewayMode::Process).await?;
    let mut random = Random(options.seed | 1);
    let pods = Pods::prepare(world, installation.api(), options.pods, &mut random)?;
    let mut running = pods.start();
    let mut victims: Vec<Victim> = [Victim::Daemon, Victim::Controller, Victim::ApiServer]
        .into_iter()
        .flat_map(|victim| std::iter::repeat_n(victim, options.kills))
        .collect();
    shuffle(&mut victims, &mut random);
    for victim in victims {
        tokio::time::sleep(Duration::from_millis(random.between(PAUSE_MS.0, PAUSE_MS.1))).await;
        world.note_instances();
        match victim {
            Victim::Daemon => {
                block_in_place(|| world.kill_daemon())?;
                world.start_daemon(node).await?;
            }
            Victim::Controller => block_in_place(|| installation.kill_controller(&mut random))?,
            Victim::ApiServer => block_in_place(|| {
                installation.cluster.kill(Part::ApiServer)?;
                installation.cluster.start_again(Part::ApiServer)
            })?,
        }
    }
    let mut tally = Tally::default();
    while let Some(done) = running.join_next().await {
        tally.add(&done.context("a slot of pods panicked")??);
    }
    ensure!(tally.started * 2 > options.pods, "too few starts outlived the kills: {tally:?}");
    settle(world, installation, GONE).await.context("after the kills")?;
    // The node's daemon is away: the controllers alone see to what the pods leave.
    let shims = pods.run_some(ABANDONED).await.context("start pods for a node that goes away")?;
    world.note_instances();
    block_in_place(|| world.kill_daemon())?;
    let gone = Instant::now();
    block_in_place(|| pods.delete(&shims))?;
    settle(world, installation, TAKEN_OVER).await.context("while the daemon was away")?;
    let taken_over = gone.elapsed();
    world.start_daemon(node).await?;
    for shim in &shims {
        shim.stop().await?;
    }
    settle(world, installation, GONE).await.context("at the end")?;
    drop(shims);
    // A deletion that the daemon has in its journal is over only when it says so.
    wait_for_async("the daemon to have no deletion left", GONE, || async {
        let metrics = block_in_place(|| world.metrics()).ok()?;
        let pending = metrics.lines().find(|line| line.starts_with("peerpod_deletions_pending{"))?;
        pending.ends_with(" 0").then_some(())
    })
    .await?;
    block_in_place(|| world.end())?;
    let rights = block_in_place(|| installation.rights())?;
    let mut left = block_in_place(|| installation.objects())?;
    block_in_place(|| installation.end())?;
    left.extend(block_in_place(|| world.leftovers())?);
    context.say(format!(
        "\npods                                                  {:>8}\n\
         of these started                                      {:>8}\n\
         whose start a kill or their end cut off, undone       {:>8}\n\
         stopped by their shim                                 {:>8}\n\
         whose shim vanished                                   {:>8}\n\
         that got another sandbox                              {:>8}\n\
         deleted while they started                            {:>8}\n\
         kills of the daemon, of controllers, of the server    {:>8}\n\
         pods that the controllers finished for the daemon     {:>8}\n\
         pods deleted → all of these finished, s               {:>8.0}\n\
         rights that were used, of those in the roles          {:>8}\n\
         seconds                                               {:>8.0}\n\
         left behind                                           {:>8}",
        options.pods,
        tally.started,
        tally.cut,
        tally.stopped,
        tally.lost,
        tally.again,
        tally.during,
        format!("{0}+{0}+{0}", options.kills),
        ABANDONED,
        taken_over.as_secs_f64(),
        rights.counts(),
        begun.elapsed().as_secs_f64(),
        left.len()
    ));
    rights.check()?;
    Ok(left)
}

/// Waits until neither an object nor an instance is there.
async fn settle(world: &World, installation: &Installation, limit: Duration) -> Result<()> {
    let empty = || async {
        let objects = block_in_place(|| installation.objects()).ok()?;
        let instances = world.instances().ok()?;
        (objects.is_empty() && instances.is_empty()).then_some(())
    };
    let waited = wait_for_async("all objects and instances to go", limit, empty).await;
    waited
        .with_context(|| format!("objects: {:?}; instances: {:?}", installation.objects(), world.instances()))
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for at in (1..items.len()).rev() {
        let other = random.between(0, at as u64) as usize;
        items.swap(at, other);
    }
}

/// Reads what an installation creates, as the repository has it.
fn manifest(context: &Context, name: &str) -> Result<String> {
    let path = context.root.join(Path::new("crates/peerpod-api/manifests")).join(name);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffling_keeps_everything_and_is_repeated_by_its_seed() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..30).collect();
            shuffle(&mut items, &mut Random(seed));
            items
        };
        let mut sorted = shuffled(7);
        assert_ne!(sorted, (0..30).collect::<Vec<_>>());
        assert_eq!(shuffled(7), shuffled(7));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..30).collect::<Vec<_>>());
    }
}

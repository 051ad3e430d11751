//! The demo on an emulator of EC2: from CreateVM to an address that nobody answers at, and back.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use test_support::{ShimPlayer, wait_for_async};
use tokio::task::block_in_place;

use super::{GONE_LIMIT, Options, POD_NAME, limited};
use crate::context::Context;
use crate::machines::{GuestSystem, Provider};
use crate::signals::Ends;
use crate::world::{FORWARDER_PORT, World};
use crate::{programs, setup};

/// How long the emulated instance may take to run.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// Runs it as far as it goes and says where it stops.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    ensure!(!options.keep, "--keep is for providers whose instances run; the emulator of EC2 has none");
    ensure!(!options.json, "--json is for providers whose instances run; the emulator of EC2 has none");
    ensure!(
        options.agent.is_none() && options.image.is_none(),
        "--agent and --image are for providers whose instances run; the emulator of EC2 has none"
    );
    setup::install(context, setup::Need::Emulator)?;
    let start = Instant::now();
    let node = programs::build_node(context, Provider::Aws)?;
    phase(context, "build the programs of the node, with the SDK", start);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut ends = Ends::watch(&runtime)?;
    let start = Instant::now();
    let mut world = World::new(Provider::Aws, &GuestSystem::Nothing, None)?;
    world.add_pod()?;
    phase(context, "start the emulator, make the stand-in node and pod", start);
    let shown = runtime.block_on(async {
        tokio::select! {
            biased;
            told = ends.told() => Err(told),
            shown = show(context, options, &node, &mut world) => shown,
        }
    });
    let mut left = match shown {
        Ok(left) => left,
        Err(error) => {
            context.say(format!("\nthe demo failed: {error:#}\n{}cleaning up", world.logs(40)));
            world.delete();
            return Ok(ExitCode::FAILURE);
        }
    };
    left.extend(world.delete());
    if left.is_empty() {
        context.say("nothing is left: instance, interface, address, disk, process, namespace, link, rule, mount, file");
        return Ok(ExitCode::SUCCESS);
    }
    context.say(format!("left behind:\n  {}", left.join("\n  ")));
    Ok(ExitCode::FAILURE)
}

async fn show(
    context: &Context,
    options: &Options,
    node: &programs::Node,
    world: &mut World,
) -> Result<Vec<String>> {
    let start = Instant::now();
    world.start(node, options.gateway).await?;
    phase(context, "start gateway and daemon", start);

    let sandbox = format!("{:08x}{:024x}", std::process::id(), 1);
    let shim = ShimPlayer::connect(&world.socket(), &sandbox).await?;
    let netns = world.pod(0).netns.path();
    let start = Instant::now();
    let created =
        limited("the answer to CreateVM", shim.create_vm_with(ShimPlayer::annotations(POD_NAME), &netns));
    created.await?.context("CreateVM failed")?;
    phase(context, "CreateVM", start);

    // StartVM is answered when the forwarder in the guest is: that never happens here, so nobody waits for it.
    let start = Instant::now();
    let starter = ShimPlayer::connect(&world.socket(), &sandbox).await?;
    let starting = tokio::spawn(async move { starter.start_vm().await });
    let seen = wait_for_async("an instance of the emulator", RUN_LIMIT, || {
        let seen = block_in_place(|| world.instances()).ok().and_then(|ids| ids.into_iter().next());
        let ended = starting.is_finished();
        async move { seen.or_else(|| ended.then(String::new)) }
    });
    let instance = seen.await?;
    if instance.is_empty() {
        starting.await?.context("StartVM failed before there was an instance")?;
        anyhow::bail!("StartVM succeeded without an instance");
    }
    let address = block_in_place(|| world.machines().address(&instance))?;
    phase(context, &format!("StartVM until {instance} has the address {address}"), start);
    // The daemon has seen it as well, and asks at that address.
    let start = Instant::now();
    let asked = wait_for_async("the daemon to ask for the forwarder", RUN_LIMIT, || {
        let log = world.logs(400);
        let state = std::fs::read_to_string(world.dir.join("daemon.log")).unwrap_or_default();
        let found = log.contains(&address.to_string()) || state.contains(&address.to_string());
        let waiting = starting.is_finished().then_some(false).or(found.then_some(true));
        async move { waiting }
    });
    match asked.await {
        Ok(true) => phase(context, "the daemon knows the address", start),
        Ok(false) => {
            let error = starting.await?.err().context("StartVM succeeded without a guest")?;
            anyhow::bail!("StartVM ended early: {error:#}");
        }
        // It logs the address at a level that may be off: what follows does not depend on it.
        Err(_) => context.say("  the log of the daemon does not tell the address"),
    }
    context.say(format!(
        "\nhere the demo stops: an emulator has no machine behind its instances, so that nobody answers at \
         {address}:{FORWARDER_PORT}. With an account, the forwarder of the image answers there; see \
         `cargo xtask e2e --provider aws` and docs/providers/aws.md\n"
    ));

    let start = Instant::now();
    for _ in 0..3 {
        shim.stop_vm().await.context("StopVM failed")?;
    }
    phase(context, "StopVM, three times", start);
    let start = Instant::now();
    world.wait_until_empty(GONE_LIMIT).await?;
    phase(context, "until the instance is gone", start);
    let ended = limited("the answer to StartVM", starting).await??;
    ensure!(ended.is_err(), "StartVM succeeded without a guest");
    let calls = world.machines().calls();
    context.say("calls to EC2:");
    for (operation, count) in calls {
        context.say(format!("  {count:>4} {operation}"));
    }
    let start = Instant::now();
    block_in_place(|| world.end())?;
    phase(context, "SIGTERM until daemon and gateway ended", start);
    block_in_place(|| world.leftovers())
}

fn phase(context: &Context, name: &str, start: Instant) {
    context.say(format!("{:>9.1} ms  {name}", start.elapsed().as_secs_f64() * 1e3));
}

/// Runs as a stage of the test.
///
/// # Errors
///
/// When it fails or leaves something.
pub(crate) fn stage(context: &Context) -> Result<String> {
    let options = Options::for_test(Provider::Aws, crate::world::GatewayMode::Process);
    ensure!(super::run(context, &options)? == ExitCode::SUCCESS, "see above");
    Ok("up to the address that nobody answers at".to_owned())
}

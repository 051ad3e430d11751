//! The daemon of the project serves a shim, in namespaces of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use test_support::{Netns, ProcessGuard, ShimPlayer, wait_for_async};

use super::scratch::Scratch;

const LIMIT: Duration = Duration::from_secs(30);
const ADDRESS: &str = "192.0.2.7";

/// Starts the daemon and takes one sandbox from CreateVM to its end.
pub(super) fn run(scratch: &Scratch, daemon: &Path) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("outside-").tempdir_in("/tmp")?;
    let node = Netns::unique("outside-node")?;
    let pod = Netns::unique("outside-pod")?;
    let network = Netns::unique("outside-net")?;
    node.veth("eth0", &network, "node")?;
    node.ip(&["addr", "add", "192.0.2.2/24", "dev", "eth0"])?;
    network.ip(&["addr", "add", "192.0.2.1/24", "dev", "node"])?;
    node.default_route("192.0.2.1".parse()?)?;
    node.bridge("cni0", "10.244.1.1/24")?;
    node.veth("veth0", &pod, "eth0")?;
    node.ip(&["link", "set", "veth0", "master", "cni0"])?;
    pod.ip(&["addr", "add", "10.244.1.10/24", "dev", "eth0"])?;
    pod.default_route("10.244.1.1".parse()?)?;

    let path = |name: &str| dir.path().join(name);
    let mut command = node.command(daemon);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("MINIMAL_ADDRESSES", ADDRESS);
    command.arg("minimal").arg("-minimal-folder").arg(path("machines")).arg("-cloud-config-verify");
    command.arg("-socket").arg(path("hypervisor.sock")).args(["-peerpods-limit-per-node", "-1"]);
    for (flag, folder) in
        [("-pods-dir", "pods"), ("-state-dir", "state"), ("-direct-volumes-dir", "direct-volumes")]
    {
        command.arg(flag).arg(path(folder));
    }
    let log = scratch.path("daemon.log");
    let _ = std::fs::remove_file(&log);
    let mut guard = ProcessGuard::spawn("cloud-api-adaptor", &mut command, &log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(sandbox(dir.path(), &pod));
    served.with_context(|| format!("the daemon says, in {}:\n{}", log.display(), guard.last_lines(30)))?;
    guard.signal(Signal::SIGTERM)?;
    let status = guard.wait_exit(LIMIT)?;
    ensure!(status.success(), "the daemon ended with {status}:\n{}", guard.last_lines(30));
    Ok(())
}

async fn sandbox(dir: &Path, pod: &Netns) -> Result<()> {
    let socket = dir.join("hypervisor.sock");
    let shim = wait_for_async("an answer of the daemon", LIMIT, || async {
        let shim = ShimPlayer::connect(&socket, "0a1b2c3d4e5f").await.ok()?;
        shim.version().await.ok().map(|_| shim)
    })
    .await?;
    let refused = |what: &'static str| move |status| anyhow::anyhow!("{what} is refused: {status}");
    shim.create_vm("web-0", &pod.path()).await.map_err(refused("CreateVM"))?;
    let starting = {
        let shim = shim.clone();
        // Nobody is at the address, so it does not end by itself.
        tokio::spawn(async move { shim.start_vm().await })
    };
    let machines = dir.join("machines");
    let file = wait_for_async("a machine to be taken", LIMIT, || async {
        machine(&machines).filter(|_| !starting.is_finished())
    })
    .await?;
    let taken: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    ensure!(taken["instance"]["addresses"][0] == ADDRESS, "another machine was taken: {taken}");
    ensure!(taken["instance"]["name"] == "podvm-web-0-0a1b2c3d", "the machine has another name: {taken}");
    ensure!(taken["tags"]["peerpod-unit"] == "0a1b2c3d4e5f", "the machine is not tagged: {taken}");
    ensure!(
        taken["user_data"].as_str().is_some_and(|data| !data.is_empty()),
        "the machine gets no user data"
    );
    std::fs::write(file.with_extension("up"), "")?;
    shim.stop_vm().await.map_err(refused("StopVM"))?;
    wait_for_async("the machine to be given back", LIMIT, || async {
        std::fs::read_dir(&machines).ok()?.next().is_none().then_some(())
    })
    .await?;
    ensure!(starting.await?.is_err(), "StartVM succeeded without a guest");
    Ok(())
}

fn machine(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|file| file.path());
    files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "json"))
}

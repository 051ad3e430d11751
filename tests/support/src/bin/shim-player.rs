//! A shim in a process of its own, to be killed, starved or told to stop its pod.
//!
//! `shim-player <hypervisor.sock> <sandbox> <pod> <netns> [<pause ms> <limit ms>]` does what the shim of runtime-rs does:
//! one connection to the daemon, kept for the pod's life and never made again; two to the agent; a container whose end is
//! waited for; a health check of the agent after each pause, whose failure ends the process without a StopVM. SIGTERM is
//! the kubelet's wish to stop the pod: StopVM three times on the kept connection, whatever becomes of it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use peerpod_proto::Status;
use peerpod_proto::messages::agent::{self, method};
use test_support::{AgentPlayer, ShimPlayer};
use tokio::signal::unix::{SignalKind, signal};

/// How often the shim asks the agent for its health, unless told otherwise.
const PAUSE: Duration = Duration::from_secs(30);
/// How long the agent may take to answer.
const LIMIT: Duration = Duration::from_secs(90);
const CONTAINER: &str = "main";

struct Options {
    socket: PathBuf,
    sandbox: String,
    pod: String,
    netns: PathBuf,
    pause: Duration,
    limit: Duration,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let [socket, sandbox, pod, netns, times @ ..] = args else {
            bail!("usage: shim-player <hypervisor.sock> <sandbox> <pod> <netns> [<pause ms> <limit ms>]");
        };
        let (pause, limit) = match times {
            [] => (PAUSE, LIMIT),
            [pause, limit] => (Duration::from_millis(pause.parse()?), Duration::from_millis(limit.parse()?)),
            _ => bail!("pause and limit go together"),
        };
        let (socket, netns) = (socket.into(), netns.into());
        Ok(Self { socket, sandbox: sandbox.clone(), pod: pod.clone(), netns, pause, limit })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let played = async { play(&Options::parse(&args)?).await };
    match played.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn play(options: &Options) -> Result<()> {
    let mut told = signal(SignalKind::terminate())?;
    let shim = ShimPlayer::connect(&options.socket, &options.sandbox).await?;
    let socket = start(&shim, &options.pod, &options.netns).await?;
    let agent = AgentPlayer::connect(&socket).await?;
    agent.create_sandbox(&options.sandbox, &options.pod).await.context("CreateSandbox")?;
    agent.start_container(CONTAINER, &["sleep", "100000"]).await.context("StartContainer")?;
    println!("shim: the pod is ready");
    let wait = agent::WaitProcessRequest { container_id: CONTAINER.into(), exec_id: String::new() };
    let ended = agent.client().call::<_, agent::WaitProcessResponse>(
        agent::SERVICE,
        method::WAIT_PROCESS,
        &wait,
        None,
    );
    let mut ended = std::pin::pin!(ended);
    let mut ready = true;
    let mut checks = tokio::time::interval(options.pause);
    loop {
        tokio::select! {
            _ = told.recv() => break,
            end = &mut ended, if ready => {
                ready = false;
                println!("shim: the pod is not ready any more: {end:?}");
            }
            _ = checks.tick(), if ready => match tokio::time::timeout(options.limit, agent.check()).await {
                Ok(Ok(())) => println!("shim: the agent answers"),
                // The wait for the container tells of it.
                Ok(Err(_)) => {}
                Err(_) => bail!("the agent does not answer, and the shim ends without a StopVM"),
            },
        }
    }
    if ready && let Err(status) = agent.stop_container(CONTAINER, 9).await {
        println!("shim: the container cannot be stopped: {status}");
    }
    for _ in 0..3 {
        match shim.stop_vm().await {
            Ok(()) => println!("shim: StopVM is answered"),
            Err(status) => println!("shim: StopVM fails: {status}"),
        }
    }
    Ok(())
}

/// CreateVM and StartVM. After an error that was answered comes one StopVM; after a closed connection nothing does.
async fn start(shim: &ShimPlayer, pod: &str, netns: &Path) -> Result<PathBuf> {
    let started = async {
        let socket = shim.create_vm(pod, netns).await?;
        println!("shim: CreateVM is answered");
        shim.start_vm().await?;
        Ok::<_, Status>(socket)
    };
    match started.await {
        Ok(socket) => Ok(socket),
        Err(status) if status == Status::closed() => {
            bail!("the connection was closed instead of an answer, and no StopVM is sent")
        }
        Err(status) => {
            let _ = shim.stop_vm().await;
            bail!("the pod does not start: {status}")
        }
    }
}

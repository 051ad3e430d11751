//! Command `agent-protocol-forwarder`: joins the pod's network and serves the agent to the node.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cloud_providers::{EnvSource, ProcessEnv};
use podvm::Notifier;
use podvm::flags;
use podvm::forwarder::{Forwarder, Options};
use podvm::paths::Paths;
use podvm::programs::{FORWARDER_EXITS, FORWARDER_FLAGS};
use podvm::volumes::{Patience, SystemLayer};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

const ATTEMPTS: &str = "CAA_DISK_DETECT_MAX_ATTEMPTS";
const DELAY: &str = "CAA_DISK_DETECT_RETRY_DELAY";

fn main() -> ExitCode {
    let [(done, _), (failed, _)] = FORWARDER_EXITS;
    match run() {
        Ok(()) => ExitCode::from(done),
        Err(error) => {
            eprintln!("agent-protocol-forwarder: {error:#}");
            ExitCode::from(failed)
        }
    }
}

fn run() -> Result<()> {
    let parsed = flags::parse(FORWARDER_FLAGS, std::env::args().skip(1))?;
    if parsed.is_on("version") {
        println!("agent-protocol-forwarder {}", podvm::VERSION);
        return Ok(());
    }
    if parsed.help {
        print!("{}", flags::usage("agent-protocol-forwarder", FORWARDER_FLAGS));
        return Ok(());
    }
    if let Some(word) = parsed.rest.first() {
        bail!("unexpected word {word:?}");
    }
    ensure!(
        !parsed.is_on("tls-skip-verify"),
        "-tls-skip-verify is refused: a server that does not verify clients lets everyone drive the agent \
         (remove it, or set -disable-tls on a trusted network)"
    );
    let mut options = Options::default();
    options.config = parsed.text("config").into();
    options.listen = parsed.text("listen").to_owned();
    options.agent_socket = parsed.text("kata-agent-socket").into();
    options.pod_namespace = parsed.text("pod-namespace").into();
    options.host_interface = parsed.non_empty("host-interface");
    options.ca_cert_file = parsed.non_empty("ca-cert-file").map(Into::into);
    options.cert_file = parsed.non_empty("cert-file").map(Into::into);
    options.cert_key = parsed.non_empty("cert-key").map(Into::into);
    options.disable_tls = parsed.is_on("disable-tls");
    if let Some(list) = parsed.non_empty("bind-source-dirs") {
        options.bind_source_dirs = list.split(',').map(|dir| dir.trim().into()).collect();
    }
    options.link_grace = cloud_providers::parse_go_duration(parsed.text("link-grace"))
        .map_err(|reason| anyhow::anyhow!("-link-grace: {reason}"))?;
    podvm::log::init("agent-protocol-forwarder", parsed.is_on("verbose"));
    info!(version = podvm::VERSION, "starting");
    let patience = patience(&ProcessEnv)?;
    let notifier = Notifier::new(ProcessEnv.variable("NOTIFY_SOCKET").as_deref().map(std::ffi::OsStr::new))
        .context("NOTIFY_SOCKET")?;
    // One node and one agent: waking a second thread for each message costs more than forwarding it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(&options, patience, &notifier));
    runtime.shutdown_background();
    result
}

async fn serve(options: &Options, patience: Patience, notifier: &Notifier) -> Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let layer = Arc::new(SystemLayer::new(Paths::host()));
    let forwarder = match Forwarder::start(options, Paths::host(), layer, patience, &stop).await {
        Ok(forwarder) => forwarder,
        // Being told to stop while waiting for the network is no failure.
        Err(error) if stop.is_cancelled() => {
            info!(reason = format!("{error:#}"), "stopped before it was ready");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let stopping = async {
        stop.cancelled().await;
        notifier.send("STOPPING=1");
    };
    notifier.send("READY=1");
    tokio::join!(forwarder.run(stop.clone()), stopping);
    Ok(())
}

/// The first signal ends the program in order, the second one at once.
fn stop_on_signals(stop: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for round in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if round > 0 {
                eprintln!("agent-protocol-forwarder: second signal, leaving at once");
                std::process::exit(FORWARDER_EXITS[1].0.into());
            }
            info!("stopping");
            stop.cancel();
        }
    });
    Ok(())
}

/// How long to look for a disk: attempts times delay, as the existing forwarder counts.
fn patience(env: &dyn EnvSource) -> Result<Patience> {
    let mut patience = Patience::default();
    let mut delay = Duration::from_secs(2);
    if let Some(text) = env.variable(DELAY) {
        delay = cloud_providers::parse_go_duration(&text)
            .map_err(|reason| anyhow::anyhow!("{DELAY}: {reason}"))?;
    }
    let mut attempts = 15;
    if let Some(text) = env.variable(ATTEMPTS) {
        attempts =
            text.parse().with_context(|| format!("{ATTEMPTS}: {text:?} is not a number of attempts"))?;
    }
    patience.total = delay * attempts;
    patience.pause = patience.pause.min(delay);
    Ok(patience)
}

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;

    use super::*;

    #[test]
    fn the_search_for_disks_is_bounded_by_attempts_times_delay() {
        let total = |pairs: &[(&str, &str)]| {
            patience(&MapEnv::new(pairs.iter().copied())).map(|p| p.total.as_millis())
        };
        assert_eq!(total(&[]).unwrap(), 30_000);
        assert_eq!(total(&[(ATTEMPTS, "3"), (DELAY, "500ms")]).unwrap(), 1500);
        assert!(total(&[(ATTEMPTS, "many")]).unwrap_err().to_string().contains(ATTEMPTS));
        assert!(total(&[(DELAY, "5")]).unwrap_err().to_string().contains(DELAY));
    }
}

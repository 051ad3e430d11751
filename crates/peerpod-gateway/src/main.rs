//! The program: one gateway, offered to the daemon over a control socket.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ArgMatches;
use peerpod_gateway::{ControlServer, Gateway, cli};
use peerpod_proto::tls;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Threads for all that is no sandbox's own.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let options = match cli::command().try_get_matches() {
        Ok(options) => options,
        // Help and version come this way, too.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { cli::USAGE.0 } else { cli::DONE.0 });
        }
    };
    start_log(&options);
    match run(&options) {
        Ok(()) => ExitCode::from(cli::DONE.0),
        Err(error) => {
            error!("{error:#}");
            ExitCode::from(cli::FAILED.0)
        }
    }
}

fn start_log(options: &ArgMatches) {
    let level = options.get_one::<String>("log-level").map_or("info", String::as_str);
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(level.parse().unwrap_or(tracing::Level::INFO));
    if options.get_one::<String>("log-format").is_some_and(|format| format == "json") {
        log.json().init();
    } else {
        log.init();
    }
}

fn run(options: &ArgMatches) -> anyhow::Result<()> {
    if tls::provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is installed in this process");
    }
    // Off the path of the first sandbox, which would wait for it else.
    std::thread::spawn(tls::warm_up);
    let socket = options.get_one::<PathBuf>("control-socket").context("--control-socket has no value")?;
    // For the calls of the daemon and those about sandboxes' life; what sandboxes carry has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("starting the runtime failed")?;
    runtime.block_on(async {
        let stop = stop_on_signal()?;
        let gateway = Gateway::with_threads();
        let control = ControlServer::bind(gateway.clone(), socket).await?;
        info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), "gateway is ready");
        let served = control.serve(stop).await;
        gateway.shutdown().await;
        info!("gateway ends");
        Ok(served?)
    })
}

/// A token that is cancelled by the signals that end a program.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("taking SIGTERM failed")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("taking SIGINT failed")?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    Ok(stop)
}

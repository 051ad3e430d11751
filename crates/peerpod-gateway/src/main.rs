//! The program: one gateway, offered to the daemon over a control socket.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use peerpod_gateway::{ControlServer, Gateway};
use peerpod_proto::tls;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

fn command() -> Command {
    Command::new("peerpod-gateway")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Owns the agent sockets of a node's sandboxes and holds the connections to their guests")
        .arg(
            Arg::new("control-socket")
                .long("control-socket")
                .value_name("PATH")
                .default_value("/run/peerpod/gateway.sock")
                .value_parser(value_parser!(PathBuf))
                .help("Unix socket for the daemon; only root and the own user may connect"),
        )
        .arg(
            Arg::new("log-format")
                .long("log-format")
                .value_name("FORMAT")
                .default_value("text")
                .value_parser(["json", "text"])
                .help("How the log is written to standard error"),
        )
        .arg(
            Arg::new("log-level")
                .long("log-level")
                .value_name("LEVEL")
                .default_value("info")
                .value_parser(["error", "warn", "info", "debug", "trace"])
                .help("The least important messages to log"),
        )
}

fn main() -> ExitCode {
    let options = command().get_matches();
    start_log(&options);
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
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
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime failed")?;
    runtime.block_on(async {
        let stop = stop_on_signal()?;
        let gateway = Gateway::new();
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

#![doc = include_str!("../README.md")]

mod agent;
mod container;
mod files;
mod record;
mod spawn;
mod stdio;
mod web;

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use peerpod_proto::Server;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

const SOCKET: &str = "unix:///run/kata-containers/agent.sock";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // The only look at the environment: the variable that the Kata agent knows as well.
    let server_addr = std::env::var("KATA_AGENT_SERVER_ADDR").ok();
    match run(&args, server_addr) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String], server_addr: Option<String>) -> Result<()> {
    if let [first, name] = args
        && first == "lookup"
    {
        return lookup(name);
    }
    let (web, args) = match args.split_first() {
        Some((first, rest)) if first == "web" => (true, rest),
        _ => (false, args),
    };
    let mut listen = None;
    let mut root = PathBuf::from("/");
    let mut record = false;
    let mut configured = None;
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--listen" => listen = Some(value()?.clone()),
            "--root" if !web => root = value()?.into(),
            "--record" if !web => record = true,
            "-c" | "--config" if !web => configured = socket_in(value()?)?,
            "--version" => {
                println!("test-agent {}", env!("CARGO_PKG_VERSION"));
                return Ok(());
            }
            other => bail!(
                "unknown option {other} (known: web, lookup NAME, --config, --listen, --record, --root, --version)"
            ),
        }
    }
    if web {
        return web::serve(listen.as_deref().unwrap_or("0.0.0.0:8080"));
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let address = listen.or(server_addr).or(configured).unwrap_or_else(|| SOCKET.to_owned());
    let path = address.strip_prefix("unix://").unwrap_or(&address);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let socket = Path::new(path);
    let served = if record {
        runtime.block_on(async {
            record::record(bind(socket).with_context(|| format!("listen on {path}"))?).await
        })
    } else {
        runtime.block_on(serve(socket, root))
    };
    // A read of a process that somebody else keeps alive must not keep the agent.
    runtime.shutdown_background();
    served
}

/// Reads the socket from a configuration of the Kata agent; all else in it is for the Kata agent alone.
fn socket_in(file: &str) -> Result<Option<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    let mut lines = text.lines().filter_map(|line| line.split_once('='));
    let value = lines.find_map(|(key, value)| (key.trim() == "server_addr").then_some(value.trim()));
    Ok(value.map(|value| value.trim_matches('"').to_owned()))
}

/// Prints the IPv4 addresses of a name, as any program of the container gets them.
fn lookup(name: &str) -> Result<()> {
    let found = (name, 0).to_socket_addrs().with_context(|| format!("cannot resolve {name}"))?;
    found.filter(SocketAddr::is_ipv4).for_each(|address| println!("{}", address.ip()));
    Ok(())
}

async fn serve(socket: &Path, root: PathBuf) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let agent = Arc::new(agent::Agent::new(root));
    let stop = CancellationToken::new();
    let server = Server::new(agent.clone());
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { server.serve_unix(listener, stop).await }
    });
    info!(socket = %socket.display(), "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    agent.destroy().await;
    stop.cancel();
    serving.await?;
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// Binds the socket for its owner only, in place of one that a dead agent left.
fn bind(socket: &Path) -> Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::fs::symlink_metadata(socket).is_ok_and(|m| m.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            bail!("another program serves this socket");
        }
        std::fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

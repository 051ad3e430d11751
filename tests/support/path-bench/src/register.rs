//! Tells a gateway of sandboxes, as the daemon does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{ArgMatches, Command};
use peerpod_gateway::{AgentProxies as _, ProxySpec, RemoteGateway, TlsSpec};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// How long a guest may take.
const CONNECT: Duration = Duration::from_secs(60);

/// A sandbox to register.
#[derive(Deserialize)]
struct Sandbox {
    id: String,
    socket: PathBuf,
    target: String,
}

pub(crate) fn command() -> Command {
    Command::new("register")
        .about("Registers sandboxes, a JSON list of {id, socket, target}, and waits until all guests are reached")
        .arg(crate::path("control", "Control socket of the gateway"))
        .arg(crate::path("sandboxes", "File with the list"))
        .arg(crate::path("certificates", "Folder with the certificates"))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let list =
        std::fs::read(crate::given_path(matches, "sandboxes")).context("read the list of sandboxes")?;
    let sandboxes: Vec<Sandbox> = serde_json::from_slice(&list).context("the list of sandboxes")?;
    let tls = tls(matches)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let gateway = RemoteGateway::new(crate::given_path(matches, "control")).with_name("path-bench");
        for sandbox in &sandboxes {
            let spec = ProxySpec::new(&sandbox.id, &sandbox.socket, [sandbox.target.clone()])
                .with_connect_timeout(CONNECT)
                .with_tls(tls.clone());
            gateway.register(spec).await.with_context(|| format!("register {}", sandbox.id))?;
        }
        for sandbox in &sandboxes {
            let ready = gateway.wait_ready(&sandbox.id, CancellationToken::new()).await;
            ready.with_context(|| format!("the guest of {}", sandbox.id))?;
        }
        let levels: Vec<_> = gateway.list().await?.into_iter().map(|status| status.peer_level).collect();
        println!("{}", json!({ "levels": levels }));
        Ok(())
    })
}

/// Reads the client's side of the certificates in the folder that is given.
pub(crate) fn tls(matches: &ArgMatches) -> Result<TlsSpec> {
    let folder = crate::given_path(matches, "certificates");
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let key = read("client-key.pem")?;
    Ok(TlsSpec::new(
        read("ca.pem")?,
        read("client.pem")?,
        key,
        read("name").unwrap_or("podvm-path-bench".into()),
    ))
}

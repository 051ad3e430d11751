//! A cargo registry on loopback, served from a folder, for rehearsals of releases.
//!
//! Cargo is told that this registry stands in for crates.io (`replace-with`), so that the packages which are published
//! to it have the manifests that crates.io would get, byte for byte: no dependency names a registry. What the folder
//! does not have is answered from the packages of `Cargo.lock`, whose files cargo keeps in its cache. So nothing is
//! fetched from anywhere, and whoever builds from this registry gets the versions that the workspace is tested with.

mod entry;
mod publish;
mod server;
mod store;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use clap::{Arg, ArgMatches, Command};
use tokio::sync::oneshot;

use self::store::Store;
pub(crate) use self::upstream::Upstream;
use crate::context::Context;

/// The name under which cargo is told of the registry: `cargo publish --registry rehearsal`.
pub(crate) const NAME: &str = "rehearsal";

/// Describes `cargo xtask registry`.
pub(crate) fn command() -> Command {
    let folder = Arg::new("folder")
        .value_name("FOLDER")
        .required(true)
        .value_parser(clap::value_parser!(std::path::PathBuf))
        .help("Where the packages are kept; made when it is missing");
    Command::new("registry")
        .about("A cargo registry on loopback, to rehearse a release")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("serve")
                .about("Serves a folder until it is interrupted, and says how cargo finds it")
                .arg(folder),
        )
}

/// Runs `cargo xtask registry serve`.
///
/// # Errors
///
/// When the folder cannot be used, or another process serves it.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let sub = matches.subcommand_matches("serve").expect("clap demands the subcommand");
    let folder: &std::path::PathBuf = sub.get_one("folder").expect("clap demands the folder");
    let registry = Registry::serve(folder, Upstream::of_workspace(context)?)?;
    println!("# {} is served at {}.", folder.display(), registry.index());
    println!(
        "# Put these lines into .cargo/config.toml of a folder above the packages that shall use it, then"
    );
    println!(
        "# `cargo publish --registry {NAME}` publishes, and every build beneath that folder reads from here:\n"
    );
    print!("{}", registry.cargo_config());
    println!("\n# It ends with Ctrl-C.");
    registry.thread.wait();
    Ok(ExitCode::SUCCESS)
}

/// A registry that is served until the value is dropped. What was published stays in its folder.
pub(crate) struct Registry {
    store: Arc<Store>,
    address: SocketAddr,
    thread: Server,
}

impl Registry {
    /// Serves `folder`, which is made when it is missing, at the port it had before if that is free.
    ///
    /// # Errors
    ///
    /// When the folder cannot be used, or another process serves it.
    pub(crate) fn serve(folder: &Path, upstream: Upstream) -> Result<Self> {
        let store = Store::open(folder, upstream)?;
        // Cargo files what it fetched under the address: with the same one, an earlier download is of use again.
        let port = store.port().unwrap_or(0);
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = bind(port).or_else(|_| bind(0)).context("no port of 127.0.0.1 is free")?;
        let address = listener.local_addr()?;
        store.set_port(address.port())?;
        let store = Arc::new(store);
        let thread = Server::start(listener, server::routes(Arc::clone(&store), address))?;
        Ok(Self { store, address, thread })
    }

    /// The address of the index in the form that cargo takes.
    pub(crate) fn index(&self) -> String {
        format!("sparse+http://{}/index/", self.address)
    }

    /// What publishing demands.
    pub(crate) fn token(&self) -> &str {
        self.store.token()
    }

    /// A configuration with which cargo publishes to this registry and reads from it in place of crates.io.
    ///
    /// It belongs into `.cargo/config.toml` of a folder above the packages, or into `config.toml` of `CARGO_HOME`.
    pub(crate) fn cargo_config(&self) -> String {
        format!(
            "[registries.{NAME}]\nindex = \"{}\"\ntoken = \"{}\"\n\n[source.crates-io]\nreplace-with = \"{NAME}\"\n",
            self.index(),
            self.token()
        )
    }

    /// Lets the registry behave as one that is overloaded or slow.
    #[cfg(test)]
    pub(crate) fn faults(&self) -> &store::Faults {
        &self.store.faults
    }
}

/// A thread that answers requests; it ends when the value is dropped.
struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(listener: TcpListener, routes: axum::Router) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _guard = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            runtime.block_on(async {
                // Cargo keeps connections open: an end that waits for them would never come.
                tokio::select! {
                    _ = axum::serve(listener, routes) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Waits for an end that only a signal brings.
    fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;

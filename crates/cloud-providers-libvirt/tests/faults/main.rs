//! What goes wrong outside of the provider: libvirtd restarts, machines that pause or stay silent, storage and networks
//! that fail, names that others hold. With real machines, as root. Each test ends with a look by `virsh` for leftovers.

#[path = "../common/mod.rs"]
mod common;

mod boot;
mod names;
mod network;
mod remote;
mod restart;
mod storage;

use std::{
    future::Future,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use cloud_providers::{CreateRequest, Error, Instance, OpContext, names::instance_name};
use test_support::wait_for;

use common::Setup;

/// Long enough for anything on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the name of a request's domain.
fn name_of(request: &CreateRequest) -> String {
    instance_name(&request.unit.name_hint, &request.unit.id, 63).unwrap()
}

/// Waits until a domain is defined, by libvirt's own file: that asks nothing of libvirtd.
fn wait_defined(setup: &Setup, name: &str) -> Result<PathBuf> {
    let file = setup.libvirtd.dir().join(format!("etc/qemu/{name}.xml"));
    wait_for("the definition", LIMIT, || file.exists().then(|| file.clone()))
}

/// Waits until a machine runs, by its process.
fn wait_running(setup: &Setup, name: &str) -> Result<()> {
    wait_for("the machine's process", LIMIT, || {
        setup.libvirtd.qemu_processes().iter().any(|p| p.command.contains(name)).then_some(())
    })
}

/// Waits until libvirt has let a machine run, which is a little later.
fn wait_started(setup: &Setup, name: &str) -> Result<()> {
    wait_for("the machine to run", LIMIT, || {
        let state = setup.libvirtd.virsh(&["domstate", name]).ok()?;
        (state.trim() == "running").then_some(())
    })
}

/// Lets a create fail and returns its error and how long it took.
async fn failed(
    create: impl Future<Output = std::result::Result<Instance, Error>>,
) -> Result<(Error, Duration)> {
    let start = Instant::now();
    match create.await {
        Ok(instance) => bail!("made {instance:?}"),
        Err(error) => Ok((error, start.elapsed())),
    }
}

/// Starts a create beside the test.
fn spawn_create(
    provider: &std::sync::Arc<dyn cloud_providers::Provider>,
    request: &CreateRequest,
) -> tokio::task::JoinHandle<std::result::Result<Instance, Error>> {
    let (provider, request) = (provider.clone(), request.clone());
    tokio::spawn(async move { provider.create_instance(&OpContext::new(), &request).await })
}

/// Fails unless `text` holds every part.
fn assert_says(text: &str, parts: &[&str]) -> Result<()> {
    parts.iter().try_for_each(|part| {
        text.contains(part).then_some(()).with_context(|| format!("{part:?} is not in {text}"))
    })
}

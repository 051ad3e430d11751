//! Removes an instance completely, whatever there is of it.

use std::time::Duration;

use cloud_providers::{Error, ErrorKind, OpContext, Resource, Result};

use crate::{
    cgroups,
    host::Host,
    lock::NetworkLock,
    network::Network,
    process::{find_marked, forget_child},
    state::{Found, interface_of},
};

/// How long the kernel may take to end an instance's processes.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Names the folder of an instance as a resource.
pub(crate) fn folder_resource(host: &Host, id: &str) -> Resource {
    Resource::new("folder", host.data.folder(id).display().to_string())
}

/// Names the link of an instance as a resource.
pub(crate) fn link_resource(id: &str) -> Resource {
    Resource::new("network_interface", interface_of(id))
}

/// Names the control groups of an instance as a resource.
fn group_resource(host: &Host, id: &str) -> Resource {
    Resource::new("control_group", host.data.group(id))
}

/// Names the instance itself as a resource.
pub(crate) fn instance_resource(id: &str) -> Resource {
    Resource::new(Resource::INSTANCE, id)
}

/// Removes processes, control groups, link and folder of an instance, and the bridge with the last link.
///
/// Namespaces and mounts end with the last process. The folder goes last, so that a removal that is cut off is
/// found and finished by the next one. The caller holds the lock of the instance and has checked whose it is.
pub(crate) fn remove(host: &Host, id: &str) -> Result<()> {
    let mut problems: Vec<(Resource, Error)> = Vec::new();
    if let Err(error) = host.step("remove the processes", || kill(host, id)) {
        problems.push((instance_resource(id), error));
    } else if let Err(error) =
        host.step("remove the control groups", || cgroups::remove(&host.data.group(id)))
    {
        problems.push((group_resource(host, id), error));
    }
    if let Err(error) = host.step("remove the link", || detach(host, id)) {
        problems.push((link_resource(id), error));
    }
    if problems.is_empty()
        && let Err(error) = host.step("remove the folder", || host.data.remove(id))
    {
        problems.push((folder_resource(host, id), error));
    }
    if problems.is_empty() {
        return Ok(());
    }
    let text = problems.iter().map(|(_, e)| e.report()).collect::<Vec<_>>().join("; ");
    let mut left: Vec<Resource> = problems.into_iter().map(|(resource, _)| resource).collect();
    let folder = folder_resource(host, id);
    if !left.contains(&folder) && host.data.folder(id).exists() {
        left.push(folder);
    }
    Err(Error::new(ErrorKind::Transient, format!("cannot remove the instance: {text}"))
        .with("instance", id)
        .with_leftovers(left))
}

fn kill(host: &Host, id: &str) -> Result<()> {
    let marker = host.data.marker(id);
    let recorded = match host.data.read(id) {
        Found::Record(record) => record.process,
        Found::Nothing | Found::Damaged(_) => None,
    };
    let processes = match &recorded {
        Some(process) => process.open()?.into_iter().collect(),
        // Nobody wrote down its number: the creation was cut off, or the record is damaged.
        None => find_marked(&marker)?,
    };
    for process in processes {
        process.kill(KILL_LIMIT)?;
    }
    // A child of ours leaves a zombie even when its record is lost or tells of a later one.
    match forget_child(&marker) {
        Some(child) => child.open()?.map_or(Ok(()), |child| child.kill(KILL_LIMIT)),
        None => Ok(()),
    }
}

fn detach(host: &Host, id: &str) -> Result<()> {
    // Not the caller's context: a removal that has begun is finished.
    let mut network = Network::open()?;
    let _lock = NetworkLock::take_blocking(&OpContext::new())?;
    network.detach(&interface_of(id), &host.data.hash, id)?;
    network.remove_unused_bridge(&host.config)
}

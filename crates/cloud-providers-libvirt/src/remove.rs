//! Removes what was made: the machine, its volumes, and its definition last.
//!
//! The definition is the only record of what belongs to an instance, so it stays until everything else is gone: a
//! removal that was cut half-way is finished by its repetition.

use std::{future::Future, time::Duration};

use cloud_providers::{Error, ErrorKind, OpContext, Resource, Result};
use uuid::Uuid;
use virt::{
    connect::Connect,
    error::{Error as VirtError, ErrorNumber},
    storage_pool::StoragePool,
    storage_vol::StorageVol,
    sys,
};

use crate::{
    client::{CallResult, Client, Failed, Step, Turn, step},
    error::is_missing,
    look,
    xml::OwnVolume,
};

/// How often a step is tried, and the pause between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

const DESTROY: Step = step("virDomainDestroy", "cannot stop the machine");
const DELETE_VOLUME: Step = step("virStorageVolDelete", "cannot delete the volume");
const UNDEFINE: Step = step("virDomainUndefineFlags", "cannot remove the machine's definition");

/// A volume to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doomed {
    /// One that the instance's metadata names.
    Named(OwnVolume),
    /// One that is found by its path, for instances without metadata.
    AtPath(String),
}

impl Doomed {
    /// Returns how the volume is recorded.
    pub(crate) fn resource(&self) -> Resource {
        match self {
            Self::Named(volume) => volume_resource(volume),
            Self::AtPath(path) => Resource::new(VOLUME, path),
        }
    }
}

/// The kind of volumes in records.
pub(crate) const VOLUME: &str = "volume";

/// Returns how a volume is recorded.
pub(crate) fn volume_resource(volume: &OwnVolume) -> Resource {
    Resource::new(VOLUME, format!("{}/{}", volume.pool, volume.name))
}

/// Returns how an instance is recorded.
pub(crate) fn instance_resource(uuid: Uuid) -> Resource {
    Resource::new(Resource::INSTANCE, uuid.to_string())
}

/// Removes an instance with these volumes. What is missing already is fine.
///
/// # Errors
///
/// The first failure, with everything that is left.
pub(crate) async fn instance(
    ctx: &OpContext,
    client: &Client,
    turn: &Turn,
    uuid: Uuid,
    volumes: &[Doomed],
) -> Result<()> {
    let stopped =
        repeated(ctx, || client.effect(ctx, DESTROY, turn, move |c| destroy(c, uuid), |_, ()| {})).await;
    if let Err(error) = stopped {
        // The disks of a machine that may still run are left alone.
        let all = volumes.iter().map(Doomed::resource).chain([instance_resource(uuid)]);
        return Err(error.with_leftovers(all));
    }
    let failed = match self::volumes(ctx, client, turn, volumes).await {
        Ok(()) => {
            let undefined =
                repeated(ctx, || client.effect(ctx, UNDEFINE, turn, move |c| undefine(c, uuid), |_, ()| {}));
            undefined.await
        }
        failed => failed,
    };
    failed.map_err(|error| error.with_leftovers([instance_resource(uuid)]))
}

/// Deletes volumes whose instance is gone.
///
/// # Errors
///
/// The first failure, with everything that is left.
pub(crate) async fn volumes(ctx: &OpContext, client: &Client, turn: &Turn, doomed: &[Doomed]) -> Result<()> {
    let mut failed: Option<Error> = None;
    let mut left = Vec::new();
    for volume in doomed {
        let one = volume.clone();
        let deleted = repeated(ctx, || {
            let one = one.clone();
            client.effect(ctx, DELETE_VOLUME, turn, move |c| delete_volume(c, &one), |_, ()| {})
        });
        if let Err(error) = deleted.await {
            left.push(volume.resource());
            failed.get_or_insert(error.with("volume", volume.resource().id));
        }
    }
    failed.map_or(Ok(()), |error| Err(error.with_leftovers(left)))
}

/// Tries a step again after passing errors: every step here may be repeated.
async fn repeated<F>(ctx: &OpContext, mut call: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = std::result::Result<(), Failed>>,
{
    let mut tries = 1;
    loop {
        match call().await {
            Ok(()) => return Ok(()),
            Err(failed) if tries < TRIES && *failed.error.kind() == ErrorKind::Transient => tries += 1,
            Err(failed) => return Err(failed.error),
        }
        ctx.sleep(PAUSE).await?;
    }
}

/// Ends a machine in whatever active state it is.
fn destroy(connection: &Connect, uuid: Uuid) -> CallResult<()> {
    let Some(domain) = look::domain(connection, uuid)? else { return Ok(()) };
    match domain.destroy() {
        Ok(()) => Ok(()),
        // It is not running.
        Err(error) if is_missing(&error) || error.code() == ErrorNumber::OperationInvalid => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a definition with everything that libvirt keeps beside it.
fn undefine(connection: &Connect, uuid: Uuid) -> CallResult<()> {
    let Some(domain) = look::domain(connection, uuid)? else { return Ok(()) };
    let all = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
    let refused = |e: &VirtError| matches!(e.code(), ErrorNumber::NoSupport | ErrorNumber::InvalidArg);
    // Drivers refuse flags that they do not know.
    let result = match domain.undefine_flags(all) {
        Err(error) if refused(&error) => match domain.undefine_flags(sys::VIR_DOMAIN_UNDEFINE_NVRAM) {
            Err(error) if refused(&error) => domain.undefine(),
            other => other,
        },
        other => other,
    };
    match result {
        Err(error) if is_missing(&error) => Ok(()),
        other => Ok(other?),
    }
}

fn delete_volume(connection: &Connect, doomed: &Doomed) -> CallResult<()> {
    let found = match doomed {
        Doomed::Named(volume) => match StoragePool::lookup_by_name(connection, &volume.pool) {
            Ok(pool) => look::volume(&pool, &volume.name)?,
            Err(error) if is_missing(&error) => {
                // Nobody could ever finish this deletion.
                tracing::warn!(
                    provider = crate::NAME,
                    pool = volume.pool,
                    volume = volume.name,
                    "the storage pool is gone; what its folder holds of the instance is not deleted"
                );
                None
            }
            Err(error) => return Err(error.into()),
        },
        Doomed::AtPath(path) => match StorageVol::lookup_by_path(connection, path) {
            Ok(volume) => Some(volume),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(error.into()),
        },
    };
    match found.map(|volume| volume.delete(0)) {
        Some(Err(error)) if !is_missing(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Takes back a definition that appeared after its maker gave up.
pub(crate) fn late_definition(connection: &Connect, domain: Uuid) {
    let _ = undefine(connection, domain);
}

/// Takes back a start that happened after its maker gave up.
pub(crate) fn late_start(connection: &Connect, uuid: Uuid) {
    let _ = destroy(connection, uuid);
}

/// Takes back a volume that appeared after its maker gave up, unless an instance that exists names it.
pub(crate) fn late_volume(connection: &Connect, instance: Uuid, volume: &OwnVolume) {
    if matches!(look::domain(connection, instance), Ok(None)) {
        let _ = delete_volume(connection, &Doomed::Named(volume.clone()));
    }
}

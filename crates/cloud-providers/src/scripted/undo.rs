//! Taking back what was made, and finding what may have been made.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    DISK, INSTANCE_TAG, INTERFACE,
    provider::{POLL, ScriptedProvider},
    world::Remote,
};
use crate::{Error, ErrorKind, OpContext, Resource, Result, Token, tags};

/// The longest that an undo may take.
const LIMIT: Duration = Duration::from_secs(600);
/// How often a removal is tried.
const TRIES: u32 = 3;

/// What a create has done so far.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Made by this call.
    pub(super) resources: Vec<Resource>,
    /// Something of this token was there before. Then this call takes back only what it knows it made.
    pub(super) adopted: bool,
    /// A call that makes something ended without telling whether it did.
    pub(super) unclear: bool,
}

/// Returns whether a call that ended with `error` may have taken effect.
pub(super) fn is_unclear(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Transient | ErrorKind::Cancelled | ErrorKind::Internal)
}

impl ScriptedProvider {
    /// Takes back a failed create and returns what is left, each of it recorded.
    pub(super) async fn undo(&self, ctx: &OpContext, token: &Token, made: Made) -> Vec<Resource> {
        // The call may be cancelled or late; its undo has its own time.
        let ctx = ctx.for_undo(LIMIT);
        let mut todo = made.resources;
        let mut left = Vec::new();
        if made.unclear {
            // Kept in the record, so that whoever reads it releases the token.
            let unconfirmed = Resource::new("unconfirmed", token.tag_value());
            let found = match made.adopted {
                true => None,
                false => self.find_settled(&ctx, tags::TOKEN, &token.tag_value()).await.ok(),
            };
            match found {
                Some(found) => {
                    todo.extend(found.into_iter().map(|r| r.resource));
                    todo.sort();
                    todo.dedup();
                }
                None => left.push(unconfirmed),
            }
        }
        if let Some(instance) = todo.iter().find(|r| r.kind == Resource::INSTANCE) {
            for part in todo.iter().filter(|r| r.kind != Resource::INSTANCE) {
                // What cannot be tied may go all the same: the error comes from its removal.
                let _ = self.tie(&ctx, part, &instance.id).await;
            }
        }
        left.extend(self.remove_all(&ctx, todo).await.into_iter().map(|(resource, _)| resource));
        for resource in &left {
            // The error tells it as well, so a recorder that fails now loses nothing.
            let _ = ctx.record(resource).await;
        }
        left
    }

    /// Writes on a part which instance it belongs to, before that one goes: if the removal is cut off, a deletion of the
    /// instance finds it.
    pub(super) async fn tie(&self, ctx: &OpContext, part: &Resource, instance: &str) -> Result<()> {
        let tag = BTreeMap::from([(INSTANCE_TAG.to_owned(), instance.to_owned())]);
        match self.remote(ctx, self.world.tag_resource(&part.id, tag)).await {
            Err(error) if *error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists until changes made before this call must show.
    pub(super) async fn find_settled(&self, ctx: &OpContext, key: &str, value: &str) -> Result<Vec<Remote>> {
        let lag = self.world.lag();
        let end = Instant::now() + lag.time;
        let mut all: Vec<Remote> = Vec::new();
        let mut lists = 0;
        loop {
            for remote in self.find(ctx, key, value).await? {
                if !all.iter().any(|r| r.resource == remote.resource) {
                    all.push(remote);
                }
            }
            lists += 1;
            if lists > lag.calls && Instant::now() >= end {
                return Ok(all);
            }
            ctx.sleep(POLL).await?;
        }
    }

    /// Removes everything, and makes an error of what is left.
    pub(super) async fn remove_or_report(&self, ctx: &OpContext, todo: Vec<Resource>) -> Result<()> {
        let left = self.remove_all(ctx, todo).await;
        let Some((_, first)) = left.first() else { return Ok(()) };
        let error = first.clone();
        Err(error.with_leftovers(left.into_iter().map(|(resource, _)| resource)))
    }

    /// Removes instances first, since disks and interfaces stay in use until then. Goes on after a failure.
    async fn remove_all(&self, ctx: &OpContext, mut todo: Vec<Resource>) -> Vec<(Resource, Error)> {
        todo.sort_by_key(|r| match r.kind.as_str() {
            Resource::INSTANCE => 0,
            INTERFACE => 1,
            DISK => 2,
            _ => 3,
        });
        let mut left = Vec::new();
        for resource in todo {
            if let Err(error) = self.remove(ctx, &resource).await {
                left.push((resource, error));
            }
        }
        left
    }

    async fn remove(&self, ctx: &OpContext, resource: &Resource) -> Result<()> {
        let mut tries = 1;
        loop {
            ctx.check()?;
            let result = async {
                if resource.kind != Resource::INSTANCE {
                    return self.remote(ctx, self.world.delete_resource(resource)).await;
                }
                self.remote(ctx, self.world.terminate_instance(&resource.id)).await?;
                self.wait_gone(ctx, &resource.id).await
            };
            match result.await {
                Ok(()) => return Ok(()),
                Err(error) if *error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) if tries < TRIES && *error.kind() == ErrorKind::Transient => tries += 1,
                Err(error) => return Err(error),
            }
            ctx.sleep(POLL).await?;
        }
    }
}

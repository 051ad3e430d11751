//! The remote calls that the double's cloud offers.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{
    DISK, INTERFACE, VOLUME,
    world::{Remote, World},
};
use crate::{Error, ErrorKind, Resource, Result, UserData};

/// Tags of a resource.
pub(super) type Tags = BTreeMap<String, String>;

/// What `run_instance` answers.
pub(super) struct Run {
    pub(super) id: String,
    /// `false` when the idempotency value was seen before.
    pub(super) created: bool,
    /// `false` when the instance of that earlier call is gone.
    pub(super) alive: bool,
}

/// What `run_instance` takes.
pub(super) struct RunRequest<'a> {
    pub(super) name: &'a str,
    pub(super) client_token: &'a str,
    pub(super) parameters: &'a str,
    pub(super) tags: Tags,
    pub(super) attached: Vec<Resource>,
    pub(super) user_data: UserData,
}

/// Code of an error: the name is taken.
pub(super) const EXISTS: &str = "AlreadyExists";

fn exists(kind: &str, name: &str) -> Error {
    Error::new(ErrorKind::Conflict, "the name is taken")
        .with("kind", kind)
        .with("name", name)
        .with_cloud(EXISTS, "a resource of this name exists")
}

impl World {
    pub(super) async fn describe_account(&self) -> Result<()> {
        self.call("describe_account", "", |_| Ok(())).await
    }

    /// Returns one page of everything whose tag `key` is `value`, and the next page's mark.
    pub(super) async fn list_resources(
        &self,
        key: &str,
        value: &str,
        after: Option<String>,
    ) -> Result<(Vec<Remote>, Option<String>)> {
        self.call("list_resources", "", |state| {
            let page = state.page;
            let mut rest = state
                .listed()
                .filter(|r| r.tags.get(key).is_some_and(|v| v == value))
                .filter(|r| after.as_ref().is_none_or(|a| r.resource.id > *a));
            let entries: Vec<Remote> = rest.by_ref().take(page).cloned().collect();
            let next = rest.next().and(entries.last().map(|r| r.resource.id.clone()));
            Ok((entries, next))
        })
        .await
    }

    pub(super) async fn get_by_name(&self, kind: &str, name: &str) -> Result<Option<Remote>> {
        self.call("get_by_name", name, |state| Ok(state.by_name(kind, name).cloned())).await
    }

    pub(super) async fn get_resource(&self, id: &str) -> Result<Remote> {
        self.call("get_resource", id, |state| state.by_id(id).cloned()).await
    }

    /// Returns what an instance wrote to its console.
    pub(super) async fn get_console(&self, id: &str) -> Result<Vec<u8>> {
        self.call("get_console", id, |state| {
            state.by_id(id)?;
            Ok(state.console.clone())
        })
        .await
    }

    pub(super) async fn create_disk(&self, name: &str, tags: Tags) -> Result<String> {
        self.create("create_disk", DISK, name, tags).await
    }

    pub(super) async fn create_interface(&self, name: &str, tags: Tags) -> Result<String> {
        self.create("create_interface", INTERFACE, name, tags).await
    }

    async fn create(&self, operation: &'static str, kind: &str, name: &str, tags: Tags) -> Result<String> {
        self.call(operation, name, |state| match state.by_name(kind, name) {
            Some(_) => Err(exists(kind, name)),
            None => Ok(state.insert(kind, name, tags, Vec::new())),
        })
        .await
    }

    pub(super) async fn run_instance(&self, request: RunRequest<'_>) -> Result<Run> {
        self.call("run_instance", request.name, |state| {
            if let Some((parameters, id)) = state.replays.get(request.client_token) {
                if parameters != request.parameters {
                    return Err(Error::new(ErrorKind::Conflict, "the idempotency value was used before")
                        .with_cloud("IdempotentParameterMismatch", "parameters differ"));
                }
                let id = id.clone();
                let alive = state.by_id(&id).is_ok_and(|r| !r.is_going());
                return Ok(Run { id, created: false, alive });
            }
            if state.by_name(Resource::INSTANCE, request.name).is_some() {
                return Err(exists(Resource::INSTANCE, request.name));
            }
            for resource in &request.attached {
                state.by_id(&resource.id)?;
            }
            let id = state.insert(Resource::INSTANCE, request.name, request.tags, request.attached);
            state.by_id(&id)?.user_data = request.user_data;
            state
                .replays
                .insert(request.client_token.to_owned(), (request.parameters.to_owned(), id.clone()));
            Ok(Run { id, created: true, alive: true })
        })
        .await
    }

    pub(super) async fn tag_resource(&self, id: &str, tags: Tags) -> Result<()> {
        self.call("tag_resource", id, |state| {
            state.by_id(id)?.tags.extend(tags);
            Ok(())
        })
        .await
    }

    /// Returns the instance and whether it is up.
    pub(super) async fn get_instance(&self, id: &str) -> Result<(Remote, bool)> {
        self.call("get_instance", id, |state| {
            let remote = state.by_id(id)?;
            if remote.resource.kind != Resource::INSTANCE {
                return Err(Error::new(ErrorKind::NotFound, "no such instance").with("id", id));
            }
            let up = !remote.is_going() && Instant::now() >= remote.ready_at;
            Ok((remote.clone(), up))
        })
        .await
    }

    pub(super) async fn terminate_instance(&self, id: &str) -> Result<()> {
        self.call("terminate_instance", id, |state| {
            let delay = state.shutdown;
            state.remove(id, delay)
        })
        .await
    }

    /// Deletes a disk or interface; refused while an instance has it.
    pub(super) async fn delete_resource(&self, resource: &Resource) -> Result<()> {
        let operation = if resource.kind == DISK { "delete_disk" } else { "delete_interface" };
        self.call(operation, &resource.id, |state| {
            let now = Instant::now();
            if let Some(user) = state
                .resources
                .values()
                .find(|r| r.exists(now) && r.attached.iter().any(|a| a.id == resource.id))
            {
                return Err(Error::new(ErrorKind::Conflict, "the resource is in use")
                    .with("by", &user.resource.id)
                    .with_cloud("InUse", ""));
            }
            if state.by_id(&resource.id)?.resource.kind == VOLUME {
                return Err(Error::internal("the double was about to delete a volume of the user"));
            }
            state.remove(&resource.id, std::time::Duration::ZERO)
        })
        .await
    }
}

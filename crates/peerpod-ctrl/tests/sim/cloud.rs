//! A program's connection to the clouds: the scripted provider behind faults, and the rules about what may be deleted.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, OwnedList, Ownership,
    Provider, Result, Scope, Token,
    scripted::{Gate, Remote, ScriptedProvider},
    tags,
};
use peerpod_api::Facts;
use tokio::time::Instant;

use crate::{
    node::account_name,
    server::{Server, key_of},
    sim::{Fault, Link, Point, Program, Sandbox, Sim},
};

const REMOTE_FAULTS: [Fault; 4] =
    [Fault::Error, Fault::Hang, Fault::Crash, Fault::Delay(Duration::from_secs(5))];
const SLOW_FAULTS: [Fault; 3] = [Fault::Error, Fault::Crash, Fault::Delay(Duration::from_secs(5))];
/// The record was read so long before a deletion begins at most.
const READ_LIMIT: Duration = Duration::from_secs(100);

/// No simulated time is later, and no real one is earlier.
const REAL: u64 = 1_750_000_000;

/// The remote calls that pod VMs lead to.
pub(crate) const REMOTE: [&str; 10] = [
    "get_resource",
    "list_resources",
    "create_disk",
    "create_interface",
    "run_instance",
    "tag_resource",
    "get_instance",
    "terminate_instance",
    "delete_disk",
    "delete_interface",
];

/// One program's connection to one cloud.
#[derive(Clone)]
pub(crate) struct View {
    sim: Sim,
    server: Server,
    program: Program,
    account: usize,
}

/// Stands between a program and the cloud.
struct CloudGate(View);

fn scripted() -> Error {
    Error::new(ErrorKind::Transient, "scripted failure of the cloud")
}

#[async_trait]
impl Gate for CloudGate {
    async fn before(&self, operation: &'static str, target: &str) -> Result<()> {
        let view = &self.0;
        let point = Point("cloud", operation, "before");
        view.sim.pass(&view.program, point, target, &REMOTE_FAULTS).await.map_err(|()| scripted())?;
        if view.sim.is_cut(&view.program, Link::Cloud) {
            return Err(Error::new(ErrorKind::Transient, "the link to the cloud is cut"));
        }
        Ok(())
    }

    async fn after(&self, operation: &'static str, target: &str) -> Result<()> {
        let view = &self.0;
        match operation {
            "terminate_instance" => view.check_terminated(target),
            "create_disk" | "create_interface" | "run_instance" => view.stamp(),
            _ => {}
        }
        let point = Point("cloud", operation, "after");
        view.sim.pass(&view.program, point, target, &REMOTE_FAULTS).await.map_err(|()| scripted())
    }
}

impl View {
    /// The double writes the time of the machine it runs on: it becomes that of the program's clock.
    fn stamp(&self) {
        let world = &self.sim.clouds[self.account];
        let real = |r: &Remote| {
            r.tags.get(tags::CREATED).and_then(|t| t.parse().ok()).is_some_and(|t: u64| t > REAL)
        };
        for remote in world.resources().iter().filter(|r| real(r)) {
            let now = self.program.unix(&self.sim).to_string();
            // It is there: nothing happens between the two lines.
            let _ = world.set_tag(&remote.resource.id, tags::CREATED, Some(&now));
        }
    }

    /// An instance was told to go: nobody may need it.
    fn check_terminated(&self, instance: &str) {
        let (sim, who) = (&self.sim, &self.program.name);
        let unit = sim.unit_of(self.account, instance).unwrap_or_default();
        // A daemon undoes a start that fails; everybody else has to wait for its end.
        let needed = |s: &Sandbox| s.wanted && (s.ready || self.program.is_controller);
        let wanted = sim.state().sandboxes.get(&unit).is_some_and(needed);
        if wanted {
            sim.violation(format_args!("{who} deletes the VM {instance} of the living sandbox {unit}"));
        }
        if sim.state().foreign.contains(&format!("{}/{instance}", self.account)) {
            sim.violation(format_args!("{who} deletes {instance}, which belongs to somebody else"));
        }
        let mut state = sim.state();
        match self.program.is_controller {
            true => state.counts.by_controllers += 1,
            false => state.counts.by_daemons += 1,
        }
    }

    /// A controller begins to delete what carries a token, or an instance.
    ///
    /// Returns whether a record names it.
    fn check_beginning(&self, named: impl Fn(&Facts) -> bool) -> bool {
        let (sim, who) = (&self.sim, &self.program.name);
        if !self.program.is_controller {
            return true;
        }
        if sim.leadership(&self.program).is_none() {
            sim.violation(format_args!("{who} deletes, and does not lead"));
        }
        let objects = self.server.objects();
        let account = account_name(self.account);
        let of_account = |facts: &Facts| facts.provider.as_deref() == Some(&account) && named(facts);
        let Some(object) = objects.iter().find(|o| of_account(&Facts::of(o))) else {
            // Its daemon may have been quicker, between the controller's last look at the record and the deletion.
            return self.server.gone_lately(READ_LIMIT).iter().any(|object| {
                let uid = object.metadata.uid.as_deref().unwrap_or_default();
                let read = self.server.last_read(who, uid);
                of_account(&Facts::of(object)) && read.is_some_and(|read| read.elapsed() <= READ_LIMIT)
            });
        };
        let facts = Facts::of(object);
        let key = key_of(object);
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let (asked, doomed, protected) = self.server.moments(uid);
        if asked.is_none() {
            sim.violation(format_args!("{who} deletes what {key} names, and nobody asked for its deletion"));
        }
        let lost = facts.node.is_none_or(|node| !self.server.has_node(&node));
        if !lost && doomed.is_some_and(|since| since.elapsed() < sim.profile.daemon_grace) {
            sim.violation(format_args!("{who} deletes what {key} names before the daemon had its time"));
        }
        let read = self.server.last_read(who, uid);
        // Between reading it and the deletion it may be protected, and nobody knows.
        let knew = |since: Instant| read.is_none_or(|read| read >= since || read.elapsed() > READ_LIMIT);
        if protected.is_some_and(knew) {
            sim.violation(format_args!("{who} deletes what {key} names, which is protected"));
        }
        true
    }

    /// A sweep begins to delete what carries a token, and no record names it.
    fn check_orphan(&self, token: &Token) {
        let (sim, who) = (&self.sim, &self.program.name);
        let Some(number) = sim.leadership(&self.program) else { return };
        sim.sweeps(number);
        if sim.state().cut_lists.contains(&(number, self.account)) {
            sim.violation(format_args!("{who} deletes an orphan of a list that has no end"));
        }
        let since = sim.state().orphans.get(&token.tag_value()).copied();
        if since.is_some_and(|since| since.elapsed() < sim.profile.orphan_grace) {
            sim.violation(format_args!("{who} deletes the orphan {token} before its time"));
        }
    }
}

/// The scripted provider with faults around its operations.
pub(crate) struct SimProvider {
    scripted: ScriptedProvider,
    view: View,
}

impl std::fmt::Debug for SimProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimProvider")
    }
}

impl SimProvider {
    pub(crate) fn new(server: &Server, program: &Program, account: usize) -> Self {
        let sim = server.sim.clone();
        let view = View { sim: sim.clone(), server: server.clone(), program: program.clone(), account };
        let world = sim.clouds[account].gated(Arc::new(CloudGate(view.clone())));
        Self { scripted: ScriptedProvider::new(&world), view }
    }

    async fn pass(
        &self,
        operation: &'static str,
        moment: &'static str,
        subject: &str,
        kinds: &[Fault],
    ) -> Result<()> {
        let point = Point("provider", operation, moment);
        self.view.sim.pass(&self.view.program, point, subject, kinds).await.map_err(|()| scripted())
    }
}

#[async_trait]
impl Provider for SimProvider {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        self.pass("create", "before", &request.unit.id, &SLOW_FAULTS).await?;
        self.scripted.create_instance(ctx, request).await
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        self.pass("delete", "before", id.as_str(), &REMOTE_FAULTS).await?;
        let tag = self.view.sim.clouds[self.view.account]
            .resources()
            .into_iter()
            .find(|r| r.resource.id == id.as_str())
            .and_then(|r| r.tags.get(tags::TOKEN).cloned());
        self.view.check_beginning(|facts| {
            let same = facts.token.as_ref().is_some_and(|token| Some(token.tag_value()) == tag);
            same || facts.instance.as_ref() == Some(id)
        });
        self.scripted.delete_instance(ctx, id, ownership).await?;
        self.pass("delete", "after", id.as_str(), &REMOTE_FAULTS).await
    }

    async fn teardown(&self) -> Result<()> {
        self.scripted.teardown().await
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        self.pass("list", "before", "", &SLOW_FAULTS).await?;
        let mut list = self.scripted.list_owned(ctx, scope).await?;
        let sim = &self.view.sim;
        // Some clouds lose a page and say so.
        if sim.state().faults_on && sim.chance(25) {
            let keep = list.entries.len().div_ceil(2);
            list.entries.truncate(keep);
            list.complete = false;
        }
        if let Some(number) = sim.leadership(&self.view.program) {
            let of = (number, self.view.account);
            let mut state = sim.state();
            match list.complete {
                true => drop(state.cut_lists.remove(&of)),
                false => drop(state.cut_lists.insert(of)),
            }
        }
        self.pass("list", "after", "", &SLOW_FAULTS).await?;
        Ok(list)
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        self.pass("release", "before", &token.unit, &REMOTE_FAULTS).await?;
        if !self.view.check_beginning(|facts| facts.token.as_ref() == Some(token)) {
            self.view.check_orphan(token);
        }
        self.scripted.release(ctx, token).await?;
        self.pass("release", "after", &token.unit, &REMOTE_FAULTS).await
    }

    fn capabilities(&self) -> Capabilities {
        self.scripted.capabilities()
    }
}

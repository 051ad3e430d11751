//! Pods: what becomes of them, of their sandboxes, and what people do to their records.

use std::time::Duration;

use cloud_providers::{Resource, Scope, Token, tags};
use peerpod_api::{Claim, PodOwner, names, writes};
use peerpod_ctrl::model::{Key, Pod};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    node::{Node, account_name, record_key},
    server::{Server, key_of},
    sim::{Sandbox, Sim},
};

const SECOND: Duration = Duration::from_secs(1);

/// How a pod ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its deletion is asked for and the kubelet stops it.
    Graceful,
    /// The same, and what it owns goes first.
    Foreground,
    /// It is removed by force; the kubelet stops it later.
    Force,
    /// Everything in it ended for good; its object stays for a while.
    Over,
    /// It outlives the run.
    Never,
}

/// One pod, from its first sandbox to its last trace.
pub(crate) struct Life {
    sim: Sim,
    server: Server,
    node: Node,
    pod: Pod,
    /// The sandbox of the moment.
    sandbox: Option<String>,
    serial: u32,
    index: usize,
}

impl Life {
    pub(crate) async fn run(node: Node, index: usize, immortal: bool) {
        let (sim, server) = (node.sim.clone(), node.server.clone());
        sleep(sim.millis(0..120_000)).await;
        // Every third one is of a StatefulSet: a pod of the same name comes after it.
        let name = if index % 3 == 2 { format!("db-{index}") } else { format!("web-{index}-x7k2p") };
        let rounds = if index % 3 == 2 { 2 } else { 1 };
        for round in 0..rounds {
            let pod = server.add_pod(&name, &node.name);
            sim.state().counts.pods += 1;
            let (sandbox, serial) = (None, round * 100);
            let mut life = Self {
                sim: sim.clone(),
                server: server.clone(),
                node: node.clone(),
                pod,
                sandbox,
                serial,
                index,
            };
            life.live(immortal).await;
            if immortal {
                return;
            }
        }
    }

    async fn live(&mut self, immortal: bool) {
        let ends = [End::Graceful, End::Graceful, End::Foreground, End::Force, End::Over];
        let end = if immortal { End::Never } else { self.sim.pick(&ends) };
        self.sim.log(format_args!("pod {} will end as {end:?}", self.pod.key));
        let mut steps = self.sim.pick(&[1, 2, 4]);
        loop {
            self.ensure_sandbox().await;
            if steps == 0 && (end != End::Never || self.sandbox.is_some()) {
                break;
            }
            steps -= i32::from(steps > 0);
            sleep(self.sim.millis(1_000..150_000)).await;
            match self.sim.pick(&[0, 1, 2, 3]) {
                // The sandbox fails: the kubelet makes another one for the same pod.
                0 | 1 => self.drop_sandbox(70).await,
                // Somebody deletes the record of a pod that lives.
                2 if self.sim.chance(50) => self.delete_record(),
                2 if self.sim.chance(40) => self.strip_record(),
                _ => {}
            }
            if self.node.over.is_cancelled() {
                break;
            }
        }
        match end {
            End::Never => self.outlive().await,
            _ => self.end(end).await,
        }
    }

    /// Has a sandbox made where there is none. A start may fail.
    async fn ensure_sandbox(&mut self) {
        if self.sandbox.is_some() || self.node.over.is_cancelled() {
            return;
        }
        self.serial += 1;
        let id =
            format!("{:02x}{:04x}{:08x}", self.index, self.serial, self.sim.millis(0..1 << 30).as_millis());
        let account = self.sim.pick(&(0..self.sim.profile.accounts).collect::<Vec<_>>());
        {
            let (mut state, pod) = (self.sim.state(), self.pod.clone());
            state.sandboxes.insert(id.clone(), Sandbox { wanted: true, ready: false, account, pod });
            state.counts.sandboxes += 1;
        }
        if self.node.start(&id, &self.pod, account).await {
            self.sim.state().sandboxes.get_mut(&id).unwrap().ready = true;
            self.sandbox = Some(id);
        } else {
            self.unwant(&id);
            self.node.stop(&id).await;
        }
    }

    fn unwant(&self, id: &str) {
        self.sim.log(format_args!("nobody wants {id} any more"));
        if let Some(sandbox) = self.sim.state().sandboxes.get_mut(id) {
            (sandbox.wanted, sandbox.ready) = (false, false);
        }
    }

    /// Ends the sandbox; the shim may be dead and say nothing.
    async fn drop_sandbox(&mut self, percent: u32) {
        let Some(id) = self.sandbox.take() else { return };
        self.unwant(&id);
        if self.sim.chance(percent) {
            self.node.stop(&id).await;
        }
    }

    fn delete_record(&self) {
        let Some(id) = &self.sandbox else { return };
        self.sim.log(format_args!("somebody deletes the record of {id}"));
        let _ = self.server.delete(&record_key(&self.pod, id), None);
    }

    fn strip_record(&self) {
        if let Some(id) = &self.sandbox {
            self.server.strip(&record_key(&self.pod, id));
        }
    }

    /// Marks the record as protected, and takes that back when the run's faults are over.
    fn protect(&self, id: Option<&str>) {
        let Some(id) = id else { return };
        let key = record_key(&self.pod, id);
        self.sim.log(format_args!("somebody protects {key}"));
        let patch = |value: Option<&str>| json!({"metadata": {"annotations": {names::PROTECT: value}}});
        let _ = self.server.patch(&key, &patch(Some("true")), true);
        let (server, sim) = (self.server.clone(), self.sim.clone());
        tokio::spawn(async move {
            while sim.state().faults_on {
                sleep(SECOND * 30).await;
            }
            sleep(SECOND * 900).await;
            sim.log(format_args!("nobody protects {key} any more"));
            let _ = server.patch(&key, &patch(None), true);
        });
    }

    async fn end(&mut self, end: End) {
        let (sim, server, pod) = (self.sim.clone(), self.server.clone(), self.pod.clone());
        let grace = sim.pick(&[0, 30, 300]);
        sim.log(format_args!("pod {} ends: {end:?}, {grace} s", pod.key));
        match end {
            End::Graceful | End::Foreground => {
                server.change_pod(&pod, |state| {
                    state.asked = Some(tokio::time::Instant::now());
                    (state.pod.deleting, state.pod.grace_seconds) = (true, grace);
                    state.foreground = end == End::Foreground;
                });
                // The kubelet ends it within its grace time; after that nobody counts on it.
                sleep(sim.millis(0..grace * 1000 + 1)).await;
            }
            End::Over => server.change_pod(&pod, |state| state.pod.over = true),
            End::Force => {
                if let Some(id) = &self.sandbox {
                    self.unwant(id);
                }
                server.remove_pod(&pod);
                sleep(sim.millis(0..120_000)).await;
            }
            End::Never => {}
        }
        let id = self.sandbox.clone();
        if sim.chance(15) {
            self.protect(id.as_deref());
        }
        self.drop_sandbox(60).await;
        sleep(sim.millis(0..if end == End::Over { 600_000 } else { 20_000 })).await;
        let begun = tokio::time::Instant::now();
        // In the foreground the object stays until what it owns is gone.
        while end == End::Foreground && server.owns_something(&pod) && begun.elapsed() < SECOND * 3600 {
            sleep(SECOND * 5).await;
        }
        server.remove_pod(&pod);
        if sim.chance(30) {
            // In the last moment.
            sleep(sim.millis(0..150_000)).await;
            self.protect(id.as_deref());
        }
    }

    /// Lives on, with a sandbox whenever that is possible.
    async fn outlive(&mut self) {
        while self.sandbox.is_none() && !self.node.over.is_cancelled() {
            sleep(SECOND * 30).await;
            self.ensure_sandbox().await;
        }
        if self.node.over.is_cancelled() {
            self.end(End::Force).await;
        }
    }
}

/// Puts what nobody can act on, and what belongs to others, into the cluster and the clouds.
pub(crate) fn populate(server: &Server) {
    let sim = &server.sim;
    let other = Scope::Cluster("other".into());
    for (n, cloud) in sim.clouds.iter().enumerate() {
        let id = add_vm(sim, n, &format!("elsewhere-{n}"), &other);
        sim.state().foreign.insert(format!("{n}/{id}"));
        let id = cloud.add(Resource::INSTANCE, "handmade", &[]);
        sim.state().foreign.insert(format!("{n}/{id}"));
    }
    if sim.chance(30) {
        // Somebody keeps one for a look at it.
        let id = add_vm(sim, 0, "kept", &sim.scope);
        sim.clouds[0].set_tag(&id, tags::PROTECT, Some("true")).unwrap();
        sim.state().foreign.insert(format!("0/{id}"));
    }
    if sim.chance(30) {
        // A record that was copied from another cluster, with the pod that owned it there.
        let token = Token::new(other, "elsewhere-0", 1);
        let vm = sim.tagged(tags::TOKEN, &token.tag_value(), true).remove(0);
        let mut claim = Claim::new("elsewhere-0", token, PodOwner::new("default", "copied", "uid-elsewhere"));
        (claim.provider, claim.node) = (account_name(0), Some("node-elsewhere".into()));
        odd(server, &claim, Some(&vm), Some(format!("0/{vm}")));
    }
    if sim.chance(20) {
        let token = Token::new(sim.scope.clone(), "nowhere", 1);
        let mut claim = Claim::new("nowhere", token, PodOwner::new("default", "nowhere", "uid-nowhere"));
        claim.provider = "nowhere".into();
        odd(server, &claim, Some("s-nowhere"), None);
    }
    if sim.chance(20) {
        // As the existing daemon leaves it when it cannot write the id.
        let owner = PodOwner::new("default", "empty", "uid-empty");
        let mut object = writes::early(&Claim::new("x", Token::new(sim.scope.clone(), "x", 1), owner));
        (object.metadata.name, object.metadata.annotations) = (Some("empty".into()), None);
        object.spec = Default::default();
        object.spec.cloud_provider = Some(account_name(0));
        object.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        let object = server.create(object).unwrap();
        sim.state().odd.insert(key_of(&object), None);
    }
}

/// Puts what nobody knows of into the clouds, now and then, a few at a time.
pub(crate) async fn orphans(sim: Sim) {
    let rounds = sim.pick(&[0, 1, 2]);
    for round in 0..rounds {
        sleep(sim.millis(0..600_000)).await;
        if !sim.state().faults_on {
            return;
        }
        for n in 0..sim.pick(&[1, 2, 12]) {
            let unit = format!("orphan-{round}-{n}");
            add_vm(&sim, 0, &unit, &sim.scope);
            let token = Token::new(sim.scope.clone(), unit, 1);
            sim.log(format_args!("an orphan {token}"));
            sim.state().orphans.insert(token.tag_value(), tokio::time::Instant::now());
        }
    }
}

fn odd(server: &Server, claim: &Claim, instance: Option<&str>, vm: Option<String>) {
    let mut object = writes::early(claim);
    object.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
    object.spec.instance_id = instance.map(Into::into);
    let key: Key = key_of(&server.create(object).unwrap());
    server.sim.state().odd.insert(key, vm);
}

/// An instance that no daemon of ours made.
pub(crate) fn add_vm(sim: &Sim, account: usize, unit: &str, scope: &Scope) -> String {
    let token = Token::new(scope.clone(), unit, 1);
    let (scope, text, value) = (tags::encode_value(&scope.to_string()), token.to_string(), token.tag_value());
    let created = sim.unix().to_string();
    let all = [
        (tags::SCOPE, scope.as_str()),
        (tags::TOKEN, value.as_str()),
        (tags::TOKEN_TEXT, text.as_str()),
        (tags::UNIT, unit),
        (tags::CREATED, created.as_str()),
    ];
    sim.clouds[account].add(Resource::INSTANCE, &format!("podvm-{unit}"), &all)
}

//! One pod: what its shim calls, what happens to it, and how it ends.

use std::{path::Path, time::Duration};

use caa::sandbox::Sandboxes;
use peerpod_proto::{Code, Status};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    run::Node,
    sim::{Pod, Shim},
};

/// Bounds of the calls, in which all limits of the daemon's steps have room.
const CREATE_BOUND: Duration = Duration::from_secs(300);
const START_BOUND: Duration = Duration::from_secs(3000);
/// What the real shim waits for StopVM.
const STOP_BOUND: Duration = Duration::from_secs(1);

/// How far a shim came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    /// StartVM was answered well.
    Running,
    /// A call failed, or nobody waited for it.
    Failed,
    /// The shim died between the two calls.
    Silent,
}

impl Node {
    async fn stop_vm(&self, id: &str) {
        // Three times in a row, as the shim of runtime-rs does.
        for _ in 0..self.sim.pick(&[1, 3]) {
            let daemon = self.daemon.lock().unwrap().clone().filter(|d| !d.life.is_over());
            if daemon.is_none() && self.sim.profile.gateway_process {
                self.sim.log(format_args!("StopVM {id}: the gateway keeps it"));
                self.sim.state().kept_stops.insert(id.to_owned());
                continue;
            }
            let answered =
                self.call(("StopVM", 1), id, STOP_BOUND, async |s: Sandboxes| s.stop_vm(id).await).await;
            if answered.is_none() && self.sim.profile.gateway_process {
                self.sim.state().kept_stops.insert(id.to_owned());
            }
        }
    }

    /// One pod, from its shim's first call to its last trace.
    pub(crate) async fn pod(self, id: String) {
        let sim = self.sim.clone();
        sleep(sim.millis(0..60_000)).await;
        let netns = self.folder.join("netns").join(&id);
        std::fs::write(&netns, "").unwrap();
        let shim = sim.pick(&[Shim::Rust, Shim::Go]);
        let pod = Pod {
            shim,
            living: false,
            agent_open: false,
            hypervisor_closed: false,
            unreachable: false,
            mute: sim.chance(4),
            gone: false,
        };
        sim.state().disturbed |= pod.mute;
        sim.state().pods.insert(id.clone(), pod);
        sim.log(format_args!("pod {id} of a {shim:?} shim"));
        let begun = self.begin(&id, &netns).await;
        if begun == Begun::Running {
            self.live(&id).await;
        }
        sim.state().pods.get_mut(&id).unwrap().living = false;
        sleep(sim.millis(0..400)).await;
        if begun == Begun::Silent || (begun == Begun::Running && sim.chance(30)) {
            sim.log(format_args!("the shim of {id} dies without a word"));
        } else {
            self.stop_vm(&id).await;
        }
        if let Some(pod) = sim.state().pods.get_mut(&id) {
            pod.agent_open = false;
            pod.hypervisor_closed = pod.shim == Shim::Rust;
        }
        sleep(sim.millis(0..120_000)).await;
        sim.state().pods.get_mut(&id).unwrap().gone = true;
        sleep(sim.millis(0..60_000)).await;
        sim.log(format_args!("the namespace of {id} goes"));
        std::fs::remove_file(&netns).unwrap();
        self.outside.lock().unwrap().remove_netns(&netns);
    }

    /// CreateVM and StartVM.
    async fn begin(&self, id: &str, netns: &Path) -> Begun {
        let sim = &self.sim;
        let annotations = test_support::ShimPlayer::annotations("web");
        let netns = netns.to_str().unwrap();
        let (never, serving) = (CancellationToken::new(), CancellationToken::new());
        let create = || {
            self.call(("CreateVM", 2), id, CREATE_BOUND, async |s: Sandboxes| {
                serving.cancel();
                s.create_vm(id, &annotations, netns, &never).await
            })
        };
        let twice = sim.chance(15);
        let stop_early = sim.chance(8);
        let answered = CancellationToken::new();
        let mut stopped_first = false;
        let first = async {
            let first = create().await;
            answered.cancel();
            first
        };
        let (first, second) = tokio::join!(first, async {
            if stop_early {
                sleep(sim.millis(0..500)).await;
                sim.state().disturbed = true;
                // A call that waits for a daemon comes after the stop.
                let late = !serving.is_cancelled();
                let stop = async |s: Sandboxes| s.stop_vm(id).await;
                let stopped = self.call(("StopVM", 0), id, STOP_BOUND, stop).await.is_some();
                stopped_first = stopped && !late && !answered.is_cancelled();
            }
            if !twice {
                return None;
            }
            sleep(sim.millis(0..1_500)).await;
            create().await
        });
        if matches!((&first, &second), (Some(Ok(_)), Some(Ok(_)))) && !stop_early {
            sim.violation(format_args!("two CreateVM of {id} were both answered well"));
        }
        if stopped_first && matches!(first, Some(Ok(_))) && !twice {
            sim.violation(format_args!("CreateVM of {id} is answered well after its StopVM was"));
        }
        let planned = [&first, &second].into_iter().any(|answer| matches!(answer, Some(Ok(_))));
        if !planned {
            self.check_excuse("CreateVM", id, first.and_then(Result::err));
            return Begun::Failed;
        }
        if stop_early {
            return Begun::Failed;
        }
        if sim.chance(4) {
            sim.log(format_args!("the shim of {id} dies before StartVM"));
            return Begun::Silent;
        }
        let (caller, answered) = (CancellationToken::new(), CancellationToken::new());
        let start = async {
            let call = async |s: Sandboxes| s.start_vm(id, &caller).await;
            let started = self.call(("StartVM", 3), id, START_BOUND, call).await;
            answered.cancel();
            started
        };
        // A deadline of kubelet: StopVM comes while StartVM waits, or the connection closes.
        let gives_up = async {
            if !sim.chance(15) {
                return false;
            }
            let patience = sim.millis(0..90_000);
            if answered.run_until_cancelled(sleep(patience)).await.is_none() {
                return false;
            }
            sim.state().disturbed = true;
            match sim.chance(50) {
                true => caller.cancel(),
                false => self.stop_vm(id).await,
            }
            true
        };
        let again = async {
            if sim.chance(10) {
                sleep(sim.millis(0..20_000)).await;
                let call = async |s: Sandboxes| s.start_vm(id, &never).await;
                let _ = self.call(("StartVM again", 4), id, START_BOUND, call).await;
            }
        };
        let (started, gave_up, ()) = tokio::join!(start, gives_up, again);
        match started {
            _ if gave_up => Begun::Failed,
            Some(Ok(())) => {
                sim.state().pods.get_mut(id).unwrap().agent_open = true;
                Begun::Running
            }
            started => {
                self.check_excuse("StartVM", id, started.and_then(Result::err));
                Begun::Failed
            }
        }
    }

    /// A call may fail only when something was disturbed.
    fn check_excuse(&self, call: &str, id: &str, status: Option<Status>) {
        let Some(status) = status else { return };
        self.sim.log(format_args!("{call} of {id} failed: {:?} {}", status.code(), status.message));
        let excused = self.sim.state().disturbed || status.code() == Code::AlreadyExists;
        if !excused {
            self.sim.violation(format_args!("{call} of {id} failed for nothing: {}", status.message));
        }
    }

    /// A pod that runs, and what happens to it that must not end it, and what must.
    async fn live(&self, id: &str) {
        let sim = &self.sim;
        if sim.instances(id).is_empty() {
            sim.violation(format_args!("StartVM of {id} was answered well and there is no VM"));
            return;
        }
        let shim = {
            let mut state = sim.state();
            let pod = state.pods.get_mut(id).unwrap();
            pod.living = true;
            pod.shim
        };
        if shim == Shim::Go && sim.chance(50) {
            // It called StartVM on a connection that it left open for a while.
            sim.state().pods.get_mut(id).unwrap().hypervisor_closed = true;
        }
        let with = |change: &dyn Fn(&mut Pod)| change(sim.state().pods.get_mut(id).unwrap());
        for _ in 0..sim.pick(&[0, 1, 2, 4]) {
            if !self.stays(id, sim.millis(1_000..300_000)).await {
                return;
            }
            match sim.state_pick() {
                0 if shim == Shim::Go => {
                    sim.log(format_args!("{id} is between two agent connections"));
                    with(&|p| p.agent_open = false);
                    let stays = self.stays(id, sim.millis(1_000..35_000)).await;
                    with(&|p| p.agent_open = true);
                    if !stays {
                        return;
                    }
                }
                1 => {
                    sim.log(format_args!("the guest of {id} is out of reach for a while"));
                    with(&|p| p.unreachable = true);
                    let stays = self.stays(id, sim.millis(30_000..110_000)).await;
                    with(&|p| p.unreachable = false);
                    if !stays {
                        return;
                    }
                }
                2 if sim.chance(25) => {
                    sim.log(format_args!("the VM of {id} vanishes"));
                    with(&|p| {
                        p.living = false;
                        p.unreachable = true;
                    });
                    sim.state().disturbed = true;
                    for instance in sim.instances(id) {
                        sim.cloud.remove(&instance).unwrap();
                    }
                    sleep(sim.millis(1_000..600_000)).await;
                    return;
                }
                3 => {
                    let unit = format!("orphan-{id}");
                    if sim.cloud.resources().iter().any(|r| r.name == unit) {
                        continue;
                    }
                    let orphan = self.add(&unit, &sim.scope, Some("node-1"));
                    sim.log(format_args!("{orphan} carries the name of this node, and nobody knows it"));
                    sim.state().orphans.insert(orphan, Instant::now());
                }
                _ => {}
            }
        }
        self.stays(id, sim.millis(1_000..600_000)).await;
    }

    /// Lets time pass. `false` when the pod cannot go on, since its shim lost its connections.
    async fn stays(&self, id: &str, time: Duration) -> bool {
        let sim = &self.sim;
        let broke = async {
            if sim.profile.gateway_process {
                let gateways = sim.state().gateways;
                loop {
                    let change = sim.changed.notified();
                    if sim.state().gateways != gateways {
                        return;
                    }
                    change.await;
                }
            }
            let change = sim.changed.notified();
            let life = self.daemon.lock().unwrap().as_ref().map(|d| d.life.clone());
            match life {
                Some(life) => life.0.cancelled().await,
                None => change.await,
            }
        };
        tokio::select! {
            biased;
            () = broke => {
                sim.log(format_args!("the shim of {id} lost its connections"));
                sim.state().pods.get_mut(id).unwrap().living = false;
                false
            }
            () = sleep(time) => {
                if sim.instances(id).is_empty() {
                    sim.violation(format_args!("the VM of the living pod {id} is gone"));
                }
                true
            }
        }
    }
}

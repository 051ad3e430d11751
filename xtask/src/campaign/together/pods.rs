//! Pods that come and go: their objects, and the calls of their shims.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use test_support::{Answer, ClusterClient, ShimPlayer, wait_for, wait_for_async};
use tokio::task::{JoinSet, block_in_place};

use super::cluster::NODE;
use crate::campaign::{Random, sandbox_id};
use crate::world::World;

const PODS: &str = "/api/v1/namespaces/default/pods";
/// Pods at the same time.
const SLOTS: usize = 8;
/// An API server that was killed answers after seconds.
const ANSWER: Duration = Duration::from_secs(180);
/// Second sandboxes of pods have ids of their own.
const AGAIN: usize = 800_000;
/// Image pull secret of every pod.
pub(super) const PULL: &str = "pull";
const START: Duration = Duration::from_secs(180);

/// How a pod ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// As pods do: told to end, stopped by its shim, gone.
    Stopped,
    /// Gone, and its shim without a word.
    Lost,
    /// Its shim vanishes, and the pod gets another sandbox, which ends as pods do.
    Again,
    /// Deleted after so many milliseconds of its start.
    During(u64),
}

/// What became of pods.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) started: usize,
    pub(super) cut: usize,
    pub(super) stopped: usize,
    pub(super) lost: usize,
    pub(super) again: usize,
    pub(super) during: usize,
}

impl Tally {
    /// Adds those of a slot.
    pub(super) fn add(&mut self, other: &Self) {
        self.started += other.started;
        self.cut += other.cut;
        self.stopped += other.stopped;
        self.lost += other.lost;
        self.again += other.again;
        self.during += other.during;
    }
}

/// A pod that is to come.
#[derive(Clone, Debug)]
struct Plan {
    index: usize,
    netns: PathBuf,
    end: End,
    /// How long it runs.
    life: Duration,
}

/// A pod that runs.
#[derive(Debug)]
pub(super) struct Running {
    shim: ShimPlayer,
    name: String,
}

impl Running {
    /// Has its shim stop it.
    pub(super) async fn stop(&self) -> Result<()> {
        stop(&self.shim).await
    }
}

/// All pods of the campaign.
pub(super) struct Pods {
    shared: Arc<Shared>,
    slots: Vec<Vec<Plan>>,
}

struct Shared {
    api: ClusterClient,
    socket: PathBuf,
    /// Namespaces of pods that run at the end.
    spare: Vec<PathBuf>,
}

impl Pods {
    /// Decides what becomes of each pod, and makes the namespaces.
    pub(super) fn prepare(
        world: &mut World,
        api: ClusterClient,
        count: usize,
        random: &mut Random,
    ) -> Result<Self> {
        let mut shared = Vec::new();
        for _ in 0..SLOTS {
            let index = world.add_pod()?;
            shared.push(world.pod(index).netns.path());
        }
        let mut slots = vec![Vec::new(); SLOTS];
        for index in 0..count {
            let end = match random.between(0, 99) {
                0..70 => End::Stopped,
                70..78 => End::Lost,
                78..86 => End::Again,
                _ => End::During(random.between(0, 600)),
            };
            let slot = index % SLOTS;
            // What a shim leaves without a word stays until somebody notices: its namespace is for it alone.
            let netns = if matches!(end, End::Lost | End::Again) {
                let own = world.add_pod()?;
                world.pod(own).netns.path()
            } else {
                shared[slot].clone()
            };
            let life = Duration::from_millis(random.between(0, 500));
            slots[slot].push(Plan { index, netns, end, life });
        }
        let socket = world.socket();
        Ok(Self { shared: Arc::new(Shared { api, socket, spare: shared }), slots })
    }

    /// Lets them come and go.
    pub(super) fn start(&self) -> JoinSet<Result<Tally>> {
        let mut running = JoinSet::new();
        for plans in self.slots.clone() {
            let shared = Arc::clone(&self.shared);
            running.spawn(async move {
                let mut tally = Tally::default();
                for plan in plans {
                    let what = format!("pod {} ({:?})", plan.index, plan.end);
                    shared.live(plan, &mut tally).await.context(what)?;
                }
                Ok(tally)
            });
        }
        running
    }

    /// Starts some that run until they are deleted.
    pub(super) async fn run_some(&self, count: usize) -> Result<Vec<Running>> {
        let mut running = Vec::new();
        for (index, netns) in self.shared.spare.iter().take(count).enumerate() {
            let plan =
                Plan { index: 900_000 + index, netns: netns.clone(), end: End::Lost, life: Duration::ZERO };
            let name = name(plan.index);
            let pod = block_in_place(|| self.shared.create(&name))?;
            let shim = self.shared.connect(plan.index).await?;
            self.shared.start(&shim, &plan, &pod).await??;
            running.push(Running { shim, name });
        }
        Ok(running)
    }

    /// Deletes the objects of pods.
    pub(super) fn delete(&self, pods: &[Running]) -> Result<()> {
        pods.iter().try_for_each(|pod| self.shared.delete(&pod.name, 0))
    }
}

fn name(index: usize) -> String {
    format!("pod-{index}")
}

/// Whether a server that was just started may say so of what it allows and has.
fn passes(answer: &Answer) -> bool {
    matches!(answer.status, 401 | 403 | 429 | 500..)
}

impl Shared {
    async fn live(&self, plan: Plan, tally: &mut Tally) -> Result<()> {
        let name = name(plan.index);
        let pod = block_in_place(|| self.create(&name))?;
        let shim = self.connect(plan.index).await?;
        let start = self.start(&shim, &plan, &pod);
        let started = if let End::During(pause) = plan.end {
            let delete = async {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                block_in_place(|| self.delete(&name, 0))
            };
            let (started, deleted) = tokio::join!(start, delete);
            deleted?;
            started?
        } else {
            start.await?
        };
        match started {
            Ok(()) => tally.started += 1,
            Err(_) => tally.cut += 1,
        }
        tokio::time::sleep(plan.life).await;
        match plan.end {
            End::Stopped => {
                block_in_place(|| self.delete(&name, 30))?;
                stop(&shim).await?;
                block_in_place(|| self.delete(&name, 0))?;
                tally.stopped += 1;
            }
            End::Lost => {
                block_in_place(|| self.delete(&name, 0))?;
                tally.lost += 1;
            }
            End::Again => {
                drop(shim);
                let shim = self.connect(AGAIN + plan.index).await?;
                match self
                    .start(
                        &shim,
                        &Plan { netns: self.spare[plan.index % SLOTS].clone(), ..plan.clone() },
                        &pod,
                    )
                    .await?
                {
                    Ok(()) => tally.again += 1,
                    Err(_) => tally.cut += 1,
                }
                stop(&shim).await?;
                block_in_place(|| self.delete(&name, 0))?;
            }
            End::During(_) => {
                stop(&shim).await?;
                tally.during += 1;
            }
        }
        Ok(())
    }

    async fn connect(&self, index: usize) -> Result<ShimPlayer> {
        ShimPlayer::connect(&self.socket, &sandbox_id(index)).await
    }

    /// Starts a pod. The inner error is the answer to the shim, which kills explain.
    async fn start(&self, shim: &ShimPlayer, plan: &Plan, pod: &Value) -> Result<Result<()>> {
        let mut annotations = ShimPlayer::annotations(&name(plan.index));
        let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?;
        annotations.insert("io.kubernetes.cri.sandbox-uid".to_owned(), uid.to_owned());
        let start = async {
            shim.create_vm_with(annotations, &plan.netns).await.context("CreateVM")?;
            shim.start_vm().await.context("StartVM")
        };
        tokio::time::timeout(START, start).await.context("a start hangs")
    }

    /// Makes the object of a pod, also where the answer to an earlier try was lost.
    fn create(&self, name: &str) -> Result<Value> {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": NODE,
                "imagePullSecrets": [{"name": PULL}],
                "containers": [{"name": "c", "image": "none"}],
            },
        });
        let made = wait_for(&format!("an answer to {name}"), ANSWER, || {
            let answer = self.api.request("POST", PODS, Some(("application/json", &pod))).ok()?;
            if answer.status == 409 {
                return self.api.get(&format!("{PODS}/{name}")).ok()?.map(Ok);
            }
            (!passes(&answer)).then(|| answer.ok())
        });
        made?.with_context(|| format!("make the object of {name}"))
    }

    fn delete(&self, name: &str, grace: u32) -> Result<()> {
        let path = format!("{PODS}/{name}?gracePeriodSeconds={grace}");
        wait_for(&format!("an answer to the end of {name}"), ANSWER, || {
            let answer = self.api.request("DELETE", &path, None).ok()?;
            if answer.status == 404 {
                return Some(Ok(()));
            }
            (!passes(&answer)).then(|| answer.ok().map(drop))
        })?
        .with_context(|| format!("delete {name}"))
    }
}

/// Has a shim stop its pod; it repeats what was not answered in its second, as shims do.
async fn stop(shim: &ShimPlayer) -> Result<()> {
    let answered = wait_for_async("an answer to StopVM", ANSWER, || async { shim.stop_vm().await.ok() });
    answered.await
}

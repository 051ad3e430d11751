//! The cluster's side: the API server with our roles, and two controllers that run with exactly these.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use test_support::{ClusterClient, ClusterOptions, ProcessGuard, RealCluster};

use super::manifest;
use super::pods::PULL;
use crate::campaign::Random;
use crate::context::Context;
use crate::world::{DaemonSettings, OUTSIDE, World};

const NAMESPACE: &str = "confidential-containers-system";
const DAEMON: &str = "cloud-api-adaptor";
const CONTROLLER: &str = "peerpod-ctrl";
/// The name of the node.
pub(super) const NODE: &str = "node-1";
const OBJECTS: &str = "/apis/confidentialcontainers.org/v1alpha1/peerpods";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// The API server, and the controllers.
pub(super) struct Installation {
    pub(super) cluster: RealCluster,
    controllers: Vec<Option<ProcessGuard>>,
    program: PathBuf,
    dir: PathBuf,
    netns: PathBuf,
    kubeconfig: PathBuf,
}

impl Installation {
    /// Starts the API server outside of the node, and two controllers on the node.
    pub(super) fn start(context: &Context, world: &World, assets: &Path, program: &Path) -> Result<Self> {
        let cluster = ClusterOptions::default()
            .in_netns(world.outside(), OUTSIDE.into())
            .with_assets(assets)
            .with_audit()
            .with_manifest(manifest(context, "crd.yaml")?)
            .start()?;
        cluster.create("/api/v1/namespaces", &json!({"metadata": {"name": NAMESPACE}}))?;
        for name in ["daemon-rbac.yaml", "controller.yaml"] {
            cluster.apply_text(&manifest(context, name)?)?;
        }
        cluster.create("/api/v1/nodes", &json!({"metadata": {"name": NODE}}))?;
        let at = |folder: &str| world.dir.join(folder).display().to_string();
        let settings = json!({
            "metadata": {"name": "peer-pods-cm"},
            "data": {
                "CLOUD_PROVIDER": "local",
                "LOCAL_DATA_DIR": at("local"),
                "LOCAL_GUEST_DIR": at("guest"),
                "LOCAL_AGENT": at("guest/test-agent"),
            },
        });
        cluster.create(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps"), &settings)?;
        let secret = json!({"metadata": {"name": "peer-pods-secret"}});
        cluster.create(&format!("/api/v1/namespaces/{NAMESPACE}/secrets"), &secret)?;
        let pull = json!({
            "metadata": {"name": PULL},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": "{\"auths\":{\"registry.example\":{\"auth\":\"dTpw\"}}}"},
        });
        cluster.create("/api/v1/namespaces/default/secrets", &pull)?;
        let kubeconfig = cluster.kubeconfig_of(NAMESPACE, CONTROLLER)?;
        let mut installation = Self {
            controllers: vec![None, None],
            program: program.to_owned(),
            dir: cluster.dir().to_owned(),
            netns: world.node.path(),
            kubeconfig,
            cluster,
        };
        for index in 0..installation.controllers.len() {
            installation.start_controller(index)?;
        }
        Ok(installation)
    }

    /// Returns how the daemon is started, with the account that the roles are for.
    pub(super) fn daemon(&self, world: &World) -> Result<DaemonSettings> {
        let kubeconfig = self.cluster.kubeconfig_of(NAMESPACE, DAEMON)?;
        ensure!(world.dir.exists(), "the stand-in is gone");
        let args = ["-peerpods-limit-per-node", "300", "-pod-loss-grace", "3s", "-kubeconfig"];
        let args = args.into_iter().map(Into::into).chain([kubeconfig.into_os_string()]);
        let env = [("NODE_NAME", NODE), ("POD_UID", "daemon-of-the-campaign"), ("POD_NAMESPACE", NAMESPACE)];
        let env = env.map(|(name, value)| (name.to_owned(), value.into()));
        Ok(DaemonSettings { args: args.collect(), env: env.into() })
    }

    /// Returns what asks the API server with every right.
    pub(super) fn api(&self) -> ClusterClient {
        (*self.cluster).clone()
    }

    fn log(&self, index: usize) -> PathBuf {
        self.dir.join(format!("controller-{index}.log"))
    }

    fn start_controller(&mut self, index: usize) -> Result<()> {
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").arg(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--leader-elect");
        command.arg(format!("--metrics-bind-address=127.0.0.1:{}", 8090 + index));
        command.arg(format!("--health-probe-bind-address=127.0.0.1:{}", 8190 + index));
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("RUST_BACKTRACE", "1");
        for (name, value) in [("POD_NAMESPACE", NAMESPACE), ("PEERPODS_NAMESPACE", NAMESPACE)] {
            command.env(name, value);
        }
        command.env("POD_NAME", format!("controller-{index}"));
        let guard = ProcessGuard::spawn_tied("peerpod-ctrl", &command, &self.log(index))?;
        self.controllers[index] = Some(guard);
        Ok(())
    }

    /// Kills one of the controllers, and starts it again.
    pub(super) fn kill_controller(&mut self, random: &mut Random) -> Result<()> {
        let index = random.between(0, self.controllers.len() as u64 - 1) as usize;
        let mut guard = self.controllers[index].take().context("it was started again")?;
        let ended = guard.try_status();
        ensure!(ended.is_none(), "a controller ended by itself:\n{}", guard.last_lines(30));
        guard.signal_group(Signal::SIGKILL)?;
        drop(guard);
        self.start_controller(index)
    }

    /// Ends the controllers.
    pub(super) fn end(&mut self) -> Result<()> {
        for guard in self.controllers.iter_mut().flatten() {
            ensure!(guard.try_status().is_none(), "a controller ended by itself:\n{}", guard.last_lines(30));
        }
        self.controllers.iter_mut().for_each(|guard| *guard = None);
        Ok(())
    }

    /// Names the objects that are there.
    pub(super) fn objects(&self) -> Result<Vec<String>> {
        let objects = self.cluster.list(OBJECTS)?;
        Ok(objects.iter().map(describe).collect())
    }

    /// Compares the rights of the roles with what was asked for.
    pub(super) fn rights(&self) -> Result<Rights> {
        let mut rights = Rights::default();
        for account in [DAEMON, CONTROLLER] {
            let asked = self.cluster.requests_of(NAMESPACE, account)?;
            let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
            for request in asked.into_keys() {
                let right = format!("{account}: {} {}", request.verb, request.resource);
                if request.allowed {
                    used.insert(right)
                } else {
                    refused.insert(right)
                };
            }
            for path in [
                format!("{RBAC}/clusterroles/{account}"),
                format!("{RBAC}/namespaces/{NAMESPACE}/roles/{account}"),
            ] {
                let role = self.cluster.get(&path)?.with_context(|| format!("there is no {path}"))?;
                for rule in role["rules"].as_array().into_iter().flatten() {
                    for (verb, resource) in pairs(rule) {
                        rights.all.insert(format!("{account}: {verb} {resource}"));
                    }
                }
            }
            // A server that was just started refuses some of what it allows a moment later.
            rights.refused.extend(refused.difference(&used).cloned());
            rights.used.extend(used);
        }
        Ok(rights)
    }

    /// Returns the last lines that the controllers wrote.
    pub(super) fn logs(&self, lines: usize) -> String {
        let mut out = String::new();
        for index in 0..self.controllers.len() {
            let text = std::fs::read_to_string(self.log(index)).unwrap_or_default();
            let all: Vec<&str> = text.lines().collect();
            let tail = all[all.len().saturating_sub(lines)..].join("\n");
            out.push_str(&format!("--- controller {index} ---\n{tail}\n"));
        }
        out
    }
}

fn describe(object: &Value) -> String {
    let (meta, status) = (&object["metadata"], &object["status"]["conditions"]);
    format!("PeerPod {} {} {}", meta["name"], meta["finalizers"], status)
}

fn pairs(rule: &Value) -> Vec<(String, String)> {
    let texts = |key: &str| -> Vec<String> {
        let all = rule[key].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (verbs, resources) = (texts("verbs"), texts("resources"));
    verbs.iter().flat_map(|verb| resources.iter().map(|resource| (verb.clone(), resource.clone()))).collect()
}

/// The rights of the roles, and what was made of them.
#[derive(Debug, Default)]
pub(super) struct Rights {
    all: BTreeSet<String>,
    used: BTreeSet<String>,
    refused: BTreeSet<String>,
}

impl Rights {
    /// Says how many were used, and which were not: chance decides whether some are, such as that to delete a superseded
    /// record.
    pub(super) fn counts(&self) -> String {
        let unused: Vec<&str> = self.all.difference(&self.used).map(String::as_str).collect();
        let not = if unused.is_empty() { String::new() } else { format!(", not {}", unused.join(", ")) };
        format!("{}/{}{not}", self.all.intersection(&self.used).count(), self.all.len())
    }

    /// Fails for a right that is missing.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.refused.is_empty(), "rights that the roles lack: {:?}", self.refused);
        Ok(())
    }
}

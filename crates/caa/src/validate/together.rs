//! Options that are right one by one and wrong together.

use std::time::Duration;

use cloud_providers::{CheckOutcome, Finding, Values, layers};
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::{checks, settings::Options};
use crate::{config::DaemonConfig, orphans::OrphanPolicy};

/// The greatest tunnel id.
const VNI_MAX: i64 = 16_777_215;
/// What the Go shim and the kubelet wait for at most.
const LONGEST_START: Duration = Duration::from_secs(600);

/// Looks at options together. `provider` has the values of the provider's options.
pub(super) fn look(
    config: &DaemonConfig,
    values: &Values,
    provider: &Values,
    options: Options,
) -> Vec<Finding> {
    let mut found = Found { findings: Vec::new(), options };
    if let Err(error) = EnvFilter::builder().parse(&config.log_level) {
        found.failed(
            format!("-log-level is {:?}: {error}", config.log_level),
            "give a level (error, warn, info, debug, trace) or a filter such as info,caa=debug",
        );
    }
    tunnels(config, values, &mut found);
    times(config, values, &mut found);
    networks(config, &mut found);
    cluster(config, values, &mut found);
    if config.disable_tls && (!config.tls_min_version.is_empty() || !config.tls_cipher_suites.is_empty()) {
        found.warning(
            "-tls-min-version and -tls-cipher-suites have no effect with -disable-tls".into(),
            "leave one side out",
        );
    }
    guest_ports(config, provider, &mut found);
    if found.findings.is_empty() {
        found.findings.push(Finding::ok(checks::OPTIONS, "no two options contradict each other"));
    }
    found.findings
}

struct Found {
    findings: Vec<Finding>,
    options: Options,
}

impl Found {
    fn failed(&mut self, detail: String, remedy: &str) {
        self.push(CheckOutcome::Failed, detail, remedy);
    }

    fn warning(&mut self, detail: String, remedy: &str) {
        self.push(CheckOutcome::Warning, detail, remedy);
    }

    fn push(&mut self, outcome: CheckOutcome, detail: String, remedy: &str) {
        let finding = Finding::new(checks::OPTIONS, outcome, detail).with_remedy(remedy);
        self.findings.push(self.options.completed(finding));
    }
}

fn tunnels(config: &DaemonConfig, values: &Values, found: &mut Found) {
    let first = i64::from(config.vxlan_min_id);
    let room = VNI_MAX - first + 1;
    if first > 0 && config.limit > room {
        found.failed(
            format!(
                "-peerpods-limit-per-node is {}, and from -vxlan-min-id {first} on there are {room} tunnel ids: the last \
                 one is {VNI_MAX}",
                config.limit
            ),
            "lower one of them",
        );
    }
    if config.limit == 0 && values.source("peerpods-limit-per-node").is_some() {
        found.warning(
            "-peerpods-limit-per-node is 0: every pod is refused".into(),
            "give the number of pods that the node may hold, or a number below 0 for no limit",
        );
    }
}

fn times(config: &DaemonConfig, values: &Values, found: &mut Found) {
    // A value that could not be read is told already.
    let is_zero = |flag: &str| values.source(flag).is_some() && values.duration(flag).is_zero();
    if is_zero("proxy-timeout") {
        found.failed(
            "-proxy-timeout is 0s: no guest answers in no time, and every start fails".into(),
            "give the time that a guest needs to boot, such as 5m0s",
        );
    }
    if config.proxy_timeout > LONGEST_START {
        found.warning(
            format!("-proxy-timeout is {:?}, and shims wait for 10 minutes at most", config.proxy_timeout),
            "give at most 10m0s",
        );
    }
    if is_zero("pod-loss-grace") {
        found.warning(
            "-pod-loss-grace is 0s: a break of a moment ends a pod that lives".into(),
            "give some seconds at least",
        );
    }
    if is_zero(layers::RETRY_CAP.flag) && config.layers.retry.repeats > 0 {
        found.warning(
            "-cloud-retry-cap is 0s: nothing is repeated, whatever -cloud-retries says, since every repetition needs a \
             pause"
                .into(),
            "give a longer time, or -cloud-retries 0",
        );
    }
    if config.orphan_policy == OrphanPolicy::Delete && is_zero("orphan-grace") {
        found.warning(
            "-orphan-grace is 0s with -orphan-policy delete: an instance is deleted in the moment in which it is seen, \
             also while a record of it is on its way"
                .into(),
            "give some minutes",
        );
    }
}

fn networks(config: &DaemonConfig, found: &mut Found) {
    let nets = &config.pod_subnets;
    for (at, one) in nets.iter().enumerate() {
        if let Some(other) = nets[..at].iter().find(|other| overlap(other, one)) {
            found.warning(
                format!("-pod-subnet-cidrs has {other} and {one}, of which one is in the other"),
                "leave the smaller one out",
            );
        }
    }
    if !config.external_network {
        return;
    }
    match nets.iter().find(|net| net.prefix_len() == 0) {
        Some(all) => found.failed(
            format!(
                "-pod-subnet-cidrs has {all}, which sends everything through the tunnel, and -ext-network-via-podvm sends \
                 it out of the guest"
            ),
            "leave one of them out",
        ),
        None if nets.is_empty() => found.warning(
            "-ext-network-via-podvm without -pod-subnet-cidrs: pods reach no pod and no service of the cluster, since all \
             but their own subnet leaves by the guest's second interface"
                .into(),
            "give the subnets of pods and services",
        ),
        None => {}
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

fn cluster(config: &DaemonConfig, values: &Values, found: &mut Found) {
    if config.kubernetes.is_none() && config.cloud_profile.is_some() {
        found.warning(
            "-cloud-profile has no effect without a cluster: there are no records that could carry it".into(),
            "leave it out, or say where the API server is with -kubeconfig",
        );
    }
    let told = |flag: &str| values.optional(flag);
    if let Some(name) = told("node-name")
        && (name.len() > 253 || name.chars().any(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))))
    {
        found.failed(
            format!("-node-name is {name:?}, which is no name of a node: letters, digits, dashes and dots"),
            "give the name that `kubectl get nodes` shows",
        );
    }
}

/// A provider that is told which ports guests serve has to be told those that the daemon uses.
fn guest_ports(config: &DaemonConfig, provider: &Values, found: &mut Found) {
    const FLAG: &str = "guest-ports";
    if provider.source(FLAG).is_none() {
        return;
    }
    let ports = provider.list(FLAG);
    for (needed, flag) in [
        (format!("{}/tcp", config.forwarder_port), "-forwarder-port"),
        (format!("{}/udp", config.vxlan_port), "-vxlan-port"),
    ] {
        // Zero is a port that could not be read.
        if !needed.starts_with("0/") && !ports.contains(&needed) {
            found.warning(
                format!(
                    "-guest-ports has no {needed}, which is what {flag} says: a closed port is not found"
                ),
                "add it",
            );
        }
    }
}

//! Instances of the provider `aws`: entries of an emulator of EC2, to which no machine belongs.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use fault_proxy::ec2::{Ec2, Probe, Settings};
use fault_proxy::{HttpFaultProxy, Options, Upstream};
use test_support::{Moto, Netns};
use tokio::runtime::Runtime;

use super::Machines;

const REGION: &str = "us-east-1";
const KEY: &str = "demo";

/// The emulator on the host, and a proxy in the node's namespace that passes calls on to it.
#[derive(Debug)]
pub(super) struct Aws {
    proxy: HttpFaultProxy,
    probe: Probe,
    flags: Vec<OsString>,
    /// What was there before the first instance.
    before: Vec<String>,
    /// Nothing only while it is dropped.
    runtime: Option<Runtime>,
    _moto: Moto,
}

impl Aws {
    /// Starts both.
    pub(super) fn new(node: &Netns) -> Result<Self> {
        let moto = Moto::start()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let behaviour = Arc::new(Ec2::new(Settings::realistic()));
        let options = Options::default().with_behaviour(behaviour);
        let upstream = Upstream::server(&moto.url())?;
        // The socket belongs to the namespace in which it is made; calls go on from outside of it.
        let proxy = node.run(|| runtime.block_on(HttpFaultProxy::start(upstream, options)))?;
        let probe = Probe::new(&moto.url(), REGION)?;
        let (subnet, group, before) = runtime.block_on(async {
            let subnets = probe.all("DescribeSubnets", &[], "subnetId").await?;
            let groups = probe.all("DescribeSecurityGroups", &[], "groupId").await?;
            probe.ask("CreateKeyPair", &[("KeyName", KEY)]).await?;
            let first = |ids: Vec<String>| ids.into_iter().next().context("the emulator has no network");
            anyhow::Ok((first(subnets)?, first(groups)?, probe.leftovers().await?))
        })?;
        let url = proxy.url();
        let flags = [
            ("-aws-region", REGION),
            ("-aws-endpoint-url", &url),
            ("-aws-access-key-id", "demo"),
            ("-aws-secret-key", "demo"),
            ("-imageid", Moto::IMAGE),
            ("-subnetid", &subnet),
            ("-securitygroupids", &group),
            ("-keyname", KEY),
        ];
        let flags = flags.iter().flat_map(|(flag, value)| [OsString::from(flag), value.into()]).collect();
        Ok(Self { proxy, probe, flags, before, runtime: Some(runtime), _moto: moto })
    }

    /// Asks the emulator from a thread of its own: the caller may be inside another runtime.
    fn ask<T: Send>(&self, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let runtime = self.runtime.as_ref().context("the emulator has ended")?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| runtime.block_on(work));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The addresses of an instance that runs.
    fn addresses(&self, id: &str) -> Result<Vec<String>> {
        self.ask(self.probe.all("DescribeInstances", &[("InstanceId.1", id)], "privateIpAddress"))
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        // It may be dropped inside another runtime, where nobody may wait for this one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Machines for Aws {
    fn flags(&self) -> Vec<OsString> {
        self.flags.clone()
    }

    fn programs(&self) -> &'static str {
        "/usr/local/bin"
    }

    fn mounts_programs(&self) -> bool {
        false
    }

    fn instances(&self) -> Result<Vec<String>> {
        let left = self.ask(self.probe.leftovers())?;
        Ok(left.into_iter().filter(|id| id.starts_with("i-")).collect())
    }

    fn address(&self, id: &str) -> Result<Ipv4Addr> {
        let addresses = self.addresses(id)?;
        Ok(addresses.first().context("the instance has no address")?.parse()?)
    }

    fn running(&self) -> Option<Ipv4Addr> {
        self.instances().ok()?.iter().find_map(|id| self.address(id).ok())
    }

    fn logs(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn leftovers(&self) -> Result<Vec<String>> {
        let left = self.ask(self.probe.leftovers())?;
        let new = left.into_iter().filter(|id| !self.before.contains(id));
        Ok(new.map(|id| format!("of the cloud: {id}")).collect())
    }

    fn end(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn keep(self: Box<Self>) -> Result<()> {
        anyhow::bail!("the emulator ends with the demo and cannot be kept")
    }

    fn how_to_look(&self, _: &str) -> Vec<(&'static str, String)> {
        vec![("emulator", self.proxy.url())]
    }

    fn calls(&self) -> Vec<(String, u64)> {
        self.proxy.counts().into_iter().collect()
    }
}

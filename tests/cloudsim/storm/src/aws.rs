//! EC2: the provider over the vendor's SDK, against the emulator behind the proxy.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use cloud_providers::{MapEnv, Provider, lookup};
use fault_proxy::ec2::{Ec2, Probe, Settings, internal_error, throttled};
use fault_proxy::{Act, HttpFaultProxy, Match, Options as ProxyOptions, Rule, Upstream};
use test_support::Moto;

use crate::{Options, Sky};

const REGION: &str = "us-east-1";
const FAULTS: [&str; 4] = ["throttled", "broken before", "cut after", "broken after"];

/// The emulator, the proxy before it, and a provider that knows the proxy only.
#[derive(Debug)]
pub struct Aws {
    provider: Arc<dyn Provider>,
    proxy: HttpFaultProxy,
    probe: Probe,
    // Ends last: the proxy's calls go to it.
    _moto: Moto,
}

impl Aws {
    /// Starts the emulator and makes the provider of it.
    ///
    /// # Errors
    ///
    /// When the emulator does not come up, or the provider refuses its settings.
    pub async fn start(options: &Options) -> Result<Self> {
        cloud_providers_bundle::check().map_err(crate::told)?;
        let moto = tokio::task::spawn_blocking(Moto::start).await??;
        let behaviour = Arc::new(Ec2::new(Settings::realistic()));
        let proxy_options = ProxyOptions::default().with_behaviour(behaviour).with_seed(options.seed);
        let proxy = HttpFaultProxy::start(Upstream::server(&moto.url())?, proxy_options).await?;
        // Past the proxy: what the emulator itself has.
        let probe = Probe::new(&moto.url(), REGION)?;
        let subnets = probe.all("DescribeSubnets", &[], "subnetId").await?;
        let groups = probe.all("DescribeSecurityGroups", &[], "groupId").await?;
        let settings = [
            ("AWS_ACCESS_KEY_ID", "storm".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "storm".to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ENDPOINT_URL", proxy.url()),
            ("PODVM_AMI_ID", Moto::IMAGE.to_owned()),
            ("AWS_SUBNET_ID", subnets.join(",")),
            ("AWS_SG_IDS", groups.first().context("the emulator has no security group")?.clone()),
            // Otherwise the metadata service would be asked, which this machine may have.
            ("SSH_KP_NAME", "storm".to_owned()),
        ];
        probe.ask("CreateKeyPair", &[("KeyName", "storm")]).await?;
        let mut cloud = (lookup("aws").map_err(crate::told)?.new)();
        cloud.parse_cmd(clap::Command::new("storm"), &[] as &[OsString]).map_err(crate::told)?;
        cloud.load_env(&MapEnv::new(settings)).map_err(crate::told)?;
        let provider = crate::stacked("aws", cloud.new_provider().await.map_err(crate::told)?);
        Ok(Self { provider, proxy, probe, _moto: moto })
    }
}

#[async_trait]
impl Sky for Aws {
    fn provider(&self) -> Arc<dyn Provider> {
        Arc::clone(&self.provider)
    }

    fn begin(&self, options: &Options) -> Result<()> {
        self.proxy.clear_journal();
        // Each rule sees what those before it let pass.
        let half = options.faults / 2.0;
        let [busy, before, cut, after] = FAULTS;
        for rule in [
            Rule::new(busy, Match::any(), Act::Answer(throttled())).with_share(options.throttled),
            Rule::new(before, Match::any(), Act::Answer(internal_error())).with_share(options.faults),
            Rule::new(cut, Match::any(), Act::Cut).after_effect().with_share(half),
            Rule::new(after, Match::any(), Act::Answer(internal_error())).after_effect().with_share(half),
        ] {
            self.proxy.add(rule)?;
        }
        Ok(())
    }

    fn calm(&self) {
        self.proxy.clear();
    }

    async fn contents(&self) -> Result<Vec<String>> {
        self.probe.leftovers().await
    }

    fn calls(&self) -> BTreeMap<String, u64> {
        self.proxy.counts()
    }

    fn peak(&self) -> u64 {
        self.proxy.peak()
    }
}

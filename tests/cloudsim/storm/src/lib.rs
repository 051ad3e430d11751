#![doc = include_str!("../README.md")]

#[cfg(feature = "aws")]
mod aws;
mod live;
mod report;
mod run;
mod scripted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use cloud_providers::Provider;
use cloud_providers::layers::{self, LayerSettings, NoObserver};

#[cfg(feature = "aws")]
pub use aws::Aws;
pub use live::Live;
pub use report::Report;
pub use run::run;
pub use scripted::Scripted;

/// What is done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The cluster that the instances are tagged with.
    pub scope: String,
    /// The port at which each instance has to answer before it counts as created.
    pub connect: Option<u16>,
    /// How many instances.
    pub pods: u32,
    /// How many are made or deleted at the same time.
    pub at_once: usize,
    /// Which share of the calls is refused because there are too many.
    pub throttled: f64,
    /// Which share of the calls fails before, and which after its effect.
    pub faults: f64,
    /// What chance begins with.
    pub seed: u64,
    /// How long creating or deleting one instance may take, with all its repetitions.
    pub limit: Duration,
}

impl Options {
    /// A storm of this many instances: 10 % throttling, 5 % faults before and 5 % after the effect.
    pub fn storm(pods: u32) -> Self {
        Self {
            scope: "storm".to_owned(),
            connect: None,
            pods,
            at_once: 50,
            throttled: 0.1,
            faults: 0.05,
            seed: 0,
            limit: Duration::from_secs(600),
        }
    }

    /// Without faults, to count calls.
    pub fn quiet(pods: u32) -> Self {
        Self { throttled: 0.0, faults: 0.0, ..Self::storm(pods) }
    }
}

/// A cloud that is stormed.
#[async_trait]
pub trait Sky: Send + Sync {
    /// The provider, as programs have it.
    fn provider(&self) -> Arc<dyn Provider>;

    /// Lets faults begin.
    ///
    /// # Errors
    ///
    /// When they make no sense.
    fn begin(&self, options: &Options) -> Result<()>;

    /// Lets faults end.
    fn calm(&self);

    /// Returns what is there, asked from the cloud past the provider and the faults.
    ///
    /// # Errors
    ///
    /// When the cloud does not answer.
    async fn contents(&self) -> Result<Vec<String>>;

    /// Whether calls are counted, which takes an instance beforehand: what is asked once is not to be in the counts.
    fn counts(&self) -> bool {
        true
    }

    /// Counts the calls so far by operation.
    fn calls(&self) -> BTreeMap<String, u64>;

    /// Returns the most calls in any second.
    fn peak(&self) -> u64;
}

/// Wraps a provider in the layers of programs, with their defaults.
fn stacked(name: &str, provider: Arc<dyn Provider>) -> Arc<dyn Provider> {
    layers::standard(name, provider, &LayerSettings::default(), Arc::new(NoObserver))
}

/// An error of the contract with its causes.
fn told(error: cloud_providers::Error) -> anyhow::Error {
    anyhow::anyhow!("{}", error.report())
}

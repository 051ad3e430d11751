//! The calls over the cloud's own interface. This is what has to be written: each call says which function it misses.

use std::time::Duration;

use cloud_providers::{Error, Result, async_trait, secrecy::SecretString};

use super::{Client, Launch, Launched, Machine, Page};
use crate::config::Config;

/// Calls the cloud. An SDK's client is held here, and made in [`ApiClient::new`].
#[derive(Debug)]
#[cfg_attr(test, expect(dead_code, reason = "the calls are not written"))]
pub(crate) struct ApiClient {
    endpoint: String,
    key: SecretString,
}

impl ApiClient {
    /// Prepares the calls and makes none.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        Ok(Self { endpoint: config.endpoint.clone(), key: config.key.clone() })
    }
}

#[async_trait]
impl Client for ApiClient {
    async fn check_account(&self) -> Result<()> {
        Err(unwritten("check_account"))
    }

    async fn list_machines(&self, _key: &str, _value: &str, _after: Option<&str>) -> Result<Page> {
        Err(unwritten("list_machines"))
    }

    async fn launch(&self, _launch: &Launch) -> Result<Launched> {
        Err(unwritten("launch"))
    }

    async fn get_machine(&self, _id: &str) -> Result<Option<Machine>> {
        Err(unwritten("get_machine"))
    }

    async fn remove_machine(&self, _id: &str) -> Result<()> {
        Err(unwritten("remove_machine"))
    }

    fn list_lag(&self) -> Duration {
        // Some seconds on most clouds. Write what its documentation says.
        Duration::from_secs(5)
    }
}

fn unwritten(function: &str) -> Error {
    Error::unsupported(format!(
        "write ApiClient::{function} in crates/cloud-providers-__name__/src/client/api.rs"
    ))
}

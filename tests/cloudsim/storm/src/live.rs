//! Whatever account the environment names: nothing between the provider and the cloud.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use cloud_providers::{OpContext, Ownership, ProcessEnv, Provider, Scope, lookup};

use crate::{Options, Sky};

/// A provider as its programs make it, from the variables of the process.
#[derive(Debug)]
pub struct Live {
    provider: Arc<dyn Provider>,
    scope: Scope,
}

impl Live {
    /// Makes the provider and lets it verify its settings.
    ///
    /// # Errors
    ///
    /// When it was not built in, or refuses its settings.
    pub async fn start(name: &str, options: &Options) -> Result<Self> {
        cloud_providers_bundle::check().map_err(crate::told)?;
        let mut cloud = (lookup(name).map_err(crate::told)?.new)();
        cloud.parse_cmd(clap::Command::new("storm"), &[] as &[OsString]).map_err(crate::told)?;
        cloud.load_env(&ProcessEnv).map_err(crate::told)?;
        let provider = crate::stacked(name, cloud.new_provider().await.map_err(crate::told)?);
        Ok(Self { provider, scope: Scope::Cluster(options.scope.clone()) })
    }
}

impl Live {
    /// Deletes and releases whatever carries our scope: a run that was cut short left it.
    ///
    /// # Errors
    ///
    /// When something stays, or cannot be listed.
    pub async fn sweep(&self) -> Result<()> {
        let context = OpContext::new();
        let list = self.provider.list_owned(&context, &self.scope).await.map_err(crate::told)?;
        for entry in list.entries {
            match (&entry.token, &entry.instance) {
                (Some(token), _) => self.provider.release(&context, token).await.map_err(crate::told)?,
                (None, Some(instance)) => {
                    let ownership = Ownership::Tagged(self.scope.clone());
                    let deleted = self.provider.delete_instance(&context, &instance.id, &ownership).await;
                    deleted.map_err(crate::told)?;
                }
                (None, None) => {}
            }
        }
        let left = self.contents().await?;
        ensure!(left.is_empty(), "still there: {}", left.join(", "));
        Ok(())
    }
}

#[async_trait]
impl Sky for Live {
    fn provider(&self) -> Arc<dyn Provider> {
        Arc::clone(&self.provider)
    }

    fn begin(&self, _: &Options) -> Result<()> {
        Ok(())
    }

    fn calm(&self) {}

    /// What carries our scope, as the provider lists it: in an account nobody else can be asked.
    async fn contents(&self) -> Result<Vec<String>> {
        let list = self.provider.list_owned(&OpContext::new(), &self.scope).await.map_err(crate::told)?;
        ensure!(list.complete, "the list of what is owned is not complete");
        let resources = list.entries.into_iter().flat_map(|entry| entry.resources);
        Ok(resources.map(|resource| format!("{} {}", resource.kind, resource.id)).collect())
    }

    fn counts(&self) -> bool {
        false
    }

    fn calls(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }

    fn peak(&self) -> u64 {
        0
    }
}

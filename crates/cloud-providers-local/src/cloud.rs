//! Reads the configuration.

use std::sync::Arc;

use cloud_providers::{Cloud, Error, ErrorKind, Provider, Result, Settings, async_trait};

use crate::{
    LocalProvider, OPTIONS,
    config::Config,
    host::{Host, missing_rights},
};

/// Builds a [`LocalProvider`].
#[derive(Debug)]
pub struct LocalCloud {
    settings: Settings,
}

impl LocalCloud {
    /// Starts with nothing set.
    pub fn new() -> Self {
        Self { settings: Settings::new(OPTIONS) }
    }
}

impl Default for LocalCloud {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Cloud for LocalCloud {
    fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn problems(&mut self) -> Vec<String> {
        let (values, mut problems) = self.settings.parse_all();
        Config::read(&values, &mut problems);
        problems
    }

    /// Checks the options and the rights of this process, and makes the data folder.
    ///
    /// The provider works in the network namespace of the thread that calls this.
    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
        let (values, mut problems) = self.settings.parse_all();
        let config = Config::read(&values, &mut problems);
        if let Some(error) = Error::all(ErrorKind::Config, problems) {
            return Err(error);
        }
        if let Some(error) = missing_rights() {
            return Err(error);
        }
        let host = Host::open(config)?;
        tracing::warn!(
            provider = crate::NAME,
            data_dir = %host.data.root().display(),
            bridge = host.config.bridge,
            subnet = %host.config.subnet,
            "instances are namespaces on this host and are isolated from nothing: what runs in one can harm the host \
             and all others; use this provider for development, tests and demonstrations only"
        );
        Ok(Arc::new(LocalProvider::new(host)))
    }
}

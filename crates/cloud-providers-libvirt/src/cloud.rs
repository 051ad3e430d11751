//! Reads the configuration.

use std::{sync::Arc, time::Duration};

use cloud_providers::{Cloud, Error, ErrorKind, OpContext, Provider, Result, Settings, async_trait};

use crate::{LibvirtProvider, OPTIONS, config::Config};

/// How long the start of a program waits to learn what the host can do.
const LEARN_LIMIT: Duration = Duration::from_secs(5);

/// Builds a [`LibvirtProvider`].
#[derive(Debug)]
pub struct LibvirtCloud {
    settings: Settings,
    #[cfg(feature = "testing")]
    faults: crate::testing::Faults,
}

impl LibvirtCloud {
    /// Starts with nothing set.
    pub fn new() -> Self {
        Self {
            settings: Settings::new(OPTIONS),
            #[cfg(feature = "testing")]
            faults: crate::testing::Faults::default(),
        }
    }

    /// Lets the calls of providers of this value go wrong as `faults` say.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_faults(mut self, faults: &crate::testing::Faults) -> Self {
        self.faults = faults.clone();
        self
    }
}

impl Default for LibvirtCloud {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Cloud for LibvirtCloud {
    fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn problems(&mut self) -> Vec<String> {
        let (values, mut problems) = self.settings.parse_all();
        Config::read(&values, &mut problems);
        problems
    }

    /// Checks the options, and asks libvirt what the host can do when it answers within seconds.
    ///
    /// A libvirt that is away is no error: it may start after this program.
    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
        let (values, mut problems) = self.settings.parse_all();
        let config = Config::read(&values, &mut problems);
        if let Some(error) = Error::all(ErrorKind::Config, problems) {
            return Err(error);
        }
        if config.uri.is_unverified() {
            tracing::warn!(
                provider = crate::NAME,
                uri = config.uri.as_str(),
                "the hypervisor's host need not prove who it is, and is sent the keys of instances: use a URI that verifies"
            );
        }
        #[cfg_attr(not(feature = "testing"), expect(unused_mut, reason = "only tests change it"))]
        let mut provider = LibvirtProvider::new(config)?;
        #[cfg(feature = "testing")]
        provider.client.set_faults(self.faults.clone());
        let ctx = OpContext::new().with_timeout(LEARN_LIMIT);
        if let Err(error) = provider.learn(&ctx).await {
            tracing::warn!(
                provider = crate::NAME,
                error = error.report(),
                "libvirt does not tell what its host can do; it is asked again when an instance is made"
            );
        }
        Ok(Arc::new(provider))
    }
}

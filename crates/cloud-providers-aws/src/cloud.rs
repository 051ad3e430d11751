//! Reads the configuration.

use std::{sync::Arc, time::Duration};

use cloud_providers::{Cloud, Error, ErrorKind, OpContext, Provider, Result, Settings, async_trait};

use crate::{AwsProvider, OPTIONS, client::Connect, config::Config, discover};

/// How long the start of a program waits to learn what instances are made of.
const LEARN_LIMIT: Duration = Duration::from_secs(10);

/// Builds an [`AwsProvider`].
#[derive(Debug)]
pub struct AwsCloud {
    settings: Settings,
    connect: Option<Arc<dyn Connect>>,
}

impl AwsCloud {
    /// Starts with nothing set, and with the SDK when the crate is built with it.
    pub fn new() -> Self {
        #[cfg(feature = "sdk")]
        let connect: Option<Arc<dyn Connect>> = Some(Arc::new(crate::client::SdkConnect::new()));
        #[cfg(not(feature = "sdk"))]
        let connect = None;
        Self { settings: Settings::new(OPTIONS), connect }
    }

    /// Takes another way to EC2 than the SDK.
    #[must_use]
    pub fn with_connect(mut self, connect: Arc<dyn Connect>) -> Self {
        self.connect = Some(connect);
        self
    }
}

impl Default for AwsCloud {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Cloud for AwsCloud {
    fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn problems(&mut self) -> Vec<String> {
        let (values, mut problems) = self.settings.parse_all();
        Config::read(&values, &mut problems);
        problems
    }

    /// Checks the options, reads what is missing from instance metadata, and asks EC2 about types, image and subnets when
    /// it answers within seconds.
    ///
    /// Only what no call can do without is an error here: a controller deletes instances also when their image is gone.
    /// Everything else is an error of the create, and of the verification.
    async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
        let (values, mut problems) = self.settings.parse_all();
        let config = Config::read(&values, &mut problems);
        if let Some(error) = Error::all(ErrorKind::Config, problems) {
            return Err(error);
        }
        let Some(connect) = &self.connect else {
            return Err(Error::unsupported("this build has no way to EC2")
                .with("build with", "feature sdk of cloud-providers-aws"));
        };
        let mut config = config;
        let missing = discover::fill(&**connect, &mut config).await.err();
        if let Some(error) = &missing {
            // Who only deletes and lists needs none of it.
            tracing::warn!(provider = crate::NAME, error = error.report(), "no instance can be made");
        }
        let ec2 = connect.connect(&config.access).await?;
        let provider = AwsProvider::new(ec2, config, missing);
        let ctx = OpContext::new().with_timeout(LEARN_LIMIT);
        if let Err(error) = provider.learn(&ctx).await {
            // A controller deletes instances also when their image is gone, and EC2 may be away for a while.
            tracing::warn!(
                provider = crate::NAME,
                error = error.report(),
                "EC2 does not tell everything that instances are made of; it is asked again when one is made"
            );
        }
        Ok(Arc::new(provider))
    }
}

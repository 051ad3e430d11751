//! The account, as the SDK reaches it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_ec2::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_types::retry::RetryConfig;

/// How to reach an account. Credentials come from where the SDK looks for them.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The region; that of environment or profile where it is missing.
    pub region: Option<String>,
    /// Another address of EC2 and EBS, such as that of an emulator.
    pub endpoint: Option<String>,
    /// Key id and secret in place of what the SDK finds; for emulators.
    pub keys: Option<(String, String)>,
}

/// The clients of an account in one region.
#[derive(Clone, Debug)]
pub struct Account {
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) ebs: aws_sdk_ebs::Client,
    region: String,
    /// How long a state may take to come; machines of a real account take minutes to go.
    pub(crate) limit: Duration,
}

impl Account {
    /// Makes the clients. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// When no region is given anywhere.
    pub async fn open(access: &Access) -> Result<Self> {
        let tls = Provider::Rustls(CryptoMode::AwsLc);
        let http = Builder::new().tls_provider(tls).build_https();
        // A set-up is not in a hurry: the SDK repeats what was throttled or broke, within bounds.
        let retries = RetryConfig::standard().with_max_attempts(8);
        let mut loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(http).retry_config(retries);
        if let Some(region) = &access.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &access.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some((id, secret)) = &access.keys {
            let keys = aws_sdk_ec2::config::Credentials::new(id, secret, None, None, "given");
            loader = loader.credentials_provider(keys);
        }
        let config = loader.load().await;
        let region = config.region().context("no region: give --region, or set AWS_REGION")?.to_string();
        Ok(Self {
            ec2: aws_sdk_ec2::Client::new(&config),
            ebs: aws_sdk_ebs::Client::new(&config),
            region,
            limit: Duration::from_secs(900),
        })
    }

    /// Waits no longer than this for a state.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Looks until `look` has something, once a second.
    pub(crate) async fn wait<T, F>(&self, what: &str, mut look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let end = tokio::time::Instant::now() + self.limit;
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < end,
                "waited {} s in vain for {what}",
                self.limit.as_secs()
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Says what was attempted, and what the service said.
pub(crate) trait Said<T> {
    /// Adds `what` to an error.
    fn said(self, what: &str) -> Result<T>;
}

impl<T, E, R> Said<T> for Result<T, SdkError<E, R>>
where
    SdkError<E, R>: std::error::Error + Send + Sync + 'static,
{
    fn said(self, what: &str) -> Result<T> {
        self.map_err(|error| anyhow::anyhow!("{what}: {}", DisplayErrorContext(&error)))
    }
}

/// Whether the service says that it is not there.
pub(crate) fn is_missing<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    code(error).is_some_and(|code| code.contains("NotFound") || code == "InvalidAMIID.Unavailable")
}

/// The service's code of an error, if it is the service's.
pub(crate) fn code<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

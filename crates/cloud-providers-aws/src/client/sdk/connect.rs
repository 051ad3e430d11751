//! Makes a client: region, credentials, addresses, times.

use std::{fmt, sync::Arc, time::Duration};

use aws_config::{
    AppName, BehaviorVersion, Region, imds,
    meta::region::ProvideRegion,
    profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider},
    provider_config::ProviderConfig,
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, future},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use cloud_providers::{EnvSource, Error, ProcessEnv, Result, async_trait, secrecy::ExposeSecret};
use tokio::sync::OnceCell;

use super::{SdkEc2, http, metadata};
use crate::client::{Access, Connect, Ec2};

/// The longest time in which a connection comes about.
const CONNECT: Duration = Duration::from_secs(4);

/// Connects to EC2 with the vendor's SDK.
///
/// Static keys are used when they are given, a profile when one is named, and otherwise the SDK's own chain, which reads
/// the environment of the process, the shared configuration files, a web identity token, a container's or pod's
/// credentials and the instance's role, in this order. What it finds it keeps until shortly before it expires; files with
/// tokens are read anew each time.
pub struct SdkConnect {
    env: Arc<dyn EnvSource>,
    http: SharedHttpClient,
    metadata: OnceCell<imds::Client>,
}

impl SdkConnect {
    /// Takes the variables that the SDK does not read itself from the environment of the process.
    pub fn new() -> Self {
        Self::with_env(Arc::new(ProcessEnv))
    }

    /// Takes those variables from elsewhere: `AWS_DEFAULT_REGION`, `AWS_EC2_METADATA_DISABLED`,
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT` and `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE`. The SDK's chain of credentials
    /// knows no other source than the process.
    pub fn with_env(env: Arc<dyn EnvSource>) -> Self {
        Self { env, http: http::client(), metadata: OnceCell::new() }
    }

    fn provider_config(&self) -> ProviderConfig {
        ProviderConfig::without_region().with_http_client(self.http.clone())
    }

    /// Returns the region: the one that was given, or that of the profile, or that of the instance this runs on.
    async fn region(&self, access: &Access) -> Result<Region> {
        let given = access.region.clone().or_else(|| self.env.variable("AWS_DEFAULT_REGION"));
        if let Some(region) = given {
            return Ok(Region::new(region));
        }
        let mut profile = ProfileFileRegionProvider::builder().configure(&self.provider_config());
        if let Some(name) = &access.profile {
            profile = profile.profile_name(name);
        }
        if let Some(region) = profile.build().region().await {
            return Ok(region);
        }
        let missing = || Error::config("no source tells the region").with("set", "-aws-region or AWS_REGION");
        match self.metadata("placement/region").await {
            Ok(Some(region)) if !region.is_empty() => Ok(Region::new(region)),
            Ok(_) => Err(missing().with("instance metadata", "has none")),
            Err(error) => Err(missing().with_source(error)),
        }
    }
}

/// Static keys. The SDK prints its configuration into its log, and the form of keys of its own shows the key id.
struct Given(Credentials);

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given")
    }
}

impl ProvideCredentials for Given {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Ok(self.0.clone()))
    }
}

/// Refuses what is no address: the SDK would tell of it at each call, in words that quote the call.
fn check_url(url: &str) -> Result<()> {
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let plain =
        |host: &str| !host.is_empty() && !host.starts_with('/') && !host.contains(char::is_whitespace);
    if host.is_some_and(plain) {
        return Ok(());
    }
    Err(Error::config("the address of an interface is no URL").with("address", format!("{url:?}")))
}

impl Default for SdkConnect {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SdkConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SdkConnect").finish_non_exhaustive()
    }
}

#[async_trait]
impl Connect for SdkConnect {
    async fn connect(&self, access: &Access) -> Result<Arc<dyn Ec2>> {
        for url in [&access.endpoint, &access.endpoint_all].into_iter().flatten() {
            check_url(url)?;
        }
        let region = self.region(access).await?;
        let mut times = TimeoutConfig::builder().connect_timeout(CONNECT);
        if !access.call_timeout.is_zero() {
            times = times.operation_timeout(access.call_timeout);
        }
        // A fixed version: what the SDK does by default changes with this line and not with an upgrade.
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(region.clone())
            .http_client(self.http.clone())
            .timeout_config(times.build())
            // The layers around the provider repeat calls, and count them.
            .retry_config(RetryConfig::disabled());
        if let Ok(name) = AppName::new("cloud-providers") {
            loader = loader.app_name(name);
        }
        if let Some(url) = &access.endpoint_all {
            loader = loader.endpoint_url(url);
        }
        if let Some(profile) = &access.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(keys) = &access.keys {
            let token = keys.session_token.as_ref().map(|token| token.expose_secret().to_owned());
            let (id, secret) = (keys.id.expose_secret(), keys.secret.expose_secret());
            loader = loader.credentials_provider(Given(Credentials::new(id, secret, token, None, "options")));
        } else if let Some(profile) = &access.profile {
            // The whole chain would take variables of the process before the profile that somebody named.
            let config = self.provider_config().with_region(Some(region));
            let chosen = ProfileFileCredentialsProvider::builder().profile_name(profile).configure(&config);
            loader = loader.credentials_provider(chosen.build());
        }
        let shared = loader.load().await;
        let mut config = aws_sdk_ec2::config::Builder::from(&shared);
        if let Some(url) = &access.endpoint {
            config = config.endpoint_url(url);
        }
        Ok(Arc::new(SdkEc2 {
            ec2: aws_sdk_ec2::Client::from_conf(config.build()),
            sts: aws_sdk_sts::Client::new(&shared),
            // At the finest level the SDK logs the key id that signs each call. An id of the chain is a temporary one and
            // no secret; one that was given as an option is treated as what the option says.
            silent: access.keys.is_some(),
        }))
    }

    async fn metadata(&self, path: &str) -> Result<Option<String>> {
        metadata::check_enabled(&*self.env)?;
        let make = || async { metadata::client(&*self.env, &self.provider_config()) };
        metadata::read(self.metadata.get_or_try_init(make).await?, path).await
    }
}

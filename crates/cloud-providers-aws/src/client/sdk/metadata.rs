//! The metadata service of the instance that this program runs on, version 2.

use std::time::Duration;

use aws_config::{
    imds::{
        self,
        client::{EndpointMode, error::ImdsError},
    },
    provider_config::ProviderConfig,
};
use cloud_providers::{EnvSource, Error, ErrorKind, Result};
use tokio::time::timeout;

const DISABLED: &str = "AWS_EC2_METADATA_DISABLED";
const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const MODE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE";

/// The service is on the same machine and answers at once; elsewhere its address leads nowhere, and nobody should have
/// to wait long to hear of it.
const STEP: Duration = Duration::from_secs(1);
/// The longest time of one question, its token and a second try included.
const WHOLE: Duration = Duration::from_secs(4);

/// Refuses to ask where the operator switched it off.
pub(super) fn check_enabled(env: &dyn EnvSource) -> Result<()> {
    match env.variable(DISABLED) {
        Some(value) if value.eq_ignore_ascii_case("true") => {
            Err(Error::config("instance metadata is switched off").with("by", format!("{DISABLED}={value}")))
        }
        _ => Ok(()),
    }
}

/// Makes a client.
pub(super) fn client(env: &dyn EnvSource, config: &ProviderConfig) -> Result<imds::Client> {
    let mut builder = imds::Client::builder()
        .configure(config)
        .connect_timeout(STEP)
        .read_timeout(STEP)
        .operation_timeout(WHOLE)
        .max_attempts(2);
    if let Some(url) = env.variable(ENDPOINT) {
        let expected = "expected a URL such as http://169.254.169.254";
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(Error::config(format!("{ENDPOINT} is {url:?}, {expected}")));
        }
        let refused = |error| Error::config(format!("{ENDPOINT} is {url:?}, {expected} ({error})"));
        builder = builder.endpoint(&url).map_err(refused)?;
    } else if let Some(mode) = env.variable(MODE) {
        let mode: EndpointMode =
            mode.parse().map_err(|_| Error::config(format!("{MODE} is {mode:?}, expected IPv4 or IPv6")))?;
        builder = builder.endpoint_mode(mode);
    }
    Ok(builder.build())
}

/// Reads one text below `/latest/meta-data/`; `None` when there is nothing at `path`.
pub(super) async fn read(client: &imds::Client, path: &str) -> Result<Option<String>> {
    let full = format!("/latest/meta-data/{path}");
    let failed = |kind| Error::new(kind, "instance metadata cannot be read").with("path", path);
    match timeout(WHOLE, client.get(full)).await {
        Ok(Ok(text)) => Ok(Some(text.as_ref().trim().to_owned())),
        Ok(Err(ImdsError::ErrorResponse(answer))) => match answer.response().status().as_u16() {
            404 => Ok(None),
            status => Err(failed(if status >= 500 { ErrorKind::Transient } else { ErrorKind::Permission })
                .with("status", status)),
        },
        Ok(Err(error)) => Err(failed(ErrorKind::Transient).with_source(error)),
        Err(_) => Err(failed(ErrorKind::Transient).with("no answer within", format!("{WHOLE:?}"))),
    }
}

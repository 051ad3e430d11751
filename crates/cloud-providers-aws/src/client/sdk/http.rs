//! The HTTP client under the SDK.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_smithy_http_client::{Connector, proxy::ProxyConfig, tls};
use aws_smithy_runtime_api::client::http::{
    HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};

/// Makes the client: rustls with the workspace's cryptography, roots of the system, and the proxy that the variables
/// `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` name, as the programs that ours take the place of use one.
pub(super) fn client() -> SharedHttpClient {
    // Connectors hold the pools of connections, so one is kept for each pair of times.
    type Times = (Option<Duration>, Option<Duration>);
    let connectors: Mutex<HashMap<Times, SharedHttpConnector>> = Mutex::default();
    http_client_fn(move |settings, components| {
        let times = (settings.connect_timeout(), settings.read_timeout());
        let mut connectors = connectors.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || SharedHttpConnector::new(connector(settings, components.sleep_impl()));
        connectors.entry(times).or_insert_with(make).clone()
    })
}

fn connector(
    settings: &HttpConnectorSettings,
    sleep: Option<aws_sdk_ec2::config::SharedAsyncSleep>,
) -> Connector {
    let mut builder = Connector::builder();
    builder.set_sleep_impl(sleep);
    builder
        .connector_settings(settings.clone())
        .proxy_config(ProxyConfig::from_env())
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .build()
}

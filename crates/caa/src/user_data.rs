//! What a guest is told: `apf.json` and the cloud-config around it.

use anyhow::{Context as _, Result};
use cloud_providers::cloud_config::CloudConfig;
use peerpod_net::PodNetwork;
use serde::Serialize;

use crate::identity::Identity;

/// Path of the forwarder's configuration in the guest.
pub const APF_PATH: &str = "/run/peerpod/apf.json";
/// Path of the registry credentials in the guest.
pub const AUTH_PATH: &str = "/run/peerpod/auth.json";
/// Path of the encoded init-data in the guest.
pub const INIT_DATA_PATH: &str = "/run/peerpod/initdata";
/// Path of the marker that asks for scratch space.
pub const SCRATCH_PATH: &str = "/run/peerpod/scratch-space.marker";
/// The most bytes of registry credentials that travel as user data.
pub const AUTH_LIMIT: usize = 12_288;

/// The forwarder's configuration. Keys, their order and what is left out follow the existing programs.
#[derive(Serialize)]
struct ForwarderConfig<'a> {
    #[serde(rename = "pod-network")]
    pod_network: &'a PodNetwork,
    #[serde(rename = "pod-namespace")]
    pod_namespace: &'a str,
    #[serde(rename = "pod-name")]
    pod_name: &'a str,
    #[serde(rename = "tls-server-key", skip_serializing_if = "Option::is_none")]
    tls_server_key: Option<&'a str>,
    #[serde(rename = "tls-server-cert", skip_serializing_if = "Option::is_none")]
    tls_server_cert: Option<&'a str>,
    #[serde(rename = "tls-client-ca", skip_serializing_if = "Option::is_none")]
    tls_client_ca: Option<&'a str>,
    #[serde(rename = "tls-min-version", skip_serializing_if = "str::is_empty")]
    tls_min_version: &'a str,
    #[serde(rename = "tls-cipher-suites", skip_serializing_if = "no_items")]
    tls_cipher_suites: &'a [String],
}

/// What goes into the user data of one guest.
#[derive(Debug)]
pub struct GuestFiles<'a> {
    /// Network of the pod.
    pub network: &'a PodNetwork,
    /// Name of the pod.
    pub pod_name: &'a str,
    /// Namespace of the pod.
    pub pod_namespace: &'a str,
    /// Identity, `None` with `--disable-tls`.
    pub identity: Option<&'a Identity>,
    /// `--tls-min-version`.
    pub tls_min_version: &'a str,
    /// `--tls-cipher-suites`.
    pub tls_cipher_suites: &'a [String],
    /// Registry credentials.
    pub auth_json: Option<&'a str>,
    /// Encoded init-data.
    pub init_data: Option<&'a str>,
    /// `--enable-scratch-space`.
    pub scratch_space: bool,
}

impl GuestFiles<'_> {
    /// Returns the text of `apf.json`, indented by four spaces as the existing daemon writes it.
    ///
    /// # Errors
    ///
    /// When it cannot be written as JSON.
    pub fn apf_json(&self) -> Result<String> {
        let config = ForwarderConfig {
            pod_network: self.network,
            pod_namespace: self.pod_namespace,
            pod_name: self.pod_name,
            tls_server_key: self.identity.and_then(|i| i.server_key.as_deref()),
            tls_server_cert: self.identity.and_then(|i| i.server_cert.as_deref()),
            tls_client_ca: self.identity.and_then(|i| i.client_ca.as_deref()),
            tls_min_version: self.tls_min_version,
            tls_cipher_suites: self.tls_cipher_suites,
        };
        let mut out = Vec::new();
        let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        config
            .serialize(&mut serde_json::Serializer::with_formatter(&mut out, indent))
            .context("write the forwarder's configuration")?;
        String::from_utf8(out).context("the forwarder's configuration is not UTF-8")
    }

    /// Returns the whole user data and the text of `apf.json`.
    ///
    /// # Errors
    ///
    /// When a text cannot be written.
    pub fn user_data(&self) -> Result<(String, String)> {
        let apf = self.apf_json()?;
        let mut cloud_config = CloudConfig::new().with_file(APF_PATH, apf.clone());
        if let Some(auth) = self.auth_json {
            if auth.len() <= AUTH_LIMIT {
                cloud_config = cloud_config.with_file(AUTH_PATH, auth);
            } else {
                tracing::warn!(
                    bytes = auth.len(),
                    limit = AUTH_LIMIT,
                    pod = self.pod_name,
                    "image pull secrets are too large for user data and are left out"
                );
            }
        }
        if let Some(init_data) = self.init_data {
            cloud_config = cloud_config.with_file(INIT_DATA_PATH, init_data);
        }
        if self.scratch_space {
            cloud_config = cloud_config.with_file(SCRATCH_PATH, "");
        }
        Ok((cloud_config.to_text()?, apf))
    }
}

fn no_items(items: &&[String]) -> bool {
    items.is_empty()
}

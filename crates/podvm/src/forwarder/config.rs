//! What the forwarder is told: its flags and `apf.json`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use peerpod_net::PodNetwork;
use peerpod_proto::relay::SESSION_GRACE;
use serde::Deserialize;

use crate::paths;

/// Flags of the forwarder.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// File with the configuration.
    pub config: PathBuf,
    /// Address to listen on.
    pub listen: String,
    /// Socket of the agent.
    pub agent_socket: PathBuf,
    /// Path of the pod's network namespace.
    pub pod_namespace: PathBuf,
    /// Second interface of the VM, for a dedicated tunnel.
    pub host_interface: Option<String>,
    /// CA that vouches for clients.
    pub ca_cert_file: Option<PathBuf>,
    /// Certificate of this server.
    pub cert_file: Option<PathBuf>,
    /// Key of this server.
    pub cert_key: Option<PathBuf>,
    /// Whether to serve without TLS.
    pub disable_tls: bool,
    /// Folders below which missing sources of bind mounts are made.
    pub bind_source_dirs: Vec<PathBuf>,
    /// How long the calls of a node that lost its connection are kept; zero for not at all.
    pub link_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config: paths::APF_CONFIG.into(),
            listen: "0.0.0.0:15150".to_owned(),
            agent_socket: paths::AGENT_SOCKET.into(),
            pod_namespace: paths::POD_NETNS.into(),
            host_interface: None,
            ca_cert_file: None,
            cert_file: None,
            cert_key: None,
            disable_tls: false,
            bind_source_dirs: BIND_SOURCE_DIRS.map(PathBuf::from).to_vec(),
            link_grace: SESSION_GRACE,
        }
    }
}

/// Where missing sources of bind mounts are made unless told otherwise.
pub const BIND_SOURCE_DIRS: [&str; 3] =
    ["/run/kata-containers", paths::CLOUD_VOLUMES_DIR, "/var/lib/kubelet"];

/// Content of `apf.json`. It holds a key, so it has no `Debug`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ApfConfig {
    /// The network of the pod.
    pub pod_network: Option<PodNetwork>,
    /// Kubernetes namespace of the pod.
    #[serde(default)]
    pub pod_namespace: String,
    /// Name of the pod.
    #[serde(default)]
    pub pod_name: String,
    #[serde(default)]
    pub(super) tls_server_key: Option<String>,
    #[serde(default)]
    pub(super) tls_server_cert: Option<String>,
    #[serde(default)]
    pub(super) tls_client_ca: Option<String>,
    #[serde(default)]
    pub(super) tls_min_version: Option<String>,
    #[serde(default)]
    pub(super) tls_cipher_suites: Option<Vec<String>>,
}

impl ApfConfig {
    /// Reads the first JSON value of a file; keys that are not known are left alone.
    ///
    /// # Errors
    ///
    /// A missing file, JSON of another shape, or no pod network.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read {} (set -config)", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    ///
    /// See [`Self::load`].
    pub fn parse(text: &[u8]) -> Result<Self> {
        let config: Self = match serde_json::Deserializer::from_slice(text).into_iter().next() {
            Some(value) => value.context("not the configuration of the forwarder")?,
            None => bail!("the file is empty"),
        };
        ensure!(config.pod_network.is_some(), "pod-network is missing or null");
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tls::server_tls;
    use super::*;
    use crate::paths::Paths;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/go-golden/apf");

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{GOLDEN}/{name}.json")).unwrap()
    }

    fn no_tls() -> ApfConfig {
        ApfConfig::parse(&golden("no-tls")).unwrap()
    }

    fn fails(options: &Options, config: &ApfConfig) -> String {
        let error = server_tls(options, config, &Paths::new("/nonexistent")).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn what_the_go_program_writes_is_read_and_makes_a_server() {
        for name in ["vxlan", "vxlan-profile-neigh"] {
            let config = ApfConfig::parse(&golden(name)).unwrap();
            assert_eq!(config.pod_network.as_ref().unwrap().interface, "eth0", "{name}");
        }
        let vxlan = ApfConfig::parse(&golden("vxlan")).unwrap();
        assert_eq!((vxlan.pod_namespace.as_str(), vxlan.pod_name.as_str()), ("default", "nginx-7c6d"));
        assert!(server_tls(&Options::default(), &vxlan, &Paths::new("/nonexistent")).unwrap().is_some());
    }

    #[test]
    fn a_null_or_absent_pod_network_is_an_error_that_names_the_key() {
        for text in [&golden("zero")[..], b"{}"] {
            let error = ApfConfig::parse(text).err().unwrap();
            assert!(format!("{error:#}").contains("pod-network"), "{error:#}");
        }
        for text in [&b""[..], b"[]", b"{\"pod-network\": 3}", b"{"] {
            assert!(ApfConfig::parse(text).is_err());
        }
    }

    #[test]
    fn only_the_first_value_is_read_and_unknown_keys_are_left_alone() {
        let mut text = golden("no-tls");
        text.extend_from_slice(b" {broken");
        assert!(ApfConfig::parse(&text).is_ok());
        let more = String::from_utf8(golden("no-tls")).unwrap().replacen('{', "{\"sc-pp-prv\": \"AA==\",", 1);
        assert!(ApfConfig::parse(more.as_bytes()).is_ok());
    }

    #[test]
    fn no_ca_for_clients_is_refused() {
        let mut config = ApfConfig::parse(&golden("vxlan")).unwrap();
        for ca in [None, Some(String::new())] {
            config.tls_client_ca = ca;
            assert!(fails(&Options::default(), &config).contains("-ca-cert-file"));
        }
    }

    #[test]
    fn half_a_certificate_is_refused() {
        let mut config = ApfConfig::parse(&golden("vxlan")).unwrap();
        let half = Options { cert_file: Some("/x".into()), ..Options::default() };
        assert!(fails(&half, &config).contains("together"));
        config.tls_server_key = None;
        assert!(fails(&Options::default(), &config).contains("tls-server-key"));
    }

    #[test]
    fn tls_can_be_switched_off_but_not_in_a_confidential_vm() {
        let options = Options { disable_tls: true, ..Options::default() };
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        assert!(server_tls(&options, &no_tls(), &paths).unwrap().is_none());
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/sev-guest"), "").unwrap();
        assert!(server_tls(&options, &no_tls(), &paths).unwrap_err().to_string().contains("sev-guest"));
    }

    #[test]
    fn a_profile_that_is_not_offered_is_refused() {
        let mut config = ApfConfig::parse(&golden("vxlan")).unwrap();
        config.tls_min_version = Some("VersionTLS10".to_owned());
        assert!(fails(&Options::default(), &config).contains("VersionTLS10"));
    }
}

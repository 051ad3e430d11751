//! A hostile configuration of the forwarder.

use fuzz_support::{Seen, Target, fixtures};

use super::{ApfConfig, Options, server_tls};
use crate::paths::Paths;

#[test]
fn forwarder_config() {
    Target::new("forwarder-config")
        .seeds(fixtures("go-golden/apf"))
        .words(&[
            "pod-network",
            "tls-server-key",
            "-----BEGIN CERTIFICATE-----",
            "1.3",
            "TLS_AES_128_GCM_SHA256",
        ])
        .json()
        .run(|input| match ApfConfig::parse(input) {
            Ok(config) => {
                assert!(config.pod_network.is_some());
                // Whoever gives no CA for clients is told so, and never gets a server that obeys everyone.
                match server_tls(&Options::default(), &config, &Paths::new("/nonexistent")) {
                    Ok(tls) => Seen::accepted(tls.is_some()),
                    Err(error) => Seen::refused(&format!("{error:#}")).and(1),
                }
            }
            Err(error) => {
                let text = format!("{error:#}");
                assert!(
                    text.contains("line") || text.contains("pod-network") || text.contains("empty"),
                    "{text}"
                );
                Seen::refused(&text)
            }
        });
}

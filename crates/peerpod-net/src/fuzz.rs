//! A hostile `pod-network` object.

use fuzz_support::{Seen, Target, fixtures};

use crate::PodNetwork;

#[test]
fn pod_network() {
    let seeds = fixtures("go-golden/apf").into_iter().filter_map(|(name, bytes)| {
        let apf: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let network = apf.get("pod-network").filter(|network| network.is_object())?;
        Some((name, serde_json::to_vec_pretty(network).unwrap()))
    });
    Target::new("pod-network")
        .seeds(seeds)
        .words(&[
            "::/0",
            "0.0.0.0/0",
            "10.0.0.1/33",
            "fe80::1%eth0",
            "permanent",
            "nowhere",
            "metric",
            "onlink",
            "src",
        ])
        .json()
        .run(|input| {
            let network: PodNetwork = match serde_json::from_slice(input) {
                Ok(network) => network,
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("line"), "{text}");
                    // Serde shows the value of another type, or a word that it does not know, as a whole.
                    let whole = ["invalid type", "unknown variant", "invalid value"];
                    assert!(text.len() < 512 || whole.iter().any(|by| text.starts_with(by)), "{text}");
                    return Seen::refused(&text);
                }
            };
            let text = serde_json::to_string(&network).unwrap();
            let again: PodNetwork = serde_json::from_str(&text).expect("what is written is read");
            assert_eq!(again, network, "{text}");
            assert_eq!(serde_json::to_string(&again).unwrap(), text);
            Seen::accepted((
                network.pod_ip.map(|ip| ip.addr().is_ipv4()),
                network.routes.len().min(4),
                network.routes.iter().map(|route| (route.is_default(), route.gateway.is_some())).next(),
                network.neighbors.len().min(3),
                network.vxlan_id == 0,
            ))
        });
}

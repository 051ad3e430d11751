//! Which of an instance's addresses is the other end of the tunnel.

use std::net::IpAddr;

use cloud_providers::Instance;
use peerpod_net::Family;
use peerpod_proto::{Code, Status};

use crate::store::SandboxRecord;

/// The instance's end of the tunnel: of its addresses of the tunnel's family the first, or the second over a dedicated
/// interface.
pub(super) fn tunnel_peer(record: &SandboxRecord, instance: &Instance) -> Result<IpAddr, Status> {
    peer_of(record.underlay.unwrap_or(Family::V4), record.dedicated, instance)
}

fn peer_of(family: Family, dedicated: bool, instance: &Instance) -> Result<IpAddr, Status> {
    let wanted = usize::from(dedicated);
    let mut fitting = instance.addresses.iter().filter(|ip| Family::of(**ip) == family);
    fitting.nth(wanted).copied().ok_or_else(|| {
        let all: Vec<_> = instance.addresses.iter().map(ToString::to_string).collect();
        let which = if dedicated {
            format!("no second {family} address for the dedicated interface")
        } else {
            format!("no {family} address, which the tunnel from this node's {family} address needs")
        };
        let has =
            if all.is_empty() { "it has none".to_owned() } else { format!("it has {}", all.join(", ")) };
        Status::new(Code::FailedPrecondition, format!("instance {} has {which} ({has})", instance.id))
    })
}

#[cfg(test)]
mod tests {
    use cloud_providers::InstanceId;

    use super::*;

    fn peer(family: Family, dedicated: bool, addresses: &[&str]) -> Result<String, String> {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let instance = Instance::new(InstanceId::new("i-1"), "podvm-web", addresses);
        peer_of(family, dedicated, &instance).map(|ip| ip.to_string()).map_err(|status| status.message)
    }

    #[test]
    fn the_peer_of_a_tunnel_is_of_the_tunnels_family() {
        let both = ["192.0.2.5", "2001:db8::5", "192.0.2.6", "2001:db8::6"];
        assert_eq!(peer(Family::V4, false, &both).unwrap(), "192.0.2.5");
        assert_eq!(peer(Family::V6, false, &both).unwrap(), "2001:db8::5");
        assert_eq!(peer(Family::V4, true, &both).unwrap(), "192.0.2.6");
        assert_eq!(peer(Family::V6, true, &both).unwrap(), "2001:db8::6");
    }

    #[test]
    fn an_instance_without_a_fitting_address_is_told_with_what_it_has() {
        let error = peer(Family::V6, false, &["192.0.2.5"]).unwrap_err();
        assert!(error.contains("no IPv6 address") && error.contains("192.0.2.5"), "{error}");
        let error = peer(Family::V4, true, &["192.0.2.5"]).unwrap_err();
        assert!(error.contains("no second IPv4 address"), "{error}");
        assert!(peer(Family::V4, false, &[]).unwrap_err().contains("it has none"));
    }
}

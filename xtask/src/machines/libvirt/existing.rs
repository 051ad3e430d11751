//! A libvirtd that was there before us: it is used beside what it has, and everything of ours is taken back.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use test_support::{Netns, run, unique, unique_ifname};

use super::virsh;

/// The interface of the stand-in node on libvirt's network.
const CARD: &str = "libvirt0";

/// The network and the pool `default` of a libvirtd on this host, with the node's namespace attached to the network.
#[derive(Debug)]
pub(super) struct Existing {
    uri: String,
    /// The volume with the image.
    pub(super) base: String,
    /// The folder of the pool.
    pub(super) pool: PathBuf,
    /// The UUIDs of the domains of others.
    pub(super) domains: BTreeSet<String>,
    volumes: BTreeSet<String>,
    link: String,
    left: bool,
}

impl Existing {
    /// Uploads the image and joins the network: the one link that is made in the namespace in which we run.
    pub(super) fn join(node: &Netns, uri: &str, image: &Path) -> Result<Self> {
        let local = ["qemu:///", "qemu+unix:///"].iter().any(|start| uri.starts_with(start));
        ensure!(
            local,
            "--uri {uri} is on another host: the demo joins the network of a libvirtd on this one"
        );
        let list = virsh(uri, &["list", "--all", "--uuid"])?;
        let pool = virsh(uri, &["pool-dumpxml", "default"])?;
        let pool = between(&pool, "<path>", "</path>").context("the pool default has no folder")?;
        let network = virsh(uri, &["net-dumpxml", "default"])?;
        let bridge = between(&network, "<bridge name='", "'").context("the network default has no bridge")?;
        let (gateway, address, bits) = neighbour(&network)?;
        let mut existing = Self {
            uri: uri.to_owned(),
            base: format!("{}.qcow2", unique("ppdemo")),
            pool: pool.into(),
            domains: list.split_whitespace().map(str::to_owned).collect(),
            volumes: volumes(uri)?,
            link: unique_ifname("ppdm"),
            left: false,
        };
        let size = format!("{}B", std::fs::metadata(image)?.len());
        virsh(uri, &["vol-create-as", "default", &existing.base, &size, "--format", "raw"])?;
        existing.volumes.insert(existing.base.clone());
        virsh(uri, &["vol-upload", "--pool", "default", &existing.base, &image.to_string_lossy()])?;
        // Only a look at the file shows that it is qcow2.
        virsh(uri, &["pool-refresh", "default"])?;
        let add = ["link", "add", &existing.link, "type", "veth", "peer", "name", CARD, "netns", node.name()];
        run("ip", &add)?;
        run("ip", &["link", "set", &existing.link, "master", bridge, "up"])?;
        node.ip(&["addr", "add", &format!("{address}/{bits}"), "dev", CARD])?;
        node.ip(&["link", "set", CARD, "up"])?;
        // The daemon tells machines the address of the card with the default route: they must reach it.
        node.ip(&["route", "replace", "default", "via", &gateway.to_string(), "dev", CARD])?;
        Ok(existing)
    }

    /// Names the volumes that were not there when we came.
    pub(super) fn new_volumes(&self) -> Result<Vec<String>> {
        Ok(volumes(&self.uri)?.difference(&self.volumes).cloned().collect())
    }

    /// Takes the image and the link back.
    pub(super) fn leave(mut self) -> Result<()> {
        self.take_back()
    }

    fn take_back(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.left, true) {
            return Ok(());
        }
        // Its other end goes with it, and may have gone with the namespace already.
        let _ = run("ip", &["link", "delete", &self.link]);
        virsh(&self.uri, &["vol-delete", "--pool", "default", &self.base]).map(drop)
    }
}

impl Drop for Existing {
    fn drop(&mut self) {
        if let Err(error) = self.take_back() {
            eprintln!("the volume {} could not be deleted: {error:#}", self.base);
        }
    }
}

fn volumes(uri: &str) -> Result<BTreeSet<String>> {
    virsh(uri, &["pool-refresh", "default"])?;
    let list = virsh(uri, &["vol-list", "default"])?;
    Ok(list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Returns the host's address on the network, the network's last address, and the length of the prefix. A DHCP server tries addresses before it
/// gives them away.
fn neighbour(network: &str) -> Result<(Ipv4Addr, Ipv4Addr, u32)> {
    let ip = between(network, "<ip ", ">").context("the network default has no addresses")?;
    let value = |name: &str| between(ip, &format!("{name}='"), "'");
    let own: Ipv4Addr = value("address").context("the network default has no address")?.parse()?;
    let bits = match (value("netmask"), value("prefix")) {
        (Some(mask), _) => u32::from(mask.parse::<Ipv4Addr>()?).count_ones(),
        (None, Some(prefix)) => prefix.parse()?,
        (None, None) => 24,
    };
    ensure!((8..=29).contains(&bits), "the network default has no room for the stand-in node: /{bits}");
    let last = (u32::from(own) | (u32::MAX >> bits)) - 1;
    let last = Ipv4Addr::from(if last == u32::from(own) { last - 1 } else { last });
    Ok((own, last, bits))
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(found, _)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_takes_the_last_address_of_the_network() {
        let network = |ip: &str| format!("<network><bridge name='virbr0'/><ip {ip}><dhcp/></ip></network>");
        let of = |ip: &str| neighbour(&network(ip)).unwrap();
        let (own, last, bits) = of("address='192.168.122.1' netmask='255.255.255.0'");
        assert_eq!((own.to_string(), last.to_string()), ("192.168.122.1".into(), "192.168.122.254".into()));
        assert_eq!(bits, 24);
        assert_eq!(of("address='10.0.0.254' prefix='24'").1.to_string(), "10.0.0.253");
        assert!(neighbour(&network("address='10.0.0.1' prefix='30'")).is_err());
        assert!(neighbour("<network/>").is_err());
    }
}

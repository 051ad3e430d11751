//! Domains as libvirt describes them.

use cloud_providers::Result;
use roxmltree::Node;

use super::{Metadata, all, attr, find, parse, text};

/// A domain that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DomainFacts {
    pub(crate) name: String,
    pub(crate) uuid: String,
    /// `kvm`, `qemu`, `test`…
    pub(crate) domain_type: String,
    /// `None` on domains that are not ours, and on ours that the existing programs made.
    pub(crate) metadata: Option<Metadata>,
    pub(crate) disks: Vec<DiskFacts>,
    pub(crate) nics: Vec<NicFacts>,
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskFacts {
    /// Path of a file or block device.
    pub(crate) path: Option<String>,
    /// Pool and volume, where the disk names them.
    pub(crate) volume: Option<(String, String)>,
    /// `vda`, `sdb`…
    pub(crate) target: String,
    pub(crate) device: String,
    pub(crate) serial: Option<String>,
    pub(crate) read_only: bool,
}

/// A network interface of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NicFacts {
    pub(crate) mac: String,
    pub(crate) network: Option<String>,
    pub(crate) bridge: Option<String>,
}

impl DomainFacts {
    /// Reads a domain's definition.
    pub(crate) fn parse(xml: &str) -> Result<Self> {
        let document = parse("domain", xml)?;
        let root = document.root_element();
        let devices = find(root, "devices");
        Ok(Self {
            name: text(root, "name"),
            uuid: text(root, "uuid"),
            domain_type: attr(root, "", "type").unwrap_or_default(),
            metadata: Metadata::of_domain(root),
            disks: devices.into_iter().flat_map(|d| all(d, "disk")).map(disk).collect(),
            nics: devices.into_iter().flat_map(|d| all(d, "interface")).map(nic).collect(),
        })
    }
}

fn disk(node: Node<'_, '_>) -> DiskFacts {
    DiskFacts {
        path: attr(node, "source", "file").or_else(|| attr(node, "source", "dev")),
        volume: attr(node, "source", "pool").zip(attr(node, "source", "volume")),
        target: attr(node, "target", "dev").unwrap_or_default(),
        device: attr(node, "", "device").unwrap_or_else(|| "disk".into()),
        serial: Some(text(node, "serial")).filter(|s| !s.is_empty()),
        read_only: find(node, "readonly").is_some(),
    }
}

fn nic(node: Node<'_, '_>) -> NicFacts {
    NicFacts {
        mac: attr(node, "mac", "address").unwrap_or_default(),
        network: attr(node, "source", "network"),
        bridge: attr(node, "source", "bridge"),
    }
}

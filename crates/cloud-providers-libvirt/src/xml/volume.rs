//! Volumes and their pools.

use cloud_providers::{Error, Result};

use super::{Element, attr, bytes, find, parse, text};

/// How names of root volumes and seeds end, as in the existing programs.
const ROOT_END: &str = "-root.qcow2";
const SEED_END: &str = "-cloudinit.iso";

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumePlan {
    pub(crate) name: String,
    pub(crate) capacity: u64,
    /// `qcow2` or `raw`.
    pub(crate) format: &'static str,
    /// File permissions in octal digits.
    pub(crate) mode: &'static str,
    /// Path and format of the volume below.
    pub(crate) backing: Option<(String, String)>,
}

impl VolumePlan {
    /// A root disk over `base`: everything that the guest writes goes into it.
    ///
    /// It has `root_gib` GiB and never less than the base, whose end the guest would miss.
    ///
    /// # Errors
    ///
    /// A base that cannot be below a disk.
    pub(crate) fn root(instance: &str, root_gib: u64, base: &VolumeFacts) -> Result<Self> {
        if !base.is_file() {
            return Err(Error::config("the base volume is no file, so no overlay can be made over it")
                .with("volume", &base.name)
                .with("set", "LIBVIRT_VOL_NAME"));
        }
        let wanted = root_gib.checked_mul(1 << 30).ok_or_else(|| {
            Error::config("the root disk is too large")
                .with("GiB", root_gib)
                .with("set", "LIBVIRT_ROOT_DISK_SIZE")
        })?;
        Ok(Self {
            name: root_name(instance),
            capacity: wanted.max(base.capacity),
            format: "qcow2",
            mode: "0600",
            backing: Some((base.path.clone(), base.format.clone())),
        })
    }

    /// The volume of a seed of `bytes` bytes. It holds keys: nobody but QEMU's user reads it.
    pub(crate) fn seed(instance: &str, bytes: u64) -> Self {
        Self { name: seed_name(instance), capacity: bytes, format: "raw", mode: "0600", backing: None }
    }

    pub(crate) fn to_xml(&self) -> Result<String> {
        let mut volume = Element::new("volume")
            .attr("type", "file")
            .child(Element::new("name").text(&self.name))
            .child(Element::new("capacity").attr("unit", "bytes").text(self.capacity));
        if self.format == "qcow2" {
            // Blocks come when they are written.
            volume = volume.child(Element::new("allocation").attr("unit", "bytes").text(0));
        }
        let mut target = Element::new("target")
            .child(Element::new("format").attr("type", self.format))
            .child(Element::new("permissions").child(Element::new("mode").text(self.mode)));
        if self.format == "qcow2" {
            // libvirt's own default is a version of 2008 that cannot forget blocks.
            target = target.child(Element::new("compat").text("1.1"));
        }
        volume = volume.child(target);
        if let Some((path, format)) = &self.backing {
            volume = volume.child(
                Element::new("backingStore")
                    .child(Element::new("path").text(path))
                    .child(Element::new("format").attr("type", format)),
            );
        }
        volume.to_xml()
    }
}

/// Returns the name of an instance's root volume.
pub(crate) fn root_name(instance: &str) -> String {
    format!("{instance}{ROOT_END}")
}

/// Returns the name of an instance's seed volume.
pub(crate) fn seed_name(instance: &str) -> String {
    format!("{instance}{SEED_END}")
}

/// Returns the instance that a volume of this name would have been made for.
pub(crate) fn instance_of_volume(name: &str) -> Option<&str> {
    name.strip_suffix(ROOT_END)
        .or_else(|| name.strip_suffix(SEED_END))
        .filter(|instance| !instance.is_empty())
}

/// A volume that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeFacts {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) path: String,
    /// `file`, `block`, `dir`, `network`…
    pub(crate) kind: String,
    /// As libvirt probed it.
    pub(crate) format: String,
    pub(crate) capacity: u64,
    pub(crate) backing: Option<String>,
}

impl VolumeFacts {
    /// Reads a volume's description.
    pub(crate) fn parse(xml: &str) -> Result<Self> {
        let document = parse("volume", xml)?;
        let root = document.root_element();
        Ok(Self {
            name: text(root, "name"),
            key: text(root, "key"),
            path: text(root, "target/path"),
            kind: attr(root, "", "type").unwrap_or_else(|| "file".into()),
            format: attr(root, "target/format", "type").unwrap_or_else(|| "raw".into()),
            capacity: bytes(root, "capacity").unwrap_or_default(),
            backing: Some(text(root, "backingStore/path")).filter(|p| !p.is_empty()),
        })
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind == "file"
    }
}

/// A storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolFacts {
    pub(crate) name: String,
    /// `dir`, `fs`, `netfs`, `logical`…
    pub(crate) kind: String,
    /// Folder of the volumes, where the pool has one.
    pub(crate) folder: String,
    pub(crate) available: Option<u64>,
}

impl PoolFacts {
    /// Reads a pool's description.
    pub(crate) fn parse(xml: &str) -> Result<Self> {
        let document = parse("storage pool", xml)?;
        let root = document.root_element();
        Ok(Self {
            name: text(root, "name"),
            kind: attr(root, "", "type").unwrap_or_default(),
            folder: text(root, "target/path"),
            available: find(root, "available").and_then(|_| bytes(root, "available")),
        })
    }

    /// Returns the path that a volume of this name has or will have.
    ///
    /// # Errors
    ///
    /// A pool whose volumes are no files in one folder: overlays need that.
    pub(crate) fn path_of(&self, volume: &str) -> Result<String> {
        if !matches!(self.kind.as_str(), "dir" | "fs" | "netfs") || !self.folder.starts_with('/') {
            return Err(Error::config("the storage pool does not keep its volumes as files in a folder")
                .with("pool", &self.name)
                .with("type", &self.kind)
                .with("expected", "dir, fs or netfs")
                .with("set", "LIBVIRT_POOL"));
        }
        Ok(format!("{}/{volume}", self.folder.trim_end_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_read_with_its_backing() {
        let xml = "<volume type='file'><name>a.qcow2</name><key>/p/a.qcow2</key><capacity unit='bytes'>1024</capacity>\
            <target><path>/p/a.qcow2</path><format type='qcow2'/></target>\
            <backingStore><path>/p/base</path><format type='raw'/></backingStore></volume>";
        let facts = VolumeFacts::parse(xml).unwrap();
        assert_eq!((facts.format.as_str(), facts.capacity), ("qcow2", 1024));
        assert_eq!((facts.path.as_str(), facts.backing.as_deref()), ("/p/a.qcow2", Some("/p/base")));
        assert!(facts.is_file());
        assert!(VolumeFacts::parse("<volume").is_err());
    }

    #[test]
    fn paths_are_known_beforehand_in_pools_of_files_only() {
        let pool = |kind: &str| {
            let xml = format!(
                "<pool type='{kind}'><name>p</name><available unit='bytes'>7</available>\
                 <target><path>/pool/</path></target></pool>"
            );
            PoolFacts::parse(&xml).unwrap()
        };
        assert_eq!(pool("dir").path_of("v").unwrap(), "/pool/v");
        assert_eq!(pool("netfs").available, Some(7));
        let error = pool("logical").path_of("v").unwrap_err().to_string();
        assert!(error.contains("type: logical") && error.contains("LIBVIRT_POOL"), "{error}");
    }
}

//! Loads kernel modules: those of the devices that are there, and those that the kernel asks for later.
//!
//! `modules.dep` and `modules.alias` below `/lib/modules/<release>` have the form that `depmod` writes.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use tracing::{debug, info, warn};

/// Folders whose entries are devices that may name a driver.
const BUSES: &str = "/sys/bus";
const INPUT: &str = "/sys/class/input";
/// Disks at a SCSI controller appear some time after their controller; their drivers are loaded with it.
const SCSI_HOSTS: &str = "/sys/class/scsi_host";
const SCSI_DRIVERS: [&str; 2] = ["sd_mod", "sr_mod"];

/// The modules of an image.
struct Catalogue {
    folder: PathBuf,
    /// What to load for a module, in order, itself last.
    files: HashMap<String, Vec<String>>,
    /// Pattern and module.
    aliases: Vec<(String, String)>,
}

impl Catalogue {
    fn of_this_kernel() -> Result<Self> {
        let name = nix::sys::utsname::uname().context("ask the kernel for its release")?;
        Self::read(&Path::new("/lib/modules").join(name.release()))
    }

    fn read(folder: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        Ok(Self {
            folder: folder.to_owned(),
            files: parse_dependencies(&text("modules.dep")?),
            aliases: parse_aliases(&text("modules.alias")?),
        })
    }

    /// Modules that a name or a device's alias stands for.
    fn resolve(&self, name: &str) -> BTreeSet<&str> {
        let name = normal(name);
        if let Some((known, _)) = self.files.get_key_value(&name) {
            return BTreeSet::from([known.as_str()]);
        }
        let matching = self.aliases.iter().filter(|(pattern, _)| matches(pattern, &name));
        matching.map(|(_, module)| module.as_str()).collect()
    }

    /// Loads a module with what it needs. A module that is there already is fine.
    fn load(&self, module: &str) -> Result<()> {
        let files = self.files.get(module).with_context(|| format!("no module {module} in this image"))?;
        for file in files {
            let path = self.folder.join(file);
            let image = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            match finit_module(image, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(anyhow!(error).context(format!("load {}", path.display()))),
            }
        }
        Ok(())
    }
}

/// Loads the drivers of the devices that are there, and of the devices that these drivers find.
pub(super) fn load_for_devices() -> Result<()> {
    let catalogue = Catalogue::of_this_kernel()?;
    let mut tried = BTreeSet::new();
    loop {
        let mut wanted: BTreeSet<&str> =
            device_aliases().iter().flat_map(|alias| catalogue.resolve(alias)).collect();
        if entries(Path::new(SCSI_HOSTS)).next().is_some() {
            wanted.extend(SCSI_DRIVERS.iter().flat_map(|driver| catalogue.resolve(driver)));
        }
        let new: Vec<&str> = wanted.difference(&tried).copied().collect();
        if new.is_empty() {
            break;
        }
        for module in new {
            tried.insert(module);
            // A device without its driver may not matter; what does matter is missed by a later step.
            match catalogue.load(module) {
                Ok(()) => debug!(module, "driver is loaded"),
                Err(error) => warn!(module, error = format!("{error:#}"), "a driver does not load"),
            }
        }
    }
    info!(drivers = tried.into_iter().collect::<Vec<_>>().join(" "), "drivers are loaded");
    Ok(())
}

/// Loads what the kernel asks for; it runs this program as `modprobe -q -- NAME`.
///
/// # Errors
///
/// When no module of the image has that name or alias, or one does not load.
pub fn modprobe(args: impl IntoIterator<Item = String>) -> Result<()> {
    let catalogue = Catalogue::of_this_kernel()?;
    for name in args.into_iter().filter(|arg| !arg.starts_with('-')) {
        let modules = catalogue.resolve(&name);
        anyhow::ensure!(!modules.is_empty(), "no module in this image for {name}");
        for module in modules {
            catalogue.load(module)?;
        }
    }
    Ok(())
}

fn device_aliases() -> Vec<String> {
    let devices = entries(Path::new(BUSES)).flat_map(|bus| entries(&bus.join("devices")));
    devices
        .chain(entries(Path::new(INPUT)))
        .filter_map(|device| fs::read_to_string(device.join("modalias")).ok())
        .map(|alias| alias.trim().to_owned())
        .filter(|alias| !alias.is_empty())
        .collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Dashes and underscores mean the same in names of modules.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn parse_dependencies(text: &str) -> HashMap<String, Vec<String>> {
    text.lines()
        .filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            let name = Path::new(file).file_name()?.to_str()?.split('.').next()?;
            // What a module needs stands after it, the most basic last.
            let order = needs.split_whitespace().rev().chain([file]).map(str::to_owned);
            Some((normal(name), order.collect()))
        })
        .collect()
}

fn parse_aliases(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("alias")).then_some(())?;
            Some((normal(words.next()?), normal(words.next()?)))
        })
        .collect()
}

/// Whether a name has the form of a pattern with `*`, `?` and `[…]`.
fn matches(pattern: &str, name: &str) -> bool {
    fn go(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => {
                // Most patterns end in stars; nothing else needs a look then.
                rest.is_empty() || (0..=name.len()).any(|skip| go(rest, &name[skip..]))
            }
            Some((b'[', rest)) => {
                let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
                let Some((first, name)) = name.split_first() else { return false };
                in_set(&rest[..end], *first) && go(&rest[end + 1..], name)
            }
            Some((b'?', rest)) => name.split_first().is_some_and(|(_, name)| go(rest, name)),
            Some((byte, rest)) => {
                name.split_first().is_some_and(|(first, name)| first == byte && go(rest, name))
            }
        }
    }
    fn in_set(set: &[u8], byte: u8) -> bool {
        let mut at = 0;
        while at < set.len() {
            // A dash between two bytes was turned into an underscore with the names.
            if at + 2 < set.len() && matches!(set[at + 1], b'-' | b'_') {
                if (set[at]..=set[at + 2]).contains(&byte) {
                    return true;
                }
                at += 3;
            } else if set[at] == byte {
                return true;
            } else {
                at += 1;
            }
        }
        false
    }
    go(pattern.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        Catalogue {
            folder: PathBuf::from("/nowhere"),
            files: parse_dependencies(
                "kernel/net/virtio_net.ko: kernel/net/net_failover.ko kernel/net/failover.ko\n\
                 kernel/net/net_failover.ko: kernel/net/failover.ko\nkernel/net/failover.ko:\n",
            ),
            aliases: parse_aliases(
                "# made by depmod\nalias virtio:d00000001v* virtio_net\nalias fs-iso9660 isofs\n\
                 alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias cpu:type:x86,ven*fam*mod*:feature:*[0-9]x a\n",
            ),
        }
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let files = &catalogue().files["virtio_net"];
        assert_eq!(
            files,
            &["kernel/net/failover.ko", "kernel/net/net_failover.ko", "kernel/net/virtio_net.ko"]
        );
    }

    #[test]
    fn devices_and_file_systems_name_their_modules_by_patterns() {
        let catalogue = catalogue();
        let one = |name: &str| catalogue.resolve(name).into_iter().collect::<Vec<_>>();
        assert_eq!(one("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert_eq!(one("pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00"), ["virtio_pci"]);
        assert_eq!(one("fs-iso9660"), ["isofs"]);
        assert_eq!(one("net-failover"), ["net_failover"]);
        assert!(one("virtio:d00000002v00001AF4").is_empty());
        assert!(one("cpu:type:x86,venXfam1mod2:feature:z7x").contains(&"a"));
        assert!(one("cpu:type:x86,venXfam1mod2:feature:zzx").is_empty());
    }

    #[test]
    fn a_module_that_the_image_lacks_is_named() {
        let error = catalogue().load("btrfs").unwrap_err();
        assert!(error.to_string().contains("btrfs"), "{error}");
    }
}

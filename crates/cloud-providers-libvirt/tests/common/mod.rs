//! What the test programs of this crate share: a libvirtd, quick guests, a provider over them.
#![allow(dead_code, reason = "each program uses a part")]

pub(crate) mod sectors;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, ensure};
use cloud_providers::{Cloud, CreateRequest, MapEnv, Ownership, Provider, Scope, Token, Unit};
use cloud_providers_libvirt::{LibvirtCloud, testing::Faults};
use test_support::Libvirtd;

use sectors::Then;

/// The base volume of machines that ask for an address and have nothing else to do.
pub(crate) const BASE: &str = "base.img";
/// What they write to their console.
pub(crate) const LINE: &str = "test sector asks for an address";

/// A libvirtd with a base volume.
pub(crate) struct Setup {
    pub(crate) libvirtd: Libvirtd,
    pub(crate) scope: Scope,
    /// Of every provider of this set-up.
    pub(crate) faults: Faults,
}

impl Setup {
    pub(crate) fn start() -> Result<Self> {
        let setup = Self { libvirtd: Libvirtd::start()?, scope: scope("lv"), faults: Faults::default() };
        setup.add_disk(BASE, LINE, Then::AskForAddress)?;
        Ok(setup)
    }

    /// Puts a base volume into the pool, as somebody does who copies a file.
    pub(crate) fn add_disk(&self, name: &str, line: &str, then: Then) -> Result<()> {
        Ok(sectors::write_disk(&self.libvirtd.pool_dir().join(name), line, then)?)
    }

    /// Returns the variables of a provider of this libvirtd.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        [
            ("LIBVIRT_URI", self.libvirtd.uri().as_str()),
            ("LIBVIRT_VOL_NAME", BASE),
            ("LIBVIRT_EFI_FIRMWARE", "bios"),
            ("LIBVIRT_CPU", "1"),
            ("LIBVIRT_MEMORY", "64"),
            ("LIBVIRT_ROOT_DISK_SIZE", "1"),
            ("LIBVIRT_DOMAIN_TYPE", "qemu"),
            ("LIBVIRT_BOOT_TIMEOUT", "60s"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    /// Returns a provider, as another process would have it; later variables replace earlier ones.
    pub(crate) async fn provider(&self, more: &[(&str, &str)]) -> Result<Arc<dyn Provider>> {
        let mut variables = self.variables();
        variables.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let mut cloud = LibvirtCloud::new().with_faults(&self.faults);
        cloud.load_env(&MapEnv::new(variables))?;
        Ok(cloud.new_provider().await?)
    }

    /// Returns a request with a name of its own.
    pub(crate) fn request(&self) -> CreateRequest {
        request(&self.scope)
    }

    /// Returns the proof that instances of this set-up are its own.
    pub(crate) fn own(&self) -> Ownership {
        Ownership::Tagged(self.scope.clone())
    }

    /// Fails when there is a domain, or a volume besides the base volumes.
    pub(crate) fn assert_empty(&self) -> Result<()> {
        let (domains, volumes) = (self.libvirtd.domains()?, self.libvirtd.volumes()?);
        let extra: Vec<&String> =
            volumes.iter().filter(|v| v.starts_with("podvm-") || v.starts_with("peerpod-")).collect();
        ensure!(domains.is_empty() && extra.is_empty(), "left over: {domains:?} {extra:?}");
        Ok(())
    }
}

/// Returns a scope that no other test uses.
pub(crate) fn scope(prefix: &str) -> Scope {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    Scope::Cluster(format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst)))
}

/// Returns a request with a name of its own.
pub(crate) fn request(scope: &Scope) -> CreateRequest {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let unit = format!("{:08x}", NEXT.fetch_add(1, Ordering::SeqCst));
    let token = Token::new(scope.clone(), &unit, 1);
    CreateRequest::new(token, Unit { id: unit, name_hint: "vm".into() }, "node-1")
        .with_user_data("#cloud-config\n")
}

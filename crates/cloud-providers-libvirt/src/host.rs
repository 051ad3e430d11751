//! What is known about the hypervisor's host, until its libvirt starts anew.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use cloud_providers::{Architecture, ConfidentialType, Error, ErrorKind, OpContext, Result};
use virt::error::ErrorNumber;

use crate::{
    client::{CallError, Client, step},
    config::{Config, DomainTypeChoice},
    probe,
    xml::{DomainCaps, DomainType, HostFacts},
};

/// Keeps facts that cost a call, or seconds in the case of KVM.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    /// Held while somebody asks, so that many creates at once ask once.
    current: tokio::sync::Mutex<Option<Arc<Host>>>,
    /// The same value for those who cannot wait.
    known: Mutex<Option<Arc<Host>>>,
}

/// A kind of machine: architecture, domain type, and the name of the machine where one is chosen.
type Kind = (Architecture, &'static str, Option<String>);

/// One start of libvirt on one host.
#[derive(Debug)]
pub(crate) struct Host {
    epoch: u64,
    pub(crate) facts: HostFacts,
    /// libvirt's test driver, which runs nothing.
    pub(crate) is_test: bool,
    types: tokio::sync::Mutex<HashMap<Architecture, DomainType>>,
    caps: tokio::sync::Mutex<HashMap<Kind, Arc<DomainCaps>>>,
    confidential: Mutex<Vec<ConfidentialType>>,
}

impl Hosts {
    /// Returns what is known, and asks when nothing is or libvirt may have started anew.
    pub(crate) async fn get(&self, ctx: &OpContext, client: &Client) -> Result<Arc<Host>> {
        let mut current = ctx.run(async { Ok(self.current.lock().await) }).await?;
        if let Some(host) = current.as_ref().filter(|h| h.epoch == client.epoch()) {
            return Ok(host.clone());
        }
        let ask = step("virConnectGetCapabilities", "cannot read what the host can do");
        let (xml, kind) = client.read(ctx, ask, |c| Ok((c.get_capabilities()?, c.get_type()?))).await?;
        let host = Arc::new(Host {
            // Read after the call: a connection that broke under it has been counted.
            epoch: client.epoch(),
            facts: HostFacts::parse(&xml)?,
            is_test: kind.eq_ignore_ascii_case("test"),
            types: tokio::sync::Mutex::default(),
            caps: tokio::sync::Mutex::default(),
            confidential: Mutex::default(),
        });
        *current = Some(host.clone());
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(host.clone());
        Ok(host)
    }

    /// Returns what was learnt last, without asking.
    pub(crate) fn known(&self) -> Option<Arc<Host>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Host {
    /// Returns the architecture of an instance.
    pub(crate) fn architecture(&self, wanted: Option<Architecture>) -> Result<Architecture> {
        // The test driver says i686, and knows no difference.
        let own = if self.is_test { Some(Architecture::X86_64) } else { self.facts.architecture() };
        let arch = wanted.or(own).ok_or_else(|| {
            Error::unsupported("the host's architecture is not one of those known here")
                .with("architecture", &self.facts.arch)
        })?;
        if self.is_test || self.facts.guest(arch).is_some() {
            return Ok(arch);
        }
        Err(Error::unsupported("the host has no QEMU for this architecture")
            .with("architecture", arch)
            .with("install", "its qemu-system package on the hypervisor's host"))
    }

    /// Returns the domain type of instances of `arch`: as configured, or KVM when a probe proves that it works.
    pub(crate) async fn domain_type(
        &self,
        ctx: &OpContext,
        client: &Client,
        config: &Config,
        arch: Architecture,
    ) -> Result<DomainType> {
        if self.is_test {
            return Ok(DomainType::Test);
        }
        match config.domain_type {
            DomainTypeChoice::Kvm => return Ok(DomainType::Kvm),
            DomainTypeChoice::Qemu => return Ok(DomainType::Qemu),
            DomainTypeChoice::Auto => {}
        }
        let advertised = self.facts.guest(arch).is_some_and(|g| g.advertises(DomainType::Kvm));
        if !advertised {
            return Ok(DomainType::Qemu);
        }
        let mut types = ctx.run(async { Ok(self.types.lock().await) }).await?;
        if let Some(known) = types.get(&arch) {
            return Ok(*known);
        }
        let found = probe::domain_type(ctx, client, &config.pool, arch).await?;
        types.insert(arch, found);
        Ok(found)
    }

    /// Returns the machine and emulator to write into a definition; `None` leaves the choice to libvirt.
    pub(crate) fn machine(&self, config: &Config, arch: Architecture) -> (Option<String>, Option<String>) {
        let Some(guest) = self.facts.guest(arch) else { return (config.machine.clone(), None) };
        let usual = match arch {
            Architecture::Aarch64 => Some("virt"),
            Architecture::S390x => Some("s390-ccw-virtio"),
            _ => None,
        };
        let machine = config.machine.as_deref().or(usual).map(|m| guest.canonical_machine(m));
        let emulator =
            (arch != Architecture::X86_64 && !guest.emulator.is_empty()).then(|| guest.emulator.clone());
        (machine, emulator)
    }

    /// Returns what machines of this kind can do.
    pub(crate) async fn caps(
        &self,
        ctx: &OpContext,
        client: &Client,
        arch: Architecture,
        domain_type: DomainType,
        machine: Option<&str>,
    ) -> Result<Arc<DomainCaps>> {
        let key = (arch, domain_type.as_str(), machine.map(str::to_owned));
        let mut caps = ctx.run(async { Ok(self.caps.lock().await) }).await?;
        if let Some(known) = caps.get(&key) {
            return Ok(known.clone());
        }
        let (_, word, machine) = key.clone();
        let ask = step("virConnectGetDomainCapabilities", "cannot read what machines of this kind can do");
        let xml = client
            .read(ctx, ask, move |c| {
                match c.get_domain_capabilities(None, Some(arch.as_str()), machine.as_deref(), Some(word), 0)
                {
                    // The test driver of older versions.
                    Err(e) if e.code() == ErrorNumber::NoSupport => Ok(None),
                    other => Ok(Some(other.map_err(CallError::Virt)?)),
                }
            })
            .await?;
        let found = Arc::new(xml.map(|xml| DomainCaps::parse(&xml)).transpose()?.unwrap_or_default());
        let mut confidential = self.confidential.lock().unwrap_or_else(PoisonError::into_inner);
        for kind in &found.confidential {
            if !confidential.contains(kind) {
                confidential.push(*kind);
            }
        }
        drop(confidential);
        caps.insert(key, found.clone());
        Ok(found)
    }

    /// Learns which confidential machines the host can run.
    pub(crate) async fn learn(&self, ctx: &OpContext, client: &Client, config: &Config) -> Result<()> {
        let Some(arch) = self.facts.architecture() else { return Ok(()) };
        let kvm = self.facts.guest(arch).is_some_and(|g| g.advertises(DomainType::Kvm));
        if !kvm || self.is_test {
            return Ok(());
        }
        let (machine, _) = self.machine(config, arch);
        match self.caps(ctx, client, arch, DomainType::Kvm, machine.as_deref()).await {
            Ok(_) => Ok(()),
            // KVM that is advertised and not there: nothing confidential then.
            Err(error) if !matches!(error.kind(), ErrorKind::Transient | ErrorKind::Cancelled) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns the kinds of confidential machines that were learnt.
    pub(crate) fn confidential(&self) -> Vec<ConfidentialType> {
        self.confidential.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the architectures of guests.
    pub(crate) fn architectures(&self) -> Vec<Architecture> {
        let mut all: Vec<Architecture> = self
            .facts
            .guests
            .iter()
            .filter(|g| g.os_type == "hvm")
            .filter_map(|g| g.arch.parse().ok())
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

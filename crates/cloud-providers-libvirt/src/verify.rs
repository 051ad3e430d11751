//! Asks libvirt whether the configuration can work. Nothing stays: at most the probe of KVM runs.

use cloud_providers::{Confidential, ErrorKind, Finding, OpContext, Result, VerifyReport};
use virt::{connect::Connect, network::Network};

use crate::{
    client::{CallError, CallResult, step},
    config::{Config, DomainTypeChoice},
    error::is_missing,
    look,
    provider::LibvirtProvider,
    sizing,
    xml::{DomainType, Nic, PoolFacts, VolumeFacts},
};

impl LibvirtProvider {
    /// Looks at everything that instances need, as far as each look allows the next.
    pub(crate) async fn verify(&self, ctx: &OpContext) -> Result<VerifyReport> {
        let config = self.config.clone();
        let ask = step("virStoragePoolLookupByName", "cannot verify the configuration");
        let ground = self.client.read(ctx, ask, move |c| ground(c, &config)).await?;
        let mut report = VerifyReport::new();
        report.push(Finding::ok("connection", format!("{} answers", self.client.uri())));
        report.extend(ground);
        // A probe needs the pool; without it the rest is still looked at.
        let can_probe = report.is_ok();
        report.extend(self.machine(ctx, can_probe).await?);
        Ok(report)
    }

    /// Checks what instances run on: architecture, KVM, machine, protection, firmware.
    async fn machine(&self, ctx: &OpContext, can_probe: bool) -> Result<Vec<Finding>> {
        let (config, client) = (&self.config, &self.client);
        let host = self.hosts.get(ctx, client).await?;
        let mut findings = Vec::new();
        let arch = match host.architecture(None) {
            Ok(arch) => arch,
            Err(error) => return Ok(vec![Finding::of_error("architecture", &error)]),
        };
        findings.push(Finding::ok("architecture", arch.to_string()));
        let advertised = host.facts.guest(arch).is_some_and(|g| g.advertises(DomainType::Kvm));
        if config.domain_type == DomainTypeChoice::Kvm && !host.is_test && !advertised {
            let finding = Finding::failed("kvm", format!("the host has no KVM for {arch}"));
            findings.push(finding.with_option("LIBVIRT_DOMAIN_TYPE").with_remedy("use auto or qemu"));
            return Ok(findings);
        }
        let probes = config.domain_type == DomainTypeChoice::Auto && advertised && !host.is_test;
        let known = can_probe || !probes;
        let domain_type = match known {
            true => host.domain_type(ctx, client, config, arch).await?,
            // Firmware and machines are those of either.
            false => DomainType::Qemu,
        };
        findings.push(match known {
            true => Finding::ok("kvm", format!("instances are of domain type {}", domain_type.as_str())),
            false => Finding::not_checked("kvm", "the probe needs the storage pool, which failed"),
        });
        let (machine, _) = host.machine(config, arch);
        let caps = match host.caps(ctx, client, arch, domain_type, machine.as_deref()).await {
            Ok(caps) => caps,
            // Such as a machine that the host's QEMU does not have.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Config | ErrorKind::Unsupported | ErrorKind::Internal
                ) =>
            {
                findings.push(Finding::of_error("machine", &error));
                return Ok(findings);
            }
            Err(error) => return Err(error),
        };
        let machine = machine.map_or_else(|| "the host's default".to_owned(), |m| m.to_string());
        findings.push(Finding::ok("machine", machine));
        let security = match sizing::security(config, &Confidential::Default, &caps) {
            Ok(security) => {
                let kind = security.map_or("plain instances", |s| s.as_str());
                findings.push(Finding::ok("confidential", kind));
                security
            }
            Err(error) => {
                // Only KVM protects machines, and nobody knows yet whether there is one.
                findings.push(match known {
                    true => Finding::of_error("confidential", &error),
                    false => Finding::not_checked("confidential", "it needs KVM, which was not checked"),
                });
                None
            }
        };
        if host.is_test {
            findings.push(Finding::not_checked("firmware", "libvirt's test driver has none"));
            return Ok(findings);
        }
        findings.push(match sizing::firmware(config, arch, security, &caps) {
            Ok(_) => Finding::ok("firmware", "the host has it"),
            Err(error) => Finding::of_error("firmware", &error),
        });
        Ok(findings)
    }
}

/// Checks pool, base volume and network.
fn ground(connection: &Connect, config: &Config) -> CallResult<Vec<Finding>> {
    let mut findings = vec![];
    storage(connection, config, &mut findings)?;
    let Nic::Network(name) = &config.network else {
        let why = "libvirt does not tell which bridges the host has";
        findings.push(Finding::not_checked("network", why));
        return Ok(findings);
    };
    let finding = match Network::lookup_by_name(connection, name) {
        Ok(network) if network.is_active()? => Finding::ok("network", format!("{name} is started")),
        Ok(_) => Finding::failed("network", format!("the network {name:?} is not started"))
            .with_option("LIBVIRT_NET")
            .with_remedy(format!("virsh net-start {name}")),
        Err(error) if is_missing(&error) => {
            Finding::failed("network", format!("there is no network {name:?}")).with_option("LIBVIRT_NET")
        }
        Err(error) => return Err(error.into()),
    };
    findings.push(finding);
    Ok(findings)
}

/// Checks pool and base volume.
fn storage(connection: &Connect, config: &Config, findings: &mut Vec<Finding>) -> CallResult<()> {
    let Some(pool) = found("storage-pool", look::pool(connection, &config.pool), findings)? else {
        findings.push(Finding::not_checked("base-volume", "the storage pool failed"));
        return Ok(());
    };
    if !pool.is_active()? {
        let finding =
            Finding::failed("storage-pool", format!("the storage pool {:?} is not started", config.pool))
                .with_option("LIBVIRT_POOL")
                .with_remedy(format!("virsh pool-start {}", config.pool));
        findings.push(finding);
        findings.push(Finding::not_checked("base-volume", "the storage pool is not started"));
        return Ok(());
    }
    let facts = PoolFacts::parse(&pool.get_xml_desc(0)?)?;
    findings.push(match facts.path_of("x") {
        Ok(_) => Finding::ok("storage-pool", format!("{} is started", config.pool)),
        Err(error) => Finding::of_error("storage-pool", &error),
    });
    let base = look::base_volume(connection, &pool, &config.base_volume);
    if let Some(base) = found("base-volume", base, findings)? {
        findings.push(base_finding(connection, &base)?);
    }
    Ok(())
}

/// Keeps an error of ours as a finding.
fn found<T>(check: &str, result: CallResult<T>, findings: &mut Vec<Finding>) -> CallResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(CallError::Ours(error)) => {
            findings.push(Finding::of_error(check, &error));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Says what is wrong with the base volume, if anything.
fn base_finding(connection: &Connect, base: &VolumeFacts) -> CallResult<Finding> {
    let name = &base.name;
    let wrong = |text: String| Finding::failed("base-volume", text).with_option("LIBVIRT_VOL_NAME");
    if !base.is_file() {
        return Ok(wrong(format!("the base volume {name:?} is no file, so no overlay can be made over it")));
    }
    if base.capacity == 0 {
        return Ok(wrong(format!("the base volume {name:?} is empty")).with_remedy("fill it"));
    }
    // libvirt takes a damaged image for a raw disk.
    if name.ends_with(".qcow2")
        && base.format != "qcow2"
        && !connection.get_type()?.eq_ignore_ascii_case("test")
    {
        return Ok(wrong(format!("the base volume {name:?} is called qcow2 and is none"))
            .with_remedy("upload it again, or rename it"));
    }
    Ok(Finding::ok("base-volume", format!("{name}, {}", base.format)))
}

//! Asks libvirt whether the configuration can work. Nothing stays: at most the probe of KVM runs.

use cloud_providers::{Confidential, Error, ErrorKind, OpContext, Result};
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
    /// Names everything that is wrong, together.
    pub(crate) async fn verify(&self, ctx: &OpContext) -> Result<()> {
        let config = self.config.clone();
        let ask = step("virStoragePoolLookupByName", "cannot verify the configuration");
        let mut problems = self.client.read(ctx, ask, move |c| ground(c, &config)).await?;
        // A probe needs the pool; without it the rest is still looked at.
        let can_probe = problems.is_empty();
        problems.extend(self.machine(ctx, can_probe).await?);
        match Error::all(ErrorKind::Config, problems) {
            None => Ok(()),
            Some(error) => Err(error.with("uri", self.client.uri())),
        }
    }

    /// Checks what instances run on: architecture, KVM, firmware, protection.
    async fn machine(&self, ctx: &OpContext, can_probe: bool) -> Result<Vec<String>> {
        let (config, client) = (&self.config, &self.client);
        let host = self.hosts.get(ctx, client).await?;
        let mut problems = Vec::new();
        let arch = match host.architecture(None) {
            Ok(arch) => arch,
            Err(error) => return Ok(vec![error.to_string()]),
        };
        let advertised = host.facts.guest(arch).is_some_and(|g| g.advertises(DomainType::Kvm));
        if config.domain_type == DomainTypeChoice::Kvm && !host.is_test && !advertised {
            problems.push(format!(
                "LIBVIRT_DOMAIN_TYPE is kvm and the host has no KVM for {arch}: set it to auto or qemu"
            ));
            return Ok(problems);
        }
        let probes = config.domain_type == DomainTypeChoice::Auto && advertised && !host.is_test;
        let known = can_probe || !probes;
        let domain_type = match known {
            true => host.domain_type(ctx, client, config, arch).await?,
            // Firmware and machines are those of either.
            false => DomainType::Qemu,
        };
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
                problems.push(error.to_string());
                return Ok(problems);
            }
            Err(error) => return Err(error),
        };
        let security = match sizing::security(config, &Confidential::Default, &caps) {
            Ok(security) => security,
            Err(error) => {
                // Only KVM protects machines, and nobody knows yet whether there is one.
                if known {
                    problems.push(error.to_string());
                }
                None
            }
        };
        if host.is_test {
            return Ok(problems);
        }
        if let Err(error) = sizing::firmware(config, arch, security, &caps) {
            problems.push(error.to_string());
        }
        Ok(problems)
    }
}

/// Checks pool, base volume and network.
fn ground(connection: &Connect, config: &Config) -> CallResult<Vec<String>> {
    let mut problems = Vec::new();
    if let Some(pool) = found(look::pool(connection, &config.pool), &mut problems)? {
        if !pool.is_active()? {
            problems.push(format!(
                "the storage pool {:?} is not started: virsh pool-start {}, or set LIBVIRT_POOL",
                config.pool, config.pool
            ));
        } else {
            let facts = PoolFacts::parse(&pool.get_xml_desc(0)?)?;
            if let Err(error) = facts.path_of("x") {
                problems.push(error.to_string());
            }
            if let Some(base) =
                found(look::base_volume(connection, &pool, &config.base_volume), &mut problems)?
            {
                problems.extend(base_problem(connection, &base)?);
            }
        }
    }
    if let Nic::Network(name) = &config.network {
        match Network::lookup_by_name(connection, name) {
            Ok(network) if network.is_active()? => {}
            Ok(_) => problems.push(format!(
                "the network {name:?} is not started: virsh net-start {name}, or set LIBVIRT_NET"
            )),
            Err(error) if is_missing(&error) => {
                problems.push(format!("there is no network {name:?}: set LIBVIRT_NET"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(problems)
}

/// Keeps an error of ours as a problem.
fn found<T>(result: CallResult<T>, problems: &mut Vec<String>) -> CallResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(CallError::Ours(error)) => {
            problems.push(error.to_string());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Says what is wrong with the base volume, if anything.
fn base_problem(connection: &Connect, base: &VolumeFacts) -> CallResult<Option<String>> {
    let name = &base.name;
    if !base.is_file() {
        return Ok(Some(format!(
            "the base volume {name:?} is no file, so no overlay can be made over it: set LIBVIRT_VOL_NAME"
        )));
    }
    if base.capacity == 0 {
        return Ok(Some(format!("the base volume {name:?} is empty: fill it, or set LIBVIRT_VOL_NAME")));
    }
    // libvirt takes a damaged image for a raw disk.
    if name.ends_with(".qcow2")
        && base.format != "qcow2"
        && !connection.get_type()?.eq_ignore_ascii_case("test")
    {
        return Ok(Some(format!(
            "the base volume {name:?} is called qcow2 and is none: upload it again, or rename it"
        )));
    }
    Ok(None)
}

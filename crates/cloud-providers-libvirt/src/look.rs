//! What is asked of libvirt on a thread of the client: functions that block.

use std::net::IpAddr;

use cloud_providers::{Error, ErrorKind, InstanceState, tags};
use uuid::Uuid;
use virt::{connect::Connect, domain::Domain, storage_pool::StoragePool, storage_vol::StorageVol, sys};

use crate::{
    client::{CallResult, Interface},
    error::{is_missing, virt_error},
    xml::{DataDisk, DomainFacts, Metadata, NAMESPACE, VolumeFacts, instance_of_volume},
};

/// libvirt's reason for a domain that is off and did not end while this libvirtd ran.
const SHUTOFF_UNKNOWN: i32 = 0;

/// A domain that was found.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) active: bool,
    pub(crate) state: InstanceState,
    /// `None` on domains that are not ours.
    pub(crate) metadata: Option<Metadata>,
}

/// What [`scan`] found.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) domains: Vec<Seen>,
    /// `false` when a domain did not tell what it is.
    pub(crate) complete: bool,
}

/// Looks at every domain and returns those that `wanted` wants.
pub(crate) fn scan(connection: &Connect, wanted: &(impl Fn(&Seen) -> bool + ?Sized)) -> CallResult<Scan> {
    let mut found = Scan { domains: Vec::new(), complete: true };
    for domain in connection.list_all_domains(0)? {
        match see(&domain) {
            Ok(Some(seen)) if wanted(&seen) => found.domains.push(seen),
            Ok(_) => {}
            Err(error) if !connection.is_alive().unwrap_or(false) => return Err(error),
            Err(_) => found.complete = false,
        }
    }
    Ok(found)
}

/// Reads who a domain is; `None` when it went meanwhile.
fn see(domain: &Domain) -> CallResult<Option<Seen>> {
    // The whole definition, as libvirt keeps it: the call for metadata alone takes the namespace away from our element
    // and leaves its prefix on what is in it, and the live definition may have to wait for QEMU.
    let xml = match domain.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE) {
        Ok(xml) => xml,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Most domains of a host may be somebody else's; and what they hold need not concern us.
    let metadata = if xml.contains(NAMESPACE) { DomainFacts::parse(&xml)?.metadata } else { None };
    // The number of a running domain came with the domain itself, so this costs no call.
    let active = domain.get_id().is_some();
    // Asked for our own only: it is a call for each domain.
    let state = match metadata.is_some().then(|| domain.get_state()) {
        None => InstanceState::Unknown,
        Some(Ok((state, reason))) => state_of(state, reason, active),
        Some(Err(error)) if is_missing(&error) => return Ok(None),
        Some(Err(error)) => return Err(error.into()),
    };
    Ok(Some(Seen { name: domain.get_name()?, uuid: domain.get_uuid()?, active, state, metadata }))
}

/// Reads libvirt's state of a domain.
fn state_of(state: sys::virDomainState, reason: i32, active: bool) -> InstanceState {
    match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => InstanceState::Running,
        sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_PMSUSPENDED => InstanceState::Paused,
        sys::VIR_DOMAIN_SHUTDOWN => InstanceState::Stopping,
        // It never ran, as far as libvirt remembers: one that is being made is defined first.
        sys::VIR_DOMAIN_SHUTOFF if reason == SHUTOFF_UNKNOWN && !active => InstanceState::Unknown,
        sys::VIR_DOMAIN_SHUTOFF | sys::VIR_DOMAIN_CRASHED => InstanceState::Stopped,
        _ => InstanceState::Unknown,
    }
}

/// Looks a domain up by its UUID; `None` when there is none.
pub(crate) fn domain(connection: &Connect, uuid: Uuid) -> CallResult<Option<Domain>> {
    match Domain::lookup_by_uuid(connection, uuid) {
        Ok(domain) => Ok(Some(domain)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks at one domain; `None` when there is none.
pub(crate) fn seen(connection: &Connect, uuid: Uuid) -> CallResult<Option<Seen>> {
    domain(connection, uuid)?.map_or(Ok(None), |d| see(&d))
}

/// Reads a domain's definition; `None` when there is none.
pub(crate) fn definition(connection: &Connect, uuid: Uuid) -> CallResult<Option<DomainFacts>> {
    let Some(domain) = domain(connection, uuid)? else { return Ok(None) };
    match domain.get_xml_desc(0) {
        Ok(xml) => Ok(Some(DomainFacts::parse(&xml)?)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks up the configured pool.
pub(crate) fn pool(connection: &Connect, name: &str) -> CallResult<StoragePool> {
    match StoragePool::lookup_by_name(connection, name) {
        Err(error) if is_missing(&error) => Err(Error::config("there is no such storage pool")
            .with("pool", name)
            .with("set", "LIBVIRT_POOL")
            .into()),
        other => Ok(other?),
    }
}

/// Looks a volume up by name; `None` when there is none.
///
/// The pool is read anew only when it does not know the name: that takes a time that grows with the pool, and stops all
/// others meanwhile. A file that somebody copied into the folder is unknown until then.
pub(crate) fn volume(pool: &StoragePool, name: &str) -> CallResult<Option<StorageVol>> {
    if let Some(volume) = known_volume(pool, name)? {
        return Ok(Some(volume));
    }
    if let Err(error) = pool.refresh(0) {
        // libvirt gives a pool up when it finds a damaged image in its folder, and does not say which.
        if matches!(pool.is_active(), Ok(false)) {
            let what =
                "libvirt gave the storage pool up, as it does when there is a damaged image in its folder";
            return Err(virt_error("virStoragePoolRefresh", what, &error)
                .with("pool", pool.get_name().unwrap_or_default())
                .with("mend", "take the damaged image away and run virsh pool-start")
                .into());
        }
        return Err(error.into());
    }
    known_volume(pool, name)
}

/// As [`volume`], without reading the pool anew.
pub(crate) fn known_volume(pool: &StoragePool, name: &str) -> CallResult<Option<StorageVol>> {
    match StorageVol::lookup_by_name(pool, name) {
        Ok(volume) => Ok(Some(volume)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Finds the base volume: by name in the pool, then by key.
pub(crate) fn base_volume(connection: &Connect, pool: &StoragePool, image: &str) -> CallResult<VolumeFacts> {
    let found = if image.contains('/') { None } else { volume(pool, image)? };
    let found = match found {
        Some(volume) => Some(volume),
        None => match StorageVol::lookup_by_key(connection, image) {
            Ok(volume) => Some(volume),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(error.into()),
        },
    };
    match found {
        Some(volume) => {
            let facts = VolumeFacts::parse(&volume.get_xml_desc(0)?)?;
            refuse_disk_of_instance(connection, &facts.name)?;
            Ok(facts)
        }
        None => Err(Error::config("there is no such base volume")
            .with("volume", image)
            .with("pool", pool.get_name()?)
            .with("set", "LIBVIRT_VOL_NAME")
            .into()),
    }
}

/// Refuses a disk that was made for an instance.
///
/// It holds that instance's data and keys, and a request may name any image and volume: whoever could have another
/// pod's disk would read them.
fn refuse_disk_of_instance(connection: &Connect, path: &str) -> CallResult<()> {
    let file = path.rsplit('/').next().unwrap_or(path);
    let Some(instance) = instance_of_volume(file) else { return Ok(()) };
    match Domain::lookup_by_name(connection, instance) {
        Ok(_) => Err(Error::new(
            ErrorKind::Permission,
            "the volume is a disk of an instance, and no image or data volume",
        )
        .with("volume", path)
        .with("instance", instance)
        .into()),
        // A name that only looks like it.
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Finds a volume of the user: by path, or by name in the pool.
pub(crate) fn data_disk(
    connection: &Connect,
    pool: &StoragePool,
    id: &str,
    serial: &str,
) -> CallResult<DataDisk> {
    // Also where no pool knows the path: it may be another way to write that of a volume.
    refuse_disk_of_instance(connection, id)?;
    let disk = |path: &str, block: bool, format: &str| DataDisk {
        path: path.into(),
        block,
        format: format.into(),
        serial: serial.into(),
    };
    let found = if id.starts_with('/') {
        match StorageVol::lookup_by_path(connection, id) {
            Ok(volume) => Some(volume),
            // A path need not be in a pool.
            Err(error) if is_missing(&error) && id.starts_with("/dev/") => return Ok(disk(id, true, "raw")),
            Err(error) if is_missing(&error) => {
                let format = if id.ends_with(".qcow2") { "qcow2" } else { "raw" };
                return Ok(disk(id, false, format));
            }
            Err(error) => return Err(error.into()),
        }
    } else {
        volume(pool, id)?
    };
    let Some(found) = found else {
        return Err(Error::new(ErrorKind::NotFound, "there is no such data volume")
            .with("volume", id)
            .with("pool", pool.get_name()?)
            .into());
    };
    let facts = VolumeFacts::parse(&found.get_xml_desc(0)?)?;
    refuse_disk_of_instance(connection, &facts.name)?;
    Ok(disk(&facts.path, facts.kind == "block", &facts.format))
}

/// Returns whether `seen` was made for exactly this token.
pub(crate) fn has_token(seen: &Seen, token_tag: &str) -> bool {
    seen.metadata.as_ref().is_some_and(|m| m.tag(tags::TOKEN) == token_tag)
}

/// Chooses the addresses to dial: the best one of each interface, in the order of the machine's definition, then the
/// others. IPv4 is better than IPv6.
///
/// What only the machine itself or its neighbours on the link can use is left out. `macs` are those of the definition;
/// interfaces that it does not know, such as those of programs in the guest, come last.
pub(crate) fn usable_addresses(interfaces: &[Interface], macs: &[String]) -> Vec<IpAddr> {
    let mut ranked: Vec<(bool, usize, bool, IpAddr)> = Vec::new();
    for (at, interface) in interfaces.iter().enumerate() {
        let mut own: Vec<IpAddr> = interface.addresses.iter().copied().filter(|a| is_usable(*a)).collect();
        own.sort_by_key(IpAddr::is_ipv6);
        let place = macs.iter().position(|mac| is_mac(interface, mac)).unwrap_or(macs.len() + at);
        for (number, address) in own.into_iter().enumerate() {
            if !ranked.iter().any(|(.., known)| *known == address) {
                ranked.push((number > 0, place, address.is_ipv6(), address));
            }
        }
    }
    ranked.sort_by_key(|(more, place, v6, _)| (*more, *place, *v6));
    ranked.into_iter().map(|(.., address)| address).collect()
}

/// Returns whether every interface of the definition has a usable IPv4 address.
pub(crate) fn all_have_ipv4(interfaces: &[Interface], macs: &[String]) -> bool {
    let has = |i: &Interface| i.addresses.iter().any(|a| a.is_ipv4() && is_usable(*a));
    if macs.is_empty() {
        return interfaces.iter().any(has);
    }
    macs.iter().all(|mac| interfaces.iter().any(|i| is_mac(i, mac) && has(i)))
}

fn is_mac(interface: &Interface, mac: &str) -> bool {
    interface.mac.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(mac))
}

fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_unspecified() || v4.is_link_local() || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(mac: Option<&str>, addresses: &[&str]) -> Interface {
        Interface {
            mac: mac.map(str::to_owned),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn each_interface_has_its_best_address_in_the_order_of_the_definition() {
        let (one, two) = ("52:54:00:00:00:01", "52:54:00:00:00:02");
        let list = [
            interface(None, &["127.0.0.1", "::1"]),
            interface(Some("02:42:00:00:00:01"), &["172.17.0.1"]),
            interface(Some(two), &["10.0.0.2"]),
            interface(Some(&one.to_uppercase()), &["fe80::1", "fd00::1", "192.168.122.9", "169.254.1.1"]),
        ];
        let text = |macs: &[&str]| -> Vec<String> {
            let macs: Vec<String> = macs.iter().map(|m| (*m).to_owned()).collect();
            usable_addresses(&list, &macs).iter().map(ToString::to_string).collect()
        };
        assert_eq!(text(&[one, two]), ["192.168.122.9", "10.0.0.2", "172.17.0.1", "fd00::1"]);
        assert_eq!(text(&[two, one]), ["10.0.0.2", "192.168.122.9", "172.17.0.1", "fd00::1"]);
        assert_eq!(text(&[])[0], "172.17.0.1");
        assert!(usable_addresses(&list[..1], &[]).is_empty());
    }

    #[test]
    fn a_machine_is_up_when_all_its_interfaces_have_an_ipv4_address() {
        let macs = ["52:54:00:00:00:01".to_owned(), "52:54:00:00:00:02".to_owned()];
        let second = interface(Some(&macs[1]), &["10.0.0.2"]);
        assert!(!all_have_ipv4(std::slice::from_ref(&second), &macs));
        let half = [second.clone(), interface(Some(&macs[0]), &["fd00::1", "169.254.1.1"])];
        assert!(!all_have_ipv4(&half, &macs) && !all_have_ipv4(&half, &macs[..1]));
        assert!(all_have_ipv4(&half, &macs[1..]));
        assert!(all_have_ipv4(&[second, interface(Some(&macs[0]), &["192.168.122.9"])], &macs));
    }
}

//! What is checked before providers are asked, and of what they return.

use std::collections::{BTreeMap, BTreeSet};

use cloud_providers::{Error, ErrorKind, Result};

use crate::{Host, Network, Obtained, Pool, Reservation};

/// Checks that the parts of a document fit together: one experiment, and no name twice.
///
/// # Errors
///
/// [`ErrorKind::Config`] with all that is wrong.
pub fn check<'a>(parts: impl IntoIterator<Item = &'a Reservation>) -> Result<()> {
    let parts: Vec<&Reservation> = parts.into_iter().collect();
    let mut problems = Vec::new();
    let Some(first) = parts.first() else { return Err(Error::config("no provider is asked for anything")) };
    for part in &parts {
        if part.experiment != first.experiment {
            let (a, b) = (&first.experiment, &part.experiment);
            problems.push(format!("two experiments in one document: {a:?} and {b:?}"));
        }
    }
    for name in twice(parts.iter().map(|part| part.provider.name.as_str())) {
        problems.push(format!("two providers are called {name:?}: give one of them another `name`"));
    }
    for name in twice(parts.iter().flat_map(|part| part.machines.iter().map(|m| m.name.as_str()))) {
        problems.push(format!("two machines are called {name:?}"));
    }
    for part in &parts {
        for name in twice(part.networks.iter().map(|network| network.name.as_str())) {
            problems.push(format!("two networks of {:?} are called {name:?}", part.provider.name));
        }
        for machine in part.machines.iter().filter(|m| m.group >= part.groups.len()) {
            problems.push(format!(
                "machine {:?} is in group {}, which is not there",
                machine.name, machine.group
            ));
        }
    }
    match Error::all(ErrorKind::Config, problems) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn twice<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    names.filter(|name| !seen.insert(*name)).collect()
}

/// Checks what a provider returned for its part of the document, and completes it: the provider's name and the document's
/// roles, variables and access for each host, in the order of the document.
///
/// # Errors
///
/// [`ErrorKind::Capacity`] when a group has fewer machines than it must have, with the reasons that the provider gave.
/// [`ErrorKind::Internal`] for what no provider may return.
pub fn settle(reservation: &Reservation, got: Obtained) -> Result<Obtained> {
    let faults = faults(reservation, &got);
    if let Some(error) = Error::all(ErrorKind::Internal, faults) {
        let name = &reservation.provider.name;
        return Err(
            Error::internal(format!("the provider {name:?} returned what it may not")).with_source(error)
        );
    }
    let Obtained { hosts, mut networks, mut missing, made } = got;
    let mut by_name: BTreeMap<String, Host> = hosts.into_iter().map(|h| (h.alias.clone(), h)).collect();
    let mut hosts = Vec::new();
    for machine in &reservation.machines {
        let Some(mut host) = by_name.remove(&machine.name) else {
            missing.entry(machine.name.clone()).or_insert_with(|| "the provider did not say why".to_owned());
            continue;
        };
        host.roles.extend(machine.roles.iter().cloned());
        host.roles.insert(reservation.provider.name.clone());
        host.provider.clone_from(&reservation.provider.name);
        for (name, value) in &machine.extra {
            host.extra.insert(name.clone(), value.clone());
        }
        if host.user.is_none() {
            host.user = machine.user.clone().or_else(|| reservation.access.user.clone());
        }
        if host.key.is_none() {
            host.key.clone_from(&reservation.access.private_key);
        }
        hosts.push(host);
    }
    enough(reservation, &hosts, &missing)?;
    for network in &mut networks {
        // The last role says whose it is, see `merge`.
        network.roles.retain(|role| *role != reservation.provider.name);
        network.roles.push(reservation.provider.name.clone());
    }
    Ok(Obtained { hosts, networks, missing, made })
}

/// Checks that each group has its machines.
fn enough(reservation: &Reservation, hosts: &[Host], missing: &BTreeMap<String, String>) -> Result<()> {
    let there: BTreeSet<&str> = hosts.iter().map(|host| host.alias.as_str()).collect();
    let mut problems = Vec::new();
    for (index, group) in reservation.groups.iter().enumerate() {
        let machines: Vec<_> = reservation.machines.iter().filter(|m| m.group == index).collect();
        let count = machines.iter().filter(|m| there.contains(m.name.as_str())).count();
        // A group may be written without machines of its own; only those spelled out can be demanded.
        let least = group.least(reservation.shortage).min(machines.len().max(group.min.unwrap_or_default()));
        if count >= least {
            continue;
        }
        let mut reasons: Vec<String> = Vec::new();
        for machine in machines.iter().filter_map(|m| missing.get(&m.name)) {
            if !reasons.contains(machine) {
                reasons.push(machine.clone());
            }
        }
        let reasons = reasons.join(", ");
        let name = &group.name;
        problems.push(format!(
            "group {name:?} has {count} of {} machines and needs {least}: {reasons}",
            group.count
        ));
    }
    let kind = ErrorKind::Capacity { zone: None, instance_type: None };
    match Error::all(kind, problems) {
        Some(error) => {
            Err(error.with("to go on with fewer", "give the group a smaller `min`, or be lenient"))
        }
        None => Ok(()),
    }
}

/// Says what no provider may return.
fn faults(reservation: &Reservation, got: &Obtained) -> Vec<String> {
    let mut faults = Vec::new();
    let wanted: BTreeSet<&str> = reservation.machines.iter().map(|m| m.name.as_str()).collect();
    for name in twice(got.hosts.iter().map(|host| host.alias.as_str())) {
        faults.push(format!("machine {name:?} twice"));
    }
    let mut places: BTreeMap<_, &str> = BTreeMap::new();
    for host in &got.hosts {
        let name = host.alias.as_str();
        if !wanted.contains(name) {
            faults.push(format!("machine {name:?}, which nobody asked for"));
        }
        if got.missing.contains_key(name) {
            faults.push(format!("machine {name:?} both there and missing"));
        }
        if host.address.is_empty() {
            faults.push(format!("machine {name:?} without an address"));
            continue;
        }
        // The same private address behind two jump hosts is two machines.
        let place = (&host.address, host.port, &host.jump, &host.proxy_command);
        if let Some(other) = places.insert(place, name)
            && other != name
        {
            faults.push(format!(
                "machines {other:?} and {name:?} at one address, {}:{}",
                host.address, host.port
            ));
        }
    }
    for name in got.missing.keys().filter(|name| !wanted.contains(name.as_str())) {
        faults.push(format!("machine {name:?} as missing, which nobody asked for"));
    }
    for name in twice(got.networks.iter().map(|network| network.name.as_str())) {
        faults.push(format!("network {name:?} twice"));
    }
    for request in &reservation.networks {
        if !got.networks.iter().any(|network| network.name == request.name) {
            faults.push(format!("no network {:?}, which was asked for", request.name));
        }
    }
    faults.extend(got.networks.iter().filter_map(pool_fault));
    faults
}

/// Says what is wrong with a pool.
fn pool_fault(network: &Network) -> Option<String> {
    let pool = network.pool.as_ref()?;
    let name = &network.name;
    let outside = |address| network.cidr.is_some_and(|cidr| !cidr.contains(address));
    let Pool { start, end, extra_ips, .. } = pool;
    let said = match (start, end) {
        (Some(start), Some(end)) if start.is_ipv4() != end.is_ipv4() => "mixes IPv4 and IPv6",
        (Some(start), Some(end)) if start > end => "ends before it starts",
        (Some(start), Some(end)) if outside(start) || outside(end) => "lies outside its network",
        (Some(_), None) | (None, Some(_)) => "has one end only",
        (None, None) if extra_ips.is_empty() && pool.taken.is_empty() => "is empty: none would say so",
        _ => return None,
    };
    Some(format!("a pool of network {name:?} that {said}"))
}

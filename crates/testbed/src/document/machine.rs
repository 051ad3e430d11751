//! One machine of a draft: flavour, image, networks and address are resolved.

use crate::{Machine, Reservation, StaticHost};

use super::{
    assemble::Common,
    draft::{self, Draft},
    hosts::in_folder,
    providers::{self, Section},
    reader::Reader,
    size,
};

/// Makes the machine that all of a draft are like.
pub(super) fn machine(
    reader: &mut Reader<'_>,
    common: &Common,
    section: &Section<'_>,
    draft: &Draft,
    reservation: &Reservation,
) -> Option<Machine> {
    let names = [section.config.name.as_str(), section.config.kind.as_str()];
    let settings = &draft.settings;
    let mut machine = Machine::new("", 0, draft.roles.clone());
    machine.size = settings.size.clone();
    let mut image = settings.image.as_ref();
    if let Some(kind) = &draft.kind {
        let (word, spot) = &kind.told;
        let flavour = common.flavours.get(word).filter(|_| kind.flavour);
        if let Some(flavour) = flavour {
            machine.kind = flavour.kind.of(names).map(str::to_owned);
            machine.size = size::over(machine.size, flavour.size.clone());
            image = image.or(flavour.image.as_ref());
            if machine.kind.is_none() && machine.size == crate::Size::default() {
                let message =
                    format!("the flavour says neither a size nor a `type` for provider `{}`", names[0]);
                reader.problem(*spot, message);
            }
        } else if let Some(size) = size::common(word).filter(|_| kind.flavour) {
            machine.size = size::over(machine.size, size);
        } else {
            machine.kind = Some(word.clone());
        }
    }
    let image = image.or(common.image.as_ref());
    machine.image = image.and_then(|told| size::image(reader, &common.images, told, names));
    machine.user.clone_from(&settings.user);
    machine.ports.clone_from(&common.ports);
    machine.ports.extend(settings.ports.iter().filter(|p| !common.ports.contains(p)).cloned());
    machine.extra.clone_from(&settings.extra);
    for (name, spot) in &settings.networks {
        let own = || reservation.networks.iter();
        let by_name = own().filter(|n| n.name == *name);
        let by_role = own().filter(|n| n.name != *name && n.roles.contains(name));
        let mut found: Vec<String> = by_name.map(|n| n.name.clone()).collect();
        if found.is_empty() {
            found = by_role.map(|n| n.name.clone()).collect();
        }
        if found.is_empty() {
            let known: Vec<&str> = own().map(|n| n.name.as_str()).collect();
            size::unknown(reader, *spot, "network", name, &known);
        }
        machine.networks.extend(found);
    }
    machine.networks = draft::distinct(machine.networks);
    if providers::is_static(&section.config.kind) {
        let Some((address, _)) = &settings.address else {
            let message = "provider `static` has hosts that exist already: write their `address`";
            reader.problem(draft.spot, message);
            return None;
        };
        let mut host = StaticHost::new(address);
        host.port = settings.port.map(|(port, _)| port);
        host.key = settings.key.as_ref().map(|(key, _)| in_folder(&reservation.base, key));
        machine.host = Some(host);
    } else if let Some((address, spot)) = settings.address.as_ref().filter(|_| !draft.exists) {
        machine.address = address.parse().ok();
        if machine.address.is_none() {
            reader.problem(*spot, "a fixed address is such as 192.0.2.7 or 2001:db8::7");
        }
    }
    Some(machine)
}

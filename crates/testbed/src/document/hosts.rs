//! Hosts that exist already.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{Group, Machine, Reservation};

use super::{
    draft::{self, Draft},
    names::Taken,
    providers::Section,
    reader::Reader,
};

/// Whether a provider that makes machines can make this one: it asks for nothing that only a host that exists already has.
pub(super) fn makes(reader: &mut Reader<'_>, section: &Section<'_>, draft: &Draft) -> bool {
    let settings = &draft.settings;
    let kind = &section.config.kind;
    if draft.exists {
        let message = format!(
            "hosts that exist already are for provider `static`, and this one is `{kind}`; write {{role: number}} by kind"
        );
        reader.problem(draft.spot, message);
        return false;
    }
    let told = [
        settings.alias.as_ref().map(|t| t.1),
        settings.port.map(|t| t.1),
        settings.key.as_ref().map(|t| t.1),
    ];
    for spot in told.into_iter().flatten() {
        reader.problem(
            spot,
            "alias, port and key are those of hosts that exist already, for provider `static`",
        );
    }
    true
}

/// Hosts that exist already: one that stands in several roles is one machine.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// Index in the machines, and line, by address and port.
    by_place: BTreeMap<(String, u16), (usize, u64)>,
}

impl Hosts {
    /// Adds a host, or its role to the same one.
    pub(super) fn add(
        &mut self,
        reader: &mut Reader<'_>,
        draft: &Draft,
        base: &str,
        mut machine: Machine,
        reservation: &mut Reservation,
        taken: &mut Taken,
    ) {
        let Some(host) = &machine.host else { return };
        let told = draft.settings.alias.as_ref().or(draft.name.as_ref());
        machine.name = match told {
            Some((alias, spot)) => {
                if !is_host_name(alias) {
                    reader.problem(*spot, "an alias has letters, digits, hyphens, underscores and dots");
                }
                alias.clone()
            }
            None => host.address.chars().map(|c| if is_host_char(c) { c } else { '-' }).collect(),
        };
        let place = (host.address.to_ascii_lowercase(), host.port.unwrap_or(22));
        if let Some((index, line)) = self.by_place.get(&place) {
            let first = &mut reservation.machines[*index];
            if first.name != machine.name {
                let message = format!(
                    "this host stands in line {line} already, as `{}`: one host has one name; repeat it with an anchor \
                     (`&name`, `*name`) to give it more roles",
                    first.name
                );
                reader.problem(draft.spot, message);
            } else if (&first.host, &first.user) != (&machine.host, &machine.user) {
                reader.problem(
                    draft.spot,
                    format!("this host stands in line {line} already, with another user, port or key"),
                );
            } else {
                first.roles.extend(machine.roles);
                first.roles = draft::distinct(std::mem::take(&mut first.roles));
                first.extra.extend(machine.extra);
            }
            return;
        }
        if !taken.take(reader, &machine.name, 253, told.map_or(draft.spot, |t| t.1)) {
            return;
        }
        let group = reservation.groups.iter().position(|g| g.name == base);
        machine.group = group.unwrap_or_else(|| {
            let mut group = Group::new(base, 0);
            group.topology = draft.topology.clone();
            reservation.groups.push(group);
            reservation.groups.len() - 1
        });
        reservation.groups[machine.group].count += 1;
        self.by_place.insert(place, (reservation.machines.len(), draft.spot.line));
        reservation.machines.push(machine);
    }
}

/// Returns where a path of the document is. What `~` is, is known to whoever knows the user.
pub(super) fn in_folder(base: &Path, path: &str) -> PathBuf {
    if path == "~" || path.starts_with("~/") { path.into() } else { base.join(path) }
}

fn is_host_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

fn is_host_name(text: &str) -> bool {
    text.chars().all(is_host_char) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

//! From what the styles read to one reservation for each provider.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use cloud_providers::PortRequest;

use crate::{Access, Group, Hooks, NetworkConstraints, Reservation, Shortage};

use super::{
    constraints,
    draft::{self, Draft, Told},
    hooks,
    hosts::{self, Hosts, in_folder},
    keys,
    machine::machine,
    names::{self, Taken},
    networks,
    problem::allowed,
    providers::{self, Section},
    reader::{Fields, Reader},
    size::{self, Flavour, PerProvider},
    styles::{provider_of, styles},
    tree::{Node, Tree},
};

/// What holds for the whole document.
#[derive(Debug, Default)]
pub(super) struct Common {
    experiment: String,
    access: Access,
    shortage: Shortage,
    pub image: Option<Told>,
    pub images: BTreeMap<String, PerProvider>,
    pub flavours: BTreeMap<String, Flavour>,
    pub ports: Vec<PortRequest>,
    hooks: Hooks,
    constraints: Option<NetworkConstraints>,
}

/// Reads the document.
pub(super) fn document(reader: &mut Reader<'_>, node: &Node, base: &Path, file: &str) -> Vec<Reservation> {
    let fields = reader.fields(node, "the document", keys::TOP);
    if !matches!(node.value, Tree::Map(_)) {
        return Vec::new();
    }
    let sections = sections(reader, &fields, node);
    let mut named = Vec::new();
    let common = common(reader, &fields, &sections, &mut named, base, file);
    let mut networks = Vec::new();
    if let Some(node) = fields.get("networks") {
        networks::read(reader, node, &mut networks);
    }
    if let Some(node) = fields.get("network") {
        networks::single(reader, node, None, &mut networks);
    }
    let drafts = styles(reader, &fields, &sections, &mut networks);
    if sections.is_empty() {
        return Vec::new();
    }
    check_roles(reader, &sections, &drafts, &named);

    let several = sections.len() > 1;
    let paths: Vec<Vec<String>> = drafts
        .iter()
        .map(|(index, draft)| {
            let provider = index.filter(|_| several).and_then(|i| sections.get(i));
            provider.map(|s| s.config.name.clone()).into_iter().chain(draft.path.iter().cloned()).collect()
        })
        .collect();
    let bases = bases(&drafts, &paths);
    let mut taken = Taken::default();
    let mut all = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let own: Vec<(&Draft, &str)> = drafts
            .iter()
            .zip(&bases)
            .filter(|((provider, _), _)| *provider == Some(index))
            .map(|((_, draft), base)| (draft, base.as_str()))
            .collect();
        let mut reservation = Reservation::new(common.experiment.clone(), section.config.clone());
        reservation.access = common.access.clone();
        reservation.shortage = common.shortage;
        reservation.hooks = common.hooks.clone();
        reservation.constraints = common.constraints.clone();
        reservation.base = base.to_owned();
        for network in &networks {
            if provider_of(reader, &sections, network.provider.as_ref(), network.spot, "network")
                == Some(index)
            {
                reservation.networks.push(network.request.clone());
            }
        }
        machines(reader, &common, section, &own, &mut reservation, &mut taken);
        if reservation.machines.is_empty() && reader.is_clean() {
            let message = format!("the document asks for no machine of provider `{}`", section.config.name);
            reader.problem(section.spot, message);
        }
        all.push(reservation);
    }
    all
}

fn sections<'n>(reader: &mut Reader<'_>, fields: &Fields<'n>, node: &Node) -> Vec<Section<'n>> {
    match (fields.get("provider"), fields.get("providers")) {
        (Some(_), Some(node)) => {
            reader.problem(node.spot, "there is a `provider` already; put it into `providers`, too");
            Vec::new()
        }
        (Some(one), None) => providers::single(reader, one).into_iter().collect(),
        (None, Some(several)) => providers::several(reader, several),
        // A word that is meant for it is told already.
        (None, None) if !fields.lacks("provider") => Vec::new(),
        (None, None) => {
            let known: Vec<&str> = crate::registrations().iter().map(|r| r.name).collect();
            let clouds = cloud_providers::registered();
            let known: Vec<&str> = known.into_iter().chain(clouds.iter().map(|r| r.name)).collect();
            reader.problem(node.spot, format!("there is no `provider`; known here: {}", known.join(", ")));
            Vec::new()
        }
    }
}

fn common(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    sections: &[Section<'_>],
    named: &mut Vec<Told>,
    base: &Path,
    file: &str,
) -> Common {
    let mut common = Common { experiment: experiment(reader, fields, base, file), ..Common::default() };
    common.access.user = fields.get("user").and_then(|n| reader.word(n, "an account"));
    if let Some(node) = fields.get("key")
        && let Some(key) = reader.text(node, "a key's file")
    {
        if key.ends_with(".pub") {
            reader.problem(node.spot, "this is the public half; name the private key's file");
        }
        common.access.private_key = Some(in_folder(base, &key));
    }
    common.shortage = shortage(reader, fields, sections);
    common.image = fields.get("image").and_then(|n| Some((reader.text(n, "an image")?, n.spot)));
    common.images = fields.get("images").map(|n| size::images(reader, n)).unwrap_or_default();
    common.flavours = fields.get("flavours").map(|n| size::flavours(reader, n)).unwrap_or_default();
    common.ports = fields.get("ports").map(|n| draft::ports(reader, n)).unwrap_or_default();
    common.hooks = fields.get("hooks").map(|n| hooks::read(reader, n, named)).unwrap_or_default();
    common.constraints = fields.get("network_constraints").map(|n| constraints::read(reader, n, named));
    common
}

fn experiment(reader: &mut Reader<'_>, fields: &Fields<'_>, base: &Path, file: &str) -> String {
    if let Some(node) = fields.get("experiment") {
        let Some(name) = reader.text(node, "an experiment's name") else { return String::new() };
        if !names::is_label(&name) {
            let near = names::label(&name);
            let hint = if near.is_empty() { String::new() } else { format!(", such as `{near}`") };
            let message = format!(
                "an experiment's name has small letters, digits and hyphens, and at most 63 of them{hint}"
            );
            reader.problem(node.spot, message);
        }
        return name;
    }
    let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
    let folder = base.file_name().unwrap_or_default().to_string_lossy();
    let own = if stem == "reservation" { [folder, stem] } else { [stem, folder] };
    let name = own.iter().map(|text| names::label(text)).find(|name| !name.is_empty());
    name.unwrap_or_else(|| "experiment".into())
}

fn shortage(reader: &mut Reader<'_>, fields: &Fields<'_>, sections: &[Section<'_>]) -> Shortage {
    let mut told = None;
    let own = fields.get("shortage").into_iter().chain(fields.get("role_distribution"));
    for node in own.chain(sections.iter().filter_map(|s| s.distribution)) {
        let shortage = match reader.word(node, "shortage").as_deref() {
            Some("strict") => Shortage::Strict,
            // Enos's samples say `debug`.
            Some("lenient" | "debug") => Shortage::Lenient,
            Some(_) => {
                reader.problem(node.spot, "what happens on a shortage; allowed: strict, lenient");
                continue;
            }
            None => continue,
        };
        if told.is_some_and(|t| t != shortage) {
            reader.problem(node.spot, "this was said already, and differently");
        }
        told = Some(shortage);
    }
    told.unwrap_or_default()
}

/// Hooks and constraints name roles that somebody has.
fn check_roles(
    reader: &mut Reader<'_>,
    sections: &[Section<'_>],
    drafts: &[(Option<usize>, Draft)],
    named: &[Told],
) {
    let mut known: BTreeSet<&str> = sections.iter().map(|s| s.config.name.as_str()).collect();
    for (_, draft) in drafts {
        known.extend(draft.roles.iter().map(String::as_str));
    }
    for (role, spot) in named {
        if !known.contains(role.as_str()) {
            let known = allowed(role, known.iter().copied());
            reader.problem(*spot, format!("no machine has the role `{role}`; {known}"));
        }
    }
}

/// Returns what the machines' names of each draft begin with.
fn bases(drafts: &[(Option<usize>, Draft)], paths: &[Vec<String>]) -> Vec<String> {
    let unnamed: Vec<Vec<String>> = drafts
        .iter()
        .zip(paths)
        .filter(|((_, draft), _)| draft.name.is_none() && !draft.exists)
        .map(|(_, path)| path.clone())
        .collect();
    let mut generated = names::of_paths(&unnamed).into_iter();
    drafts
        .iter()
        .zip(paths)
        .map(|((_, draft), path)| match &draft.name {
            Some((name, _)) => name.clone(),
            None if draft.exists => path.join("/"),
            None => generated.next().unwrap_or_default(),
        })
        .collect()
}

/// Spells out the machines of one provider.
fn machines(
    reader: &mut Reader<'_>,
    common: &Common,
    section: &Section<'_>,
    drafts: &[(&Draft, &str)],
    reservation: &mut Reservation,
    taken: &mut Taken,
) {
    let is_static = providers::is_static(&section.config.kind);
    let mut hosts = Hosts::default();
    for (draft, base) in drafts {
        let Some(machine) = machine(reader, common, section, draft, reservation) else { continue };
        if is_static {
            hosts.add(reader, draft, base, machine, reservation, taken);
            continue;
        }
        if !hosts::makes(reader, section, draft) {
            continue;
        }
        let spot = draft.name.as_ref().map_or(draft.spot, |name| name.1);
        if reservation.groups.iter().any(|group| group.name == *base) {
            reader.problem(spot, format!("a group is called `{base}` already; give one another `name`"));
            continue;
        }
        let index = reservation.groups.len();
        let mut group = Group::new(*base, draft.count);
        group.min = draft.min;
        group.topology = draft.topology.clone();
        reservation.groups.push(group);
        for number in 1..=draft.count {
            let mut machine = machine.clone();
            machine.group = index;
            // A name of its own stays as it is for a single machine.
            machine.name = if draft.name.is_some() && draft.count == 1 {
                (*base).to_owned()
            } else {
                format!("{base}-{number}")
            };
            if !taken.take(reader, &machine.name, 63, spot) {
                break;
            }
            reservation.machines.push(machine);
        }
    }
}

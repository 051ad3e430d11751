//! Which style a document is in, and which provider each machine belongs to.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    draft::{Draft, Told},
    groups, keys, networks,
    problem::allowed,
    providers::Section,
    reader::{Fields, Reader},
    tree::{Node, Spot, Tree},
};

/// Reads the machines in whatever style they are, each with the index of its provider.
pub(super) fn styles(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    sections: &[Section<'_>],
    networks: &mut Vec<networks::Draft>,
) -> Vec<(Option<usize>, Draft)> {
    let mut found: Vec<(&str, Spot)> = Vec::new();
    let mut drafts: Vec<(Option<usize>, Draft)> = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        for node in &section.networks {
            let start = networks.len();
            networks::read(reader, node, networks);
            networks[start..]
                .iter_mut()
                .for_each(|n| n.provider = Some((section.config.name.clone(), n.spot)));
        }
        let Some((spot, node)) = section.resources else { continue };
        let start = networks.len();
        for draft in resources(reader, node, networks) {
            drafts.push((Some(index), draft));
        }
        networks[start..].iter_mut().for_each(|n| n.provider = Some((section.config.name.clone(), n.spot)));
        if found.is_empty() {
            found.push(("resources of the provider", spot));
        }
    }
    let mut free = Vec::new();
    let mut flat: Option<Vec<Draft>> = None;
    for key in ["resources", "topology", "machines"] {
        let Some(node) = fields.get(key) else { continue };
        let read = match key {
            "resources" => resources(reader, node, networks),
            "topology" => groups::topology(reader, node),
            _ => groups::machines(reader, node),
        };
        // What Enos makes of a topology may stand beside it, as long as it is the same.
        if key == "topology"
            && let Some(flat) = flat.take()
            && reader.is_clean()
        {
            if let Some(difference) = difference(&flat, &read) {
                let spot = fields.spot(key).unwrap_or_default();
                let message =
                    format!("`resources` asks for something else: {difference}; drop one of the two");
                reader.problem(spot, message);
            }
            free = read;
            continue;
        }
        let spot = fields.spot(key).unwrap_or_default();
        if let Some((first, at)) = found.first() {
            let message =
                format!("machines stand in line {} already, under `{first}`; drop one of the two", at.line);
            reader.problem(spot, message);
            continue;
        }
        found.push((key, spot));
        if key == "resources" {
            flat = Some(read.clone());
        }
        free = read;
    }
    for draft in free {
        let index = provider_of(reader, sections, draft.settings.provider.as_ref(), draft.spot, "machine");
        drafts.push((index, draft));
    }
    drafts
}

/// Reads `resources`, where explicit machines and networks may stand, too.
fn resources(reader: &mut Reader<'_>, node: &Node, networks: &mut Vec<networks::Draft>) -> Vec<Draft> {
    let explicit = matches!(node.get("machines"), Some(Node { value: Tree::List(_), .. }));
    if !explicit {
        return groups::resources(reader, node, None);
    }
    let fields = reader.fields(node, "resources with machines", keys::EXPLICIT);
    if let Some(node) = fields.get("networks") {
        networks::read(reader, node, networks);
    }
    fields.get("machines").map(|n| groups::machines(reader, n)).unwrap_or_default()
}

/// Says what differs between a flat description and a topology, summed over its groups.
fn difference(flat: &[Draft], topology: &[Draft]) -> Option<String> {
    let sums = |drafts: &[Draft]| {
        let mut sums: BTreeMap<(String, String), usize> = BTreeMap::new();
        for draft in drafts {
            let what = draft.kind.as_ref().map(|k| &k.told).or(draft.settings.address.as_ref());
            let what = what.map(|(word, _)| word.clone()).unwrap_or_default();
            let role = draft.path.last().cloned().unwrap_or_default();
            *sums.entry((what, role)).or_default() += draft.count;
        }
        sums.retain(|_, sum| *sum > 0);
        sums
    };
    let (flat, topology) = (sums(flat), sums(topology));
    let paths: BTreeSet<_> = flat.keys().chain(topology.keys()).collect();
    paths.into_iter().find(|path| flat.get(path) != topology.get(path)).map(|path| {
        let count = |sums: &BTreeMap<_, usize>| sums.get(path).copied().unwrap_or_default();
        format!("{} of {} for `{}` there, {} here", count(&flat), path.0, path.1, count(&topology))
    })
}

/// Returns the index of the provider that something belongs to.
pub(super) fn provider_of(
    reader: &mut Reader<'_>,
    sections: &[Section<'_>],
    told: Option<&Told>,
    spot: Spot,
    what: &str,
) -> Option<usize> {
    let names = || sections.iter().map(|s| s.config.name.as_str());
    match told {
        Some((name, spot)) => {
            let found = sections.iter().position(|s| s.config.name == *name);
            if found.is_none() && !sections.is_empty() {
                reader.problem(*spot, format!("there is no such provider; {}", allowed(name, names())));
            }
            found
        }
        None if sections.len() > 1 => {
            let names = names().collect::<Vec<_>>().join(", ");
            reader.problem(spot, format!("the {what} does not say its `provider`; allowed: {names}"));
            None
        }
        None => (!sections.is_empty()).then_some(0),
    }
}

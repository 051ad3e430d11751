//! `provider` and `providers`.

use serde_json::Map;

use crate::{ProviderConfig, near::near};

use super::{
    reader::Reader,
    tree::{Node, Spot, Tree},
};

/// A provider of the document, and what stands under it that is not its own.
#[derive(Debug)]
pub(super) struct Section<'n> {
    pub config: ProviderConfig,
    pub spot: Spot,
    pub resources: Option<(Spot, &'n Node)>,
    pub networks: Vec<&'n Node>,
    pub distribution: Option<&'n Node>,
}

/// Reads the value of `provider`.
pub(super) fn single<'n>(reader: &mut Reader<'_>, node: &'n Node) -> Option<Section<'n>> {
    if let Tree::List(_) = node.value {
        reader.problem(node.spot, "several providers stand under `providers`");
        return None;
    }
    section(reader, node, false)
}

/// Reads the value of `providers`.
pub(super) fn several<'n>(reader: &mut Reader<'_>, node: &'n Node) -> Vec<Section<'n>> {
    let Tree::List(items) = &node.value else {
        reader.problem(node.spot, format!("providers is a list of names and mappings, not {}", node.what()));
        return Vec::new();
    };
    let mut sections: Vec<Section<'_>> = Vec::new();
    for item in items {
        let Some(section) = section(reader, item, true) else { continue };
        let name = &section.config.name;
        if sections.iter().any(|s| s.config.name == *name) {
            let message = format!("a provider is called `{name}` already; give each a `name` of its own");
            reader.problem(section.spot, message);
        }
        sections.push(section);
    }
    if items.is_empty() {
        reader.problem(node.spot, "there is no provider in it");
    }
    sections
}

fn section<'n>(reader: &mut Reader<'_>, node: &'n Node, named: bool) -> Option<Section<'n>> {
    let mut section = Section {
        config: ProviderConfig::new(""),
        spot: node.spot,
        resources: None,
        networks: Vec::new(),
        distribution: None,
    };
    let Tree::Map(entries) = &node.value else {
        // A name is a name whatever it contains: only a mapping has a `type`.
        section.config = ProviderConfig::new(reader.word(node, "a provider")?);
        section.config.places = [("type".to_owned(), reader.place(node.spot))].into_iter().collect();
        return Some(section);
    };
    let Some(kind) = node.get("type") else {
        let near = near("type", entries.iter().map(|(key, _)| key.name.as_str()))
            .map(|key| format!(" (`{key}`?)"))
            .unwrap_or_default();
        reader.problem(node.spot, format!("the provider has no `type`{near}; write {{type: <name>, …}}"));
        return None;
    };
    section.config = ProviderConfig::new(reader.word(kind, "a provider's type")?);
    let is_static = is_static(&section.config.kind);
    let mut extra = Map::new();
    let mut places = Vec::new();
    for (name, spot, value) in reader.entries(node, "a provider") {
        match name {
            "type" => places.push((name.to_owned(), reader.place(spot))),
            "name" if named => {
                if let Some(name) = reader.word(value, "a provider's name") {
                    section.config.name = name;
                }
            }
            "resources" => section.resources = Some((spot, value)),
            "role_distribution" => section.distribution = Some(value),
            // Enos has the pool of existing hosts here.
            "network" | "networks" if is_static => section.networks.push(value),
            _ => {
                places.push((name.to_owned(), reader.place(spot)));
                extra.insert(name.to_owned(), value.to_value());
            }
        }
    }
    section.config.extra = extra;
    section.config.places = places.into_iter().collect();
    Some(section)
}

/// Returns whether `kind` names the provider of hosts that exist already.
pub(super) fn is_static(kind: &str) -> bool {
    crate::lookup(kind).map_or(kind, |r| r.name).eq_ignore_ascii_case("static")
}

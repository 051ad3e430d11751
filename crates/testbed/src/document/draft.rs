//! What the styles of a document have in common: groups of equal machines, before they belong to a provider.

use std::collections::BTreeMap;

use cloud_providers::PortRequest;
use serde_json::Value;

use crate::Size;

use super::{
    keys::{self, Keys},
    reader::{Fields, Reader},
    size,
    tree::{Node, Spot, Tree},
};

/// The most machines of one group: a slip of the finger shall not become an account's bill.
pub(super) const MOST: u64 = 10_000;

/// A word of the document and where it stands.
pub(super) type Told = (String, Spot);

/// A group of equal machines as the document has it.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub spot: Spot,
    /// What its machines' names are made of.
    pub path: Vec<String>,
    /// The name that the document gives.
    pub name: Option<Told>,
    pub topology: Option<String>,
    pub roles: Vec<String>,
    pub count: usize,
    pub min: Option<usize>,
    pub kind: Option<Kind>,
    pub settings: Settings,
    /// A host that exists already, as styles that can name nothing else have it.
    pub exists: bool,
}

/// What the provider sells, and whether a flavour may be meant.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub told: Told,
    pub flavour: bool,
}

/// What any style may say of a machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub provider: Option<Told>,
    pub size: Size,
    pub image: Option<Told>,
    pub user: Option<String>,
    pub networks: Vec<Told>,
    pub address: Option<Told>,
    pub ports: Vec<PortRequest>,
    pub alias: Option<Told>,
    pub port: Option<(u16, Spot)>,
    pub key: Option<Told>,
    pub extra: BTreeMap<String, Value>,
}

impl Draft {
    pub(super) fn new(spot: Spot, path: Vec<String>) -> Self {
        Self {
            spot,
            name: None,
            topology: None,
            roles: distinct(path.clone()),
            path,
            count: 1,
            min: None,
            kind: None,
            settings: Settings::default(),
            exists: false,
        }
    }
}

impl Settings {
    /// Reads what is there of the keys that say something of a machine.
    pub(super) fn read(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Self {
        let mut settings = Self {
            provider: told(reader, fields, "provider", "the provider"),
            size: size::read(reader, fields),
            image: fields.get("image").and_then(|n| Some((reader.text(n, "an image")?, n.spot))),
            user: fields.get("user").and_then(|n| reader.word(n, "an account")),
            address: told(reader, fields, "address", "an address"),
            alias: told(reader, fields, "alias", "an alias"),
            key: fields.get("key").and_then(|n| Some((reader.text(n, "a key's file")?, n.spot))),
            ports: fields.get("ports").map(|n| ports(reader, n)).unwrap_or_default(),
            extra: fields.get("extra").map(|n| variables(reader, n)).unwrap_or_default(),
            ..Self::default()
        };
        if let Some(node) = fields.get("port") {
            let port = reader.int(node, "a port", 1..=u64::from(u16::MAX));
            settings.port = port.and_then(|p| u16::try_from(p).ok()).map(|p| (p, node.spot));
        }
        for key in ["primary_network", "networks", "secondary_networks"] {
            let Some(node) = fields.get(key) else { continue };
            for item in reader.items(node) {
                if let Some(name) = reader.word(item, "a network") {
                    settings.networks.push((name, item.spot));
                }
            }
        }
        settings
    }
}

fn told(reader: &mut Reader<'_>, fields: &Fields<'_>, key: &str, what: &str) -> Option<Told> {
    let node = fields.get(key)?;
    Some((reader.word(node, what)?, node.spot))
}

/// Drops what stands twice.
pub(super) fn distinct(words: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for word in words {
        if !kept.contains(&word) {
            kept.push(word);
        }
    }
    kept
}

/// Reads ports: `80`, `80/tcp`, `53/udp`.
pub(super) fn ports(reader: &mut Reader<'_>, node: &Node) -> Vec<PortRequest> {
    let mut ports: Vec<PortRequest> = Vec::new();
    for item in reader.items(node) {
        let text = match &item.value {
            Tree::Number(n) => n.to_string(),
            Tree::Text(text) => text.clone(),
            _ => String::new(),
        };
        let (number, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
        match number.parse::<u16>() {
            Ok(port) if port > 0 && matches!(protocol, "tcp" | "udp") => {
                let port = PortRequest { port, protocol: protocol.to_owned() };
                if !ports.contains(&port) {
                    ports.push(port);
                }
            }
            _ => reader.problem(item.spot, "a port is a number from 1 to 65535, or such as 53/udp"),
        }
    }
    ports
}

/// Reads variables of an inventory.
fn variables(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, Value> {
    let entries = reader.entries(node, "extra");
    entries.into_iter().map(|(name, _, value)| (name.to_owned(), value.to_value())).collect()
}

/// Reads a count, or a mapping that has one, into `draft`.
pub(super) fn count(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) {
    if !matches!(node.value, Tree::Map(_)) {
        draft.count = number(reader, node, "the number of machines").unwrap_or(0);
        return;
    }
    let fields = reader.fields(node, "a number of machines", keys::COUNT);
    match fields.get("count") {
        Some(count) => draft.count = number(reader, count, "count").unwrap_or(0),
        None if fields.lacks("count") => reader.problem(node.spot, "there is no `count`"),
        None => {}
    }
    least(reader, &fields, draft);
    draft.settings = Settings::read(reader, &fields);
}

pub(super) fn number(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<usize> {
    reader.int(node, what, 0..=MOST).and_then(|n| usize::try_from(n).ok())
}

/// Reads `min`.
pub(super) fn least(reader: &mut Reader<'_>, fields: &Fields<'_>, draft: &mut Draft) {
    let Some(node) = fields.get("min") else { return };
    let Some(min) = number(reader, node, "min") else { return };
    if min > draft.count {
        reader.problem(node.spot, format!("min is above the number of machines, which is {}", draft.count));
    }
    draft.min = Some(min);
}

/// Returns whether a mapping can be read with `keys`: it has one of them.
pub(super) fn has_any(node: &Node, keys: Keys) -> bool {
    let known = |name: &str| keys.iter().any(|k| k.name == name || k.aliases.contains(&name));
    matches!(&node.value, Tree::Map(entries) if entries.iter().any(|(key, _)| known(&key.name)))
}

//! The styles that are nested mappings: `resources` and `topology`.

use super::{
    draft::{self, Draft, Kind, Settings, distinct},
    keys, range,
    reader::Reader,
    tree::{Node, Spot, Tree},
};

/// Reads `topology`: group, then what `resources` has.
pub(super) fn topology(reader: &mut Reader<'_>, node: &Node) -> Vec<Draft> {
    let mut drafts = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    for (written, spot, value) in reader.entries(node, "topology") {
        let groups = match range::expand(written) {
            Ok(groups) => groups,
            Err(message) => {
                reader.problem(spot, message);
                continue;
            }
        };
        for group in groups {
            if !reader.check_word(&group, spot, "a group") {
                break;
            }
            if seen.contains(&group) {
                reader.problem(spot, format!("the group `{group}` is there already"));
                continue;
            }
            drafts.extend(resources(reader, value, Some(&group)));
            seen.push(group);
        }
    }
    drafts
}

/// Reads `resources`: kind, role, count; or role, hosts.
pub(super) fn resources(reader: &mut Reader<'_>, node: &Node, group: Option<&str>) -> Vec<Draft> {
    let mut drafts = Vec::new();
    let what = if group.is_some() { "a group of the topology" } else { "resources" };
    for (first, spot, value) in reader.entries(node, what) {
        if !reader.check_word(first, spot, "a kind or a role") {
            continue;
        }
        let is_hosts = match &value.value {
            Tree::List(_) => true,
            Tree::Map(_) => value.get("address").is_some(),
            _ => false,
        };
        if is_hosts {
            drafts.extend(hosts(reader, value, group, first));
        } else if let Tree::Map(_) = value.value {
            drafts.extend(kind(reader, value, group, (first, spot)));
        } else {
            let message = format!(
                "write what it is by role: {{role: number}}, or a list of hosts, not {}",
                value.what()
            );
            reader.problem(spot, message);
        }
    }
    drafts
}

/// Reads role and count of one kind.
fn kind(reader: &mut Reader<'_>, node: &Node, group: Option<&str>, (kind, at): (&str, Spot)) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for (role, spot, value) in reader.entries(node, "a kind") {
        if !reader.check_word(role, spot, "a role") {
            continue;
        }
        let path = group.into_iter().chain([kind, role]).map(str::to_owned).collect();
        let mut draft = Draft::new(spot, path);
        draft.topology = group.map(str::to_owned);
        draft.kind = Some(Kind { told: (kind.to_owned(), at), flavour: true });
        draft::count(reader, value, &mut draft);
        drafts.push(draft);
    }
    drafts
}

/// Reads the hosts of one role.
fn hosts(reader: &mut Reader<'_>, node: &Node, group: Option<&str>, role: &str) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for item in reader.items(node) {
        let path: Vec<String> = group.into_iter().chain([role]).map(str::to_owned).collect();
        let mut draft = Draft::new(item.spot, path);
        draft.topology = group.map(str::to_owned);
        draft.exists = true;
        let fields = reader.fields(item, "a host", keys::HOST);
        draft.settings = Settings::read(reader, &fields);
        if draft.settings.address.is_none() {
            if fields.lacks("address") {
                reader.problem(item.spot, "the host has no `address`");
            }
            continue;
        }
        drafts.push(draft);
    }
    drafts
}

/// Reads `machines`.
pub(super) fn machines(reader: &mut Reader<'_>, node: &Node) -> Vec<Draft> {
    let Tree::List(items) = &node.value else {
        reader.problem(node.spot, format!("machines is a list, not {}", node.what()));
        return Vec::new();
    };
    items.iter().filter_map(|item| machine(reader, item)).collect()
}

fn machine(reader: &mut Reader<'_>, node: &Node) -> Option<Draft> {
    let fields = reader.fields(node, "an entry of machines", keys::MACHINE);
    if !matches!(node.value, Tree::Map(_)) {
        return None;
    }
    let roles = fields.get("roles").map(|n| reader.words(n, "a role")).unwrap_or_default();
    let mut kind = None;
    for (key, flavour) in [("type", false), ("flavour", true)] {
        let Some(node) = fields.get(key) else { continue };
        let Some(word) = reader.word(node, "a type") else { continue };
        if kind.is_some() {
            reader.problem(node.spot, "there is a `type` already; drop one of them");
            continue;
        }
        kind = Some(Kind { told: (word, node.spot), flavour });
    }
    let path = kind.iter().map(|k: &Kind| k.told.0.clone()).chain(roles.iter().cloned()).collect();
    let mut draft = Draft::new(node.spot, path);
    draft.roles = distinct(roles);
    draft.kind = kind;
    if let Some(node) = fields.get("name")
        && let Some(name) = reader.word(node, "a name")
    {
        if super::names::is_label(&name) {
            draft.name = Some((name, node.spot));
        } else {
            let near = super::names::label(&name);
            let hint = if near.is_empty() { String::new() } else { format!(", such as `{near}`") };
            let message =
                format!("a name has small letters, digits and hyphens, and at most 63 of them{hint}");
            reader.problem(node.spot, message);
        }
    }
    if let Some(node) = fields.get("number") {
        draft.count = draft::number(reader, node, "number").unwrap_or(0);
    }
    draft::least(reader, &fields, &mut draft);
    draft.settings = Settings::read(reader, &fields);
    if draft.count > 1
        && let Some((_, spot)) = &draft.settings.address
    {
        reader.problem(*spot, format!("one address cannot be that of {} machines", draft.count));
    }
    Some(draft)
}

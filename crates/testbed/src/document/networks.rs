//! `networks`.

use ipnet::IpNet;

use crate::NetworkRequest;

use super::{
    draft::Told,
    keys,
    reader::{Fields, Reader},
    tree::{Node, Spot, Tree},
};

/// A network and the provider that it is said to be of.
#[derive(Debug)]
pub(super) struct Draft {
    pub spot: Spot,
    pub provider: Option<Told>,
    pub request: NetworkRequest,
}

/// Reads `networks`: a list, or a mapping from name to network.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node, drafts: &mut Vec<Draft>) {
    match &node.value {
        Tree::List(items) => {
            for item in items {
                single(reader, item, None, drafts);
            }
        }
        Tree::Map(_) if super::draft::has_any(node, keys::NETWORK) => single(reader, node, None, drafts),
        _ => {
            for (name, spot, value) in reader.entries(node, "networks") {
                if reader.check_word(name, spot, "a network's name") {
                    single(reader, value, Some(name), drafts);
                }
            }
        }
    }
}

/// Reads one network; a bare text is its name.
pub(super) fn single(reader: &mut Reader<'_>, node: &Node, name: Option<&str>, drafts: &mut Vec<Draft>) {
    let mut draft = Draft { spot: node.spot, provider: None, request: NetworkRequest::default() };
    let request = &mut draft.request;
    request.name = name.unwrap_or_default().to_owned();
    if let Tree::Text(_) = node.value {
        request.name = reader.word(node, "a network").unwrap_or_default();
    } else if !(matches!(node.value, Tree::Null) && name.is_some()) {
        let fields = reader.fields(node, "a network", keys::NETWORK);
        if let Some(node) = fields.get("name") {
            if name.is_some() {
                reader.problem(node.spot, "the network has a name already: its key");
            } else if let Some(name) = reader.word(node, "a network's name") {
                request.name = name;
            }
        }
        request.roles = fields.get("roles").map(|n| reader.words(n, "a role")).unwrap_or_default();
        request.kind = fields.get("type").and_then(|n| reader.word(n, "a network's type"));
        draft.provider = fields.get("provider").and_then(|n| Some((reader.word(n, "the provider")?, n.spot)));
        addresses(reader, &fields, request);
    }
    if draft.request.name.is_empty() {
        let request = &draft.request;
        let base = request.roles.first().or(request.kind.as_ref()).map_or("network", String::as_str);
        let taken = |name: &str| drafts.iter().any(|d| d.request.name == name);
        let numbered = (2..).map(|n| format!("{base}-{n}"));
        let name = std::iter::once(base.to_owned()).chain(numbered).find(|name| !taken(name));
        draft.request.name = name.unwrap_or_default();
    } else if drafts.iter().any(|d| d.request.name == draft.request.name) {
        reader.problem(draft.spot, format!("a network is called `{}` already", draft.request.name));
    }
    drafts.push(draft);
}

fn addresses(reader: &mut Reader<'_>, fields: &Fields<'_>, request: &mut NetworkRequest) {
    request.cidr = fields.get("cidr").and_then(|node| cidr(reader, node));
    for (key, place) in [("start", 0), ("end", 1), ("gateway", 2)] {
        let Some(ip) = fields.get(key).and_then(|n| reader.ip(n, key)) else { continue };
        // A network that is typed with a gateway outside is a slip that nobody finds later.
        if let (Some(cidr), Some(node)) = (request.cidr, fields.get(key))
            && !cidr.contains(&ip)
        {
            reader.problem(node.spot, format!("{key} is outside {cidr}"));
        }
        match place {
            0 => request.start = Some(ip),
            1 => request.end = Some(ip),
            _ => request.gateway = Some(ip),
        }
    }
    request.extra_ips = fields.get("extra_ips").map(|n| reader.ips(n, "a free address")).unwrap_or_default();
    request.dns = fields.get("dns").map(|n| reader.ips(n, "a name server")).unwrap_or_default();
    let spot = |key: &str| fields.spot(key).unwrap_or_default();
    match (request.start, request.end) {
        (Some(start), Some(end)) => {
            if start.is_ipv4() != end.is_ipv4() {
                reader.problem(spot("end"), format!("start {start} and end {end} are of different families"));
            } else if start > end {
                reader.problem(spot("end"), format!("the end {end} is before the start {start}"));
            }
        }
        (Some(_), None) if fields.get("end").is_none() => {
            reader.problem(spot("start"), "there is a start without an `end`");
        }
        (None, Some(_)) if fields.get("start").is_none() => {
            reader.problem(spot("end"), "there is an end without a `start`");
        }
        _ => {}
    }
}

fn cidr(reader: &mut Reader<'_>, node: &Node) -> Option<IpNet> {
    let net: Option<IpNet> = match &node.value {
        Tree::Text(text) => text.parse().ok(),
        _ => None,
    };
    let Some(net) = net else {
        reader.problem(node.spot, "cidr is a network such as 192.0.2.0/24 or 2001:db8::/64");
        return None;
    };
    if net.trunc() != net {
        // Others take the address part for the gateway; nobody can know what was meant.
        reader.problem(node.spot, format!("this is an address in a network; the network is {}", net.trunc()));
    }
    Some(net.trunc())
}

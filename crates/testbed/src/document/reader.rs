//! Walks a tree and collects what is wrong with it, so that a user mends everything at once.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use crate::{Place, near::near};

use super::{
    keys::Keys,
    problem::{Problem, Problems, allowed, excerpt},
    tree::{Node, Spot, Tree},
};

/// The source, and the problems found so far.
#[derive(Debug)]
pub(super) struct Reader<'s> {
    file: &'s str,
    source: &'s str,
    problems: Vec<Problem>,
}

/// The known keys of one mapping.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    by_name: BTreeMap<&'static str, (&'n Node, Spot)>,
    refused: Vec<&'n str>,
    is_mapping: bool,
}

impl<'n> Fields<'n> {
    /// Returns the value of `key`. A value of nothing counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.by_name.get(key).map(|(node, _)| *node).filter(|node| !matches!(node.value, Tree::Null))
    }

    /// Says whether `key` was forgotten: it is not there, and no other word that may be meant for it.
    pub(super) fn lacks(&self, key: &str) -> bool {
        self.is_mapping
            && self.get(key).is_none()
            && !self.refused.iter().any(|word| near(word, [key]).is_some())
    }

    /// Returns where `key` itself stands.
    pub(super) fn spot(&self, key: &str) -> Option<Spot> {
        self.by_name.get(key).map(|(_, spot)| *spot)
    }
}

impl<'s> Reader<'s> {
    pub(super) fn new(file: &'s str, source: &'s str) -> Self {
        Self { file, source, problems: Vec::new() }
    }

    /// Ends the walk: the problems in the order of the document, each once.
    pub(super) fn finish(mut self) -> Result<(), Problems> {
        if self.problems.is_empty() {
            return Ok(());
        }
        self.problems.sort_by_key(|p| (p.place.line, p.place.column));
        // An anchor that is used twice is read twice.
        self.problems.dedup();
        Err(Problems(self.problems))
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn place(&self, spot: Spot) -> Place {
        Place { file: self.file.to_owned(), line: spot.line, column: spot.column }
    }

    /// Notes a problem with what stands at `spot`.
    pub(super) fn problem(&mut self, spot: Spot, message: impl Into<String>) {
        let text = excerpt(spot.shown(self.source));
        self.problems.push(Problem { place: self.place(spot), text, message: message.into() });
    }

    /// Returns the text as it stands in the document, so that `22.10` stays what it is.
    fn raw(&self, node: &Node) -> String {
        match &node.value {
            Tree::Text(text) => text.clone(),
            _ => node.spot.source(self.source).to_owned(),
        }
    }

    /// Reads a mapping with these keys. Other keys, and keys that stand twice, are problems.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, what: &str, keys: Keys) -> Fields<'n> {
        let is_mapping = matches!(node.value, Tree::Map(_));
        let mut fields = Fields { by_name: BTreeMap::new(), refused: Vec::new(), is_mapping };
        for (name, spot, value) in self.entries(node, what) {
            if name.starts_with("x-") {
                continue;
            }
            let Some(key) = keys.iter().find(|k| k.name == name || k.aliases.contains(&name)) else {
                let known = keys.iter().map(|k| k.name);
                self.problem(spot, format!("{what} has no such key; {}", allowed(name, known)));
                fields.refused.push(name);
                continue;
            };
            if fields.by_name.insert(key.name, (value, spot)).is_some() {
                self.problem(spot, format!("the same as `{}`, which is there already", key.name));
            }
        }
        fields
    }

    /// Returns the entries of a mapping in the order of the document.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, what: &str) -> Vec<(&'n str, Spot, &'n Node)> {
        let Tree::Map(entries) = &node.value else {
            self.problem(node.spot, format!("{what} is a mapping, not {}", node.what()));
            return Vec::new();
        };
        let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
        let mut found = Vec::new();
        for (key, value) in entries {
            if let Some(line) = seen.get(key.name.as_str()) {
                self.problem(key.spot, format!("this key stands in line {line} already"));
                continue;
            }
            seen.insert(&key.name, key.spot.line);
            found.push((key.name.as_str(), key.spot, value));
        }
        found
    }

    /// Reads a list; a single value is a list of one, nothing is an empty one.
    pub(super) fn items<'n>(&self, node: &'n Node) -> Vec<&'n Node> {
        match &node.value {
            Tree::Null => Vec::new(),
            Tree::List(items) => items.iter().collect(),
            _ => vec![node],
        }
    }

    /// Reads a text; a number or a truth value counts as it is written.
    pub(super) fn text(&mut self, node: &Node, what: &str) -> Option<String> {
        match node.value {
            Tree::List(_) | Tree::Map(_) | Tree::Null => {
                self.problem(node.spot, format!("{what} is text, not {}", node.what()));
                None
            }
            _ => {
                let text = self.raw(node);
                if text.trim().is_empty() {
                    self.problem(node.spot, format!("{what} is empty"));
                    return None;
                }
                if text.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
                    self.problem(node.spot, format!("{what} has a control character"));
                    return None;
                }
                Some(text)
            }
        }
    }

    /// Reads a text without line breaks, the kind that names something.
    pub(super) fn word(&mut self, node: &Node, what: &str) -> Option<String> {
        let text = self.text(node, what)?;
        self.check_word(&text, node.spot, what).then_some(text)
    }

    /// Checks a name of a role, a kind, a group.
    pub(super) fn check_word(&mut self, text: &str, spot: Spot, what: &str) -> bool {
        if text.trim() != text
            || text.is_empty()
            || text.contains(|c: char| c.is_control() || c.is_whitespace())
        {
            self.problem(spot, format!("{what} is a word without spaces"));
            return false;
        }
        true
    }

    pub(super) fn words(&mut self, node: &Node, what: &str) -> Vec<String> {
        let mut words = Vec::new();
        for item in self.items(node) {
            if let Some(word) = self.word(item, what)
                && !words.contains(&word)
            {
                words.push(word);
            }
        }
        words
    }

    pub(super) fn bool(&mut self, node: &Node, what: &str) -> Option<bool> {
        match node.value {
            Tree::Bool(b) => Some(b),
            _ => {
                self.problem(node.spot, format!("{what} is true or false, not {}", node.what()));
                None
            }
        }
    }

    pub(super) fn int(&mut self, node: &Node, what: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = match &node.value {
            Tree::Number(n) => n.as_u64(),
            _ => None,
        };
        let value = value.filter(|n| range.contains(n));
        if value.is_none() {
            let (least, most) = (range.start(), range.end());
            self.problem(node.spot, format!("{what} is a whole number from {least} to {most}"));
        }
        value
    }

    pub(super) fn ip(&mut self, node: &Node, what: &str) -> Option<IpAddr> {
        let parsed = match &node.value {
            Tree::Text(text) => text.parse().ok(),
            _ => None,
        };
        if parsed.is_none() {
            self.problem(node.spot, format!("{what} is an address such as 192.0.2.7 or 2001:db8::7"));
        }
        parsed
    }

    pub(super) fn ips(&mut self, node: &Node, what: &str) -> Vec<IpAddr> {
        self.items(node).into_iter().filter_map(|item| self.ip(item, what)).collect()
    }
}

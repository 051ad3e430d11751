//! A YAML document as a tree that knows where each part stands.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_yaml::{Location, Spanned};

/// Line and column, both from 1, and the bytes of the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spot {
    pub line: u64,
    pub column: u64,
    start: usize,
    end: usize,
}

impl Spot {
    fn of(location: Location) -> Self {
        let span = location.span();
        let start = usize::try_from(span.byte_offset().unwrap_or(0)).unwrap_or(usize::MAX);
        let len = usize::try_from(span.byte_len().unwrap_or(0)).unwrap_or(0);
        Self { line: location.line(), column: location.column(), start, end: start.saturating_add(len) }
    }

    /// Returns what stands there.
    pub(super) fn source<'s>(&self, document: &'s str) -> &'s str {
        document.get(self.start..self.end).unwrap_or_default().trim_end()
    }

    /// Returns what stands there, and the rest of the line where that is only how something begins.
    pub(super) fn shown<'s>(&self, document: &'s str) -> &'s str {
        match self.source(document) {
            "" | "{" | "[" | "-" => {
                document.get(self.start..).and_then(|rest| rest.lines().next()).unwrap_or_default()
            }
            text => text,
        }
    }
}

/// A value and where it stands. An alias stands where its anchor does: that is the text to mend.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub value: Tree,
    pub spot: Spot,
}

/// A key and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub name: String,
    pub spot: Spot,
}

#[derive(Clone, Debug)]
pub(super) enum Tree {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the document; a key may stand twice.
    Map(Vec<(Key, Node)>),
}

impl Node {
    /// Returns the plain value.
    pub(super) fn to_value(&self) -> Value {
        match &self.value {
            Tree::Null => Value::Null,
            Tree::Bool(b) => Value::Bool(*b),
            Tree::Number(n) => Value::Number(n.clone()),
            Tree::Text(t) => Value::String(t.clone()),
            Tree::List(items) => items.iter().map(Self::to_value).collect(),
            Tree::Map(entries) => Value::Object(
                entries.iter().map(|(key, node)| (key.name.clone(), node.to_value())).collect::<Map<_, _>>(),
            ),
        }
    }

    /// Names what it is, for messages.
    pub(super) fn what(&self) -> &'static str {
        match self.value {
            Tree::Null => "nothing",
            Tree::Bool(_) => "true or false",
            Tree::Number(_) => "a number",
            Tree::Text(_) => "text",
            Tree::List(_) => "a list",
            Tree::Map(_) => "a mapping",
        }
    }

    /// Returns the value of `key`, where this is a mapping that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Tree::Map(entries) => entries.iter().find(|(k, _)| k.name == key).map(|(_, node)| node),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Tree>::deserialize(deserializer)?;
        Ok(Self { value: spanned.value, spot: Spot::of(spanned.defined) })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { name: spanned.value, spot: Spot::of(spanned.defined) })
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Tree, E> {
        Ok(Tree::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Tree, E> {
        Ok(Tree::Number(v.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Tree, E> {
        let number =
            Number::from_f64(v).ok_or_else(|| E::custom("infinity and not-a-number are no values here"))?;
        Ok(Tree::Number(number))
    }

    fn visit_str<E>(self, v: &str) -> Result<Tree, E> {
        Ok(Tree::Text(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Tree, E> {
        Ok(Tree::Text(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        super::super::tree_of(text, "t.yaml").unwrap()
    }

    #[test]
    fn each_part_knows_where_it_stands() {
        let text = "a: 1\nb:\n  - x: é\n  - 22.10\n";
        let node = tree(text);
        let b = node.get("b").unwrap();
        let Tree::List(items) = &b.value else { panic!("{b:?}") };
        let x = items[0].get("x").unwrap();
        assert_eq!((x.spot.line, x.spot.column), (3, 8));
        assert_eq!(x.spot.source(text), "é");
        assert_eq!((items[1].spot.line, items[1].spot.column), (4, 5));
        assert_eq!(items[1].spot.source(text), "22.10");
    }

    #[test]
    fn an_alias_stands_where_its_anchor_does() {
        let node = tree("a: &x {k: v}\nb: *x\nc:\n  <<: *x\n  l: 1\n");
        let k = node.get("b").and_then(|b| b.get("k")).unwrap();
        assert_eq!((k.spot.line, k.spot.column), (1, 11));
        let c = node.get("c").unwrap();
        assert!(c.get("k").is_some() && c.get("l").is_some() && c.get("<<").is_none());
    }

    #[test]
    fn a_key_may_be_a_number_and_stand_twice() {
        let node = tree("1: a\n1: b\ntrue: c\n");
        let Tree::Map(entries) = &node.value else { panic!("{node:?}") };
        let names: Vec<_> = entries.iter().map(|(k, _)| (k.name.as_str(), k.spot.line)).collect();
        assert_eq!(names, [("1", 1), ("1", 2), ("true", 3)]);
    }
}

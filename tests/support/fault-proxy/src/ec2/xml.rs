//! Looks at answers in XML, and changes places in them.

use std::ops::Range;

use anyhow::{Context as _, Result};
use roxmltree::{Document, Node};

/// Reads an answer.
pub(super) fn parse(text: &str) -> Result<Document<'_>> {
    Document::parse(text).context("the emulator's answer is no XML")
}

/// Returns the child of this name.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.is_element() && child.tag_name().name() == name)
}

/// Returns the text of the node that is reached by these names.
pub(super) fn text<'a>(node: Node<'a, '_>, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(node, |node, name| child(node, name))?.text()
}

/// Returns the entries of the list of this name, wherever it is below `node`.
pub(super) fn items<'a, 'i: 'a>(node: Node<'a, 'i>, list: &'a str) -> impl Iterator<Item = Node<'a, 'i>> {
    let lists = node.descendants().filter(move |node| node.is_element() && node.tag_name().name() == list);
    lists
        .flat_map(|list| list.children())
        .filter(|node| node.is_element() && node.tag_name().name() == "item")
}

/// Returns the texts of all nodes of this name.
pub(super) fn all(text: &str, name: &str) -> Result<Vec<String>> {
    let document = parse(text)?;
    let nodes = document.descendants().filter(|node| node.is_element() && node.tag_name().name() == name);
    Ok(nodes.filter_map(|node| node.text()).map(str::to_owned).collect())
}

/// Makes text that can stand in XML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Changes to be made at places of a text.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    /// Puts `instead` in the place of a node.
    pub(super) fn replace(&mut self, node: Node<'_, '_>, instead: impl Into<String>) {
        self.0.push((node.range(), instead.into()));
    }

    /// Gives the child of this name another text, or adds it.
    pub(super) fn set(&mut self, parent: Node<'_, '_>, name: &str, value: &str) {
        let instead = format!("<{name}>{}</{name}>", escape(value));
        match child(parent, name) {
            Some(node) => self.replace(node, instead),
            None => self.append(parent, &instead),
        }
    }

    /// Adds to the end of a node that has children.
    pub(super) fn append(&mut self, parent: Node<'_, '_>, more: &str) {
        // An element without children may be written as one tag, which has no end to add before.
        if let Some(last) = parent.last_child() {
            let end = last.range().end;
            self.0.push((end..end, more.to_owned()));
        }
    }

    /// Makes the changes; those within one that is replaced are dropped.
    pub(super) fn apply(mut self, text: &str) -> String {
        self.0.sort_by_key(|(range, _)| (range.start, usize::MAX - range.end));
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        for (range, instead) in self.0 {
            if range.start >= at {
                out.push_str(&text[at..range.start]);
                out.push_str(&instead);
                at = range.end;
            }
        }
        out.push_str(&text[at..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_made_in_place_and_those_within_another_are_dropped() {
        let source = "<r><a><b>1</b></a><c>2</c></r>";
        let document = parse(source).unwrap();
        let root = document.root_element();
        let mut edits = Edits::default();
        edits.set(child(root, "a").unwrap(), "b", "<5>");
        edits.set(root, "c", "3");
        edits.set(root, "d", "4");
        assert_eq!(edits.apply(source), "<r><a><b>&lt;5&gt;</b></a><c>3</c><d>4</d></r>");
        let mut edits = Edits::default();
        edits.set(child(root, "a").unwrap(), "b", "9");
        edits.replace(child(root, "a").unwrap(), "");
        assert_eq!(edits.apply(source), "<r><c>2</c></r>");
    }
}

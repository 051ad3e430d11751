//! Libvirt's documents: what we write and what we read of its answers.
//!
//! Written documents are built as a tree, so that every text is escaped in one place. Read documents may hold elements
//! that this version does not know; they are passed over.

mod domain;
#[cfg(test)]
mod golden;
mod host;
mod metadata;
mod parts;
mod state;
mod volume;

pub(crate) use domain::DomainPlan;
pub(crate) use host::{DomainCaps, HostFacts};
pub(crate) use metadata::{Metadata, NAMESPACE, OwnVolume};
pub(crate) use parts::{CpuMode, DataDisk, DiskBus, DomainType, Firmware, Nic, SeedBus};
pub(crate) use state::DomainFacts;
pub(crate) use volume::{PoolFacts, VolumeFacts, VolumePlan, instance_of_volume, root_name, seed_name};

use cloud_providers::{Error, Result};
use roxmltree::{Document, Node};

/// An element to be written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    pub(crate) fn attr(mut self, name: &str, value: impl ToString) -> Self {
        self.attributes.push((name.into(), value.to_string()));
        self
    }

    /// Replaces an attribute.
    fn set(mut self, name: &str, value: &str) -> Self {
        self.attributes.retain(|(known, _)| known != name);
        self.attr(name, value)
    }

    pub(crate) fn text(mut self, text: impl ToString) -> Self {
        self.text = text.to_string();
        self
    }

    pub(crate) fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    pub(crate) fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// Writes the document, two blanks for each level.
    ///
    /// # Errors
    ///
    /// A text that XML cannot carry: most control characters have no form in it, not even an escaped one.
    pub(crate) fn to_xml(&self) -> Result<String> {
        let mut out = String::new();
        self.write(&mut out, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, level: usize) -> Result<()> {
        let pad = "  ".repeat(level);
        out.push_str(&format!("{pad}<{}", self.name));
        for (name, value) in &self.attributes {
            out.push_str(&format!(" {name}='"));
            escape(out, value, &self.name)?;
            out.push('\'');
        }
        if self.children.is_empty() && self.text.is_empty() {
            out.push_str("/>\n");
            return Ok(());
        }
        out.push('>');
        escape(out, &self.text, &self.name)?;
        if !self.children.is_empty() {
            out.push('\n');
            for child in &self.children {
                child.write(out, level + 1)?;
            }
            out.push_str(&pad);
        }
        out.push_str(&format!("</{}>\n", self.name));
        Ok(())
    }
}

fn escape(out: &mut String, text: &str, element: &str) -> Result<()> {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            // Written raw, readers would turn them into blanks.
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                return Err(Error::config("a text for libvirt holds a character that XML cannot carry")
                    .with("element", element)
                    .with("character", format!("U+{:04X}", u32::from(c))));
            }
            _ => out.push(c),
        }
    }
    Ok(())
}

/// Reads an answer of libvirt.
fn parse<'a>(what: &str, xml: &'a str) -> Result<Document<'a>> {
    Document::parse(xml).map_err(|e| {
        Error::internal("libvirt's answer is not the expected document").with("document", what).with_source(e)
    })
}

/// Follows a path of element names from `node` and returns the first match.
fn find<'a, 'd>(node: Node<'a, 'd>, path: &str) -> Option<Node<'a, 'd>> {
    path.split('/').try_fold(node, |node, name| node.children().find(|c| c.tag_name().name() == name))
}

/// The children of one name.
fn all<'a, 'd>(node: Node<'a, 'd>, name: &'static str) -> impl Iterator<Item = Node<'a, 'd>> {
    node.children().filter(move |c| c.is_element() && c.tag_name().name() == name)
}

/// The text at the end of a path, trimmed; empty when it is not there.
fn text(node: Node<'_, '_>, path: &str) -> String {
    find(node, path).and_then(|n| n.text()).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// An attribute at the end of a path.
fn attr(node: Node<'_, '_>, path: &str, name: &str) -> Option<String> {
    let node = if path.is_empty() { node } else { find(node, path)? };
    node.attribute(name).map(str::to_owned)
}

/// A number with its unit, in bytes; libvirt's capacities come in bytes unless they say otherwise.
fn bytes(node: Node<'_, '_>, path: &str) -> Option<u64> {
    let node = find(node, path)?;
    let number: u64 = node.text()?.trim().parse().ok()?;
    let scale = match node.attribute("unit").unwrap_or("bytes") {
        "B" | "b" | "byte" | "bytes" => 1,
        "KB" => 1000,
        "k" | "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_that_xml_cannot_carry_is_named() {
        let error = Element::new("name").text("a\u{1b}").to_xml().unwrap_err().to_string();
        assert!(error.contains("element: name") && error.contains("U+001B"), "{error}");
    }

    #[test]
    fn capacities_are_read_with_their_unit() {
        for (xml, expected) in [
            ("<c>7</c>", Some(7)),
            ("<c unit='KiB'>2</c>", Some(2048)),
            ("<c unit='G'>1</c>", Some(1 << 30)),
            ("<c unit='KB'>2</c>", Some(2000)),
            ("<c unit='E'>1</c>", None),
            ("<c>-1</c>", None),
        ] {
            let text = format!("<v>{xml}</v>");
            let document = Document::parse(&text).unwrap();
            assert_eq!(bytes(document.root_element(), "c"), expected, "{xml}");
        }
    }

    proptest! {
        #[test]
        fn any_text_reads_back(text in any::<String>(), value in any::<String>()) {
            // Blanks alone are formatting.
            prop_assume!(!text.trim().is_empty());
            match Element::new("a").attr("b", &value).text(&text).to_xml() {
                Ok(xml) => {
                    let document = Document::parse(&xml).unwrap();
                    prop_assert_eq!(document.root_element().attribute("b"), Some(value.as_str()));
                    prop_assert_eq!(document.root_element().text(), Some(text.as_str()));
                }
                Err(_) => {
                    let outside = |c: char| c.is_control() || c >= '\u{fffe}';
                    prop_assert!(text.chars().chain(value.chars()).any(outside))
                }
            }
        }

        #[test]
        fn damaged_answers_are_errors_and_never_panics(xml in "[<>/a-z' =&;]{0,60}") {
            let _ = DomainFacts::parse(&xml);
            let _ = VolumeFacts::parse(&xml);
            let _ = HostFacts::parse(&xml);
            let _ = DomainCaps::parse(&xml);
        }
    }
}

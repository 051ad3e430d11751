//! Lines of the index, one for each version of a package.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// What cargo reads of one version before it downloads anything.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) vers: String,
    pub(super) deps: Vec<Dependency>,
    pub(super) cksum: String,
    pub(super) features: BTreeMap<String, Vec<String>>,
    /// Features in the newer syntax (`dep:`, `pkg?/feature`), which readers of the first schema do not understand.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) features2: BTreeMap<String, Vec<String>>,
    pub(super) yanked: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) links: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rust_version: Option<String>,
    /// The schema: 2 when there are `features2`.
    pub(super) v: u32,
}

/// A dependency of one version.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Dependency {
    /// The name in the dependent's code.
    pub(super) name: String,
    pub(super) req: String,
    pub(super) features: Vec<String>,
    pub(super) optional: bool,
    pub(super) default_features: bool,
    pub(super) target: Option<String>,
    pub(super) kind: String,
    /// Another registry; none means this one.
    pub(super) registry: Option<String>,
    /// The name of the package, when the dependent calls it something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) package: Option<String>,
}

impl Entry {
    /// Sorts features by syntax and sets the schema.
    pub(super) fn with_features(mut self, all: BTreeMap<String, Vec<String>>) -> Self {
        let is_new = |values: &Vec<String>| {
            values.iter().any(|value| value.starts_with("dep:") || value.contains("?/"))
        };
        (self.features2, self.features) = all.into_iter().partition(|(_, values)| is_new(values));
        self.v = if self.features2.is_empty() { 1 } else { 2 };
        self
    }
}

impl Dependency {
    /// The name of the package that is depended on.
    pub(super) fn package(&self) -> &str {
        self.package.as_deref().unwrap_or(&self.name)
    }
}

/// The index file of `name`, relative to the index; nothing for a name that no package can have.
pub(super) fn path(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return None;
    }
    Some(match name.len() {
        1 => format!("1/{name}"),
        2 => format!("2/{name}"),
        3 => format!("3/{}/{name}", &name[..1]),
        _ => format!("{}/{}/{name}", &name[..2], &name[2..4]),
    })
}

/// What packages that must not stand beside each other have in common: case, `-` and `_` do not tell names apart.
pub(super) fn canonical(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// Reads an index file.
pub(super) fn read(text: &str) -> Result<Vec<Entry>> {
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).with_context(|| format!("no line of an index: {line}")))
        .collect()
}

/// Writes an index file.
pub(super) fn write(entries: &[Entry]) -> Result<String> {
    ensure!(!entries.is_empty(), "an index file has at least one line");
    let mut text = String::new();
    for entry in entries {
        text.push_str(&serde_json::to_string(entry)?);
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_file_lies_where_cargo_looks_for_it() {
        for (name, wanted) in
            [("a", "1/a"), ("ab", "2/ab"), ("abc", "3/a/abc"), ("Cargo", "ca/rg/cargo"), ("caa", "3/c/caa")]
        {
            assert_eq!(path(name).unwrap(), wanted);
        }
        for name in ["", "../x", "a/b", "é", &"a".repeat(65)] {
            assert_eq!(path(name), None, "{name}");
        }
    }

    #[test]
    fn features_in_the_newer_syntax_stand_apart() {
        let text = r#"{"name":"a","vers":"1.0.0","deps":[],"cksum":"","features":{},"yanked":false,"v":1}"#;
        let entry = read(text).unwrap().remove(0);
        let features = [("old", "b/x"), ("new", "dep:b"), ("weak", "b?/x")];
        let entry = entry.with_features(features.map(|(k, v)| (k.to_owned(), vec![v.to_owned()])).into());
        assert_eq!(entry.features.keys().collect::<Vec<_>>(), ["old"]);
        assert_eq!(entry.features2.keys().collect::<Vec<_>>(), ["new", "weak"]);
        assert_eq!(entry.v, 2);
        assert_eq!(read(&write(std::slice::from_ref(&entry)).unwrap()).unwrap(), [entry]);
    }
}

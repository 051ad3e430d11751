//! The licence texts that go with a program: those of every package that is linked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use cargo_metadata::Metadata;

use super::sbom::Graph;

/// How files begin that carry a licence or a notice that must be passed on.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
/// Where Debian keeps the licence of the C library, parts of which a static program contains.
const LGPL: &str = "/usr/share/common-licenses/LGPL-2.1";

/// Writes the texts of all linked packages, each text once with the packages that it belongs to.
///
/// # Errors
///
/// When a text cannot be read.
pub(crate) fn write(metadata: &Metadata, graph: &Graph, glibc: bool) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut without = Vec::new();
    for key in &graph.linked {
        let component = &graph.components[key];
        let package = metadata
            .packages
            .iter()
            .find(|one| *one.name == component.name && one.version.to_string() == component.version)
            .with_context(|| format!("cargo metadata does not know {key}"))?;
        // A package of ours has the licence of the repository.
        let folder = package.manifest_path.parent().context("a manifest lies in a folder")?;
        let folder = if package.source.is_none() { &metadata.workspace_root } else { folder };
        let found = texts_in(folder.as_std_path())?;
        if found.is_empty() {
            without.push(format!("{key} ({})", component.licence));
        }
        for text in found {
            texts.entry(text).or_default().push(key.clone());
        }
    }
    if glibc {
        match std::fs::read_to_string(LGPL) {
            Ok(text) => texts.entry(text).or_default().push("glibc, which is linked statically".to_owned()),
            Err(_) => without.push("glibc, which is linked statically (LGPL-2.1-or-later)".to_owned()),
        }
    }
    let mut out = String::from("Licences of everything that is linked into this program.\n");
    if !without.is_empty() {
        writeln!(out, "\nTheir packages carry no text of their own: {}", without.join(", "))?;
    }
    let mut texts: Vec<_> = texts.into_iter().collect();
    texts.sort_by(|(_, left), (_, right)| left.cmp(right));
    for (text, packages) in texts {
        writeln!(out, "\n{}\n{}\n\n{}", "=".repeat(80), packages.join(", "), text.trim_end())?;
    }
    Ok(out)
}

fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.path().is_file() && NAMES.iter().any(|begin| name.starts_with(begin)) {
            let bytes = std::fs::read(entry.path())?;
            found.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, text)| text).collect())
}

//! Changes of manifests that keep comments and order.

use anyhow::{Context as _, Result, ensure};
use semver::Version;
use toml_edit::{DocumentMut, Item, TableLike, Value};

use super::packages::Packages;

/// Tables of dependencies in a manifest.
const KINDS: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

/// Returns the manifest with another version of the package.
///
/// # Errors
///
/// When it is no manifest, or has no version of its own.
pub(super) fn with_version(text: &str, version: &Version) -> Result<String> {
    let mut document = parse(text)?;
    let item = document.get_mut("package").and_then(|package| package.get_mut("version"));
    let value = item.and_then(Item::as_value_mut).filter(|value| value.is_str());
    set(value.context("it has no version of its own: write `version = \"…\"`")?, &version.to_string());
    Ok(document.to_string())
}

/// Returns the manifest with requirements on a package of the workspace that this version meets.
///
/// Pins stay pins. Other requirements are raised too: what is released next was tested with this version.
///
/// # Errors
///
/// When it is no manifest.
pub(super) fn with_requirement(
    text: &str,
    packages: &Packages,
    name: &str,
    version: &Version,
) -> Result<String> {
    ensure!(packages.find(name).is_some(), "there is no package {name}");
    let mut document = parse(text)?;
    let root = document.as_table_mut();
    let mut tables: Vec<&mut Item> = Vec::new();
    for (key, item) in root.iter_mut() {
        if KINDS.contains(&key.get()) {
            tables.push(item);
        } else if key == "workspace" {
            tables.extend(item.get_mut("dependencies"));
        } else if key == "target" {
            let targets = item.as_table_like_mut().into_iter().flat_map(TableLike::iter_mut);
            for (_, target) in targets {
                let inner = target.as_table_like_mut().into_iter().flat_map(TableLike::iter_mut);
                tables.extend(inner.filter(|(key, _)| KINDS.contains(&key.get())).map(|(_, item)| item));
            }
        }
    }
    for table in tables.into_iter().filter_map(Item::as_table_like_mut) {
        for (key, item) in table.iter_mut() {
            let Some(entry) = item.as_table_like_mut() else { continue };
            let package = entry.get("package").and_then(Item::as_str).unwrap_or(key.get());
            if package != name || !entry.contains_key("path") {
                continue;
            }
            if let Some(value) = entry.get_mut("version").and_then(Item::as_value_mut) {
                let operator: String =
                    value.as_str().unwrap_or("").chars().take_while(|c| "=^~".contains(*c)).collect();
                set(value, &format!("{operator}{version}"));
            }
        }
    }
    Ok(document.to_string())
}

/// The requirements that the root of the workspace states for its packages: key, package and text.
///
/// # Errors
///
/// When it is no manifest.
pub(super) fn shared_requirements(text: &str) -> Result<Vec<(String, String)>> {
    let document = parse(text)?;
    let table = document.get("workspace").and_then(|workspace| workspace.get("dependencies"));
    let entries = table.and_then(Item::as_table_like).into_iter().flat_map(TableLike::iter);
    Ok(entries
        .filter_map(|(key, item)| {
            let entry = item.as_table_like().filter(|entry| entry.contains_key("path"))?;
            let package = entry.get("package").and_then(Item::as_str).unwrap_or(key);
            Some((package.to_owned(), entry.get("version")?.as_str()?.to_owned()))
        })
        .collect())
}

fn parse(text: &str) -> Result<DocumentMut> {
    text.parse().context("it is not understood as TOML")
}

/// Replaces a value and keeps the blanks and comments around it.
fn set(value: &mut Value, text: &str) {
    let decor = value.decor().clone();
    *value = Value::from(text);
    *value.decor_mut() = decor;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_changes_and_nothing_else() {
        let text = "# top\n[package]\nname = \"x\" # name\nversion = \"0.1.0\" # kept\n\n[dependencies]\ny = \"1\"\n";
        let new = with_version(text, &Version::new(0, 1, 1)).unwrap();
        assert_eq!(new, text.replace("0.1.0", "0.1.1"));
        let shared =
            with_version("[package]\nversion.workspace = true\n", &Version::new(0, 1, 1)).unwrap_err();
        assert!(shared.to_string().contains("version of its own"), "{shared}");
        assert!(with_version("[package\n", &Version::new(0, 1, 1)).is_err());
    }

    #[test]
    fn shared_requirements_are_those_with_a_path() {
        let text = "[workspace.dependencies]\na = { version = \"=0.1.0\", path = \"a\" }\nb = { path = \"b\" }\nc = \"1\"\n";
        assert_eq!(shared_requirements(text).unwrap(), [("a".to_owned(), "=0.1.0".to_owned())]);
    }
}

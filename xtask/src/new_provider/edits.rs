//! The places that name every provider: manifests, the bundle, tables, the table of contents, changelogs.

use anyhow::{Context as _, Result, ensure};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, Value};

use super::lists::{add_changelog_line, between, insert_sorted};
use super::names::Names;
use super::plan::Plan;

/// The version with which a crate begins.
const VERSION: &str = "0.1.0";
/// Programs that forward a feature for each provider, when they are there.
const PROGRAMS: &[&str] = &["caa", "peerpod-ctrl", "testbed-cli"];

/// Plans every edit.
///
/// # Errors
///
/// Names the file that does not look as expected.
pub(super) fn add(plan: &mut Plan, names: &Names) -> Result<()> {
    let name = names.name.as_str();
    plan.edit("Cargo.toml", |text| workspace(text, name))?;
    bundle(plan, names)?;
    for program in PROGRAMS {
        if plan.root().join(format!("crates/{program}/Cargo.toml")).is_file() {
            self::program(plan, program, name)?;
        }
    }
    plan.edit("docs/providers/index.md", |text| {
        let row = format!(
            "| [{name}]({name}.md) | `{name}` | by virtual machines of the cloud | new: the conformance suite says what works |"
        );
        insert_sorted(text, "the table of providers", name, &row, |lines| {
            between(lines[0], "| [", "](").map(str::to_owned)
        })
    })?;
    plan.edit("docs/SUMMARY.md", |text| {
        let line = format!("  - [{name}](providers/{name}.md)");
        insert_sorted(text, "the pages of the providers", name, &line, |lines| {
            let (title, rest) = lines[0].strip_prefix("  - [")?.split_once("](")?;
            rest.starts_with("providers/").then(|| title.to_owned())
        })
    })?;
    plan.edit("CHANGELOG.md", |text| {
        let line = format!("- [cloud-providers-{name}](crates/cloud-providers-{name}/CHANGELOG.md)");
        let key = format!("cloud-providers-{name}");
        let text = insert_sorted(text, "the list of packages", &key, &line, |lines| {
            between(lines[0], "- [", "](").map(str::to_owned)
        })?;
        add_changelog_line(
            &text,
            &format!("- **added:** the provider `{name}`, a feature that is off by default"),
        )
    })
}

fn bundle(plan: &mut Plan, names: &Names) -> Result<()> {
    const FOLDER: &str = "crates/cloud-providers-bundle";
    let (name, ident) = (names.name.as_str(), names.ident.as_str());
    plan.edit(&format!("{FOLDER}/Cargo.toml"), |text| {
        let mut manifest: DocumentMut = text.parse()?;
        let krate = format!("cloud-providers-{name}");
        let mut dependency = InlineTable::new();
        dependency.insert("workspace", true.into());
        dependency.insert("optional", true.into());
        insert(table(&mut manifest, &["dependencies"])?, &krate, dependency.into())?;
        insert(table(&mut manifest, &["features"])?, name, list(&format!("dep:{krate}")))?;
        Ok(manifest.to_string())
    })?;
    plan.edit(&format!("{FOLDER}/src/lib.rs"), |text| {
        let pair = |prefix: &'static str| {
            move |lines: &[&str]| {
                let feature = between(lines[0].trim_start(), "#[cfg(feature = \"", "\")]")?;
                lines.get(1)?.trim_start().starts_with(prefix).then(|| feature.to_owned())
            }
        };
        let line = format!("#[cfg(feature = \"{name}\")]\nuse cloud_providers_{ident} as _;");
        let text = insert_sorted(text, "the `use` lines", name, &line, pair("use cloud_providers_"))?;
        let line = format!("    #[cfg(feature = \"{name}\")]\n    \"{name}\",");
        insert_sorted(&text, "the list COMPILED_IN", name, &line, pair("\""))
    })?;
    plan.edit(&format!("{FOLDER}/tests/registered.rs"), |text| {
        let line = format!("    assert_eq!(names.contains(&\"{name}\"), cfg!(feature = \"{name}\"));");
        insert_sorted(text, "the checks of single names", name, &line, |lines| {
            between(lines[0].trim_start(), "assert_eq!(names.contains(&\"", "\")").map(str::to_owned)
        })
    })?;
    plan.edit(&format!("{FOLDER}/README.md"), |text| {
        feature_row(text, name, &format!("| `{name}` | virtual machines of {name} |"))
    })?;
    plan.edit(&format!("{FOLDER}/CHANGELOG.md"), |text| {
        add_changelog_line(text, &format!("- **added:** the feature `{name}`"))
    })
}

fn program(plan: &mut Plan, program: &str, name: &str) -> Result<()> {
    plan.edit(&format!("crates/{program}/Cargo.toml"), |text| {
        let mut manifest: DocumentMut = text.parse()?;
        let feature = list(&format!("cloud-providers-bundle/{name}"));
        insert(table(&mut manifest, &["features"])?, name, feature)?;
        Ok(manifest.to_string())
    })?;
    plan.edit(&format!("crates/{program}/README.md"), |text| {
        feature_row(text, name, &format!("| `{name}` | instances are virtual machines of {name} |"))
    })?;
    plan.edit(&format!("crates/{program}/CHANGELOG.md"), |text| {
        add_changelog_line(text, &format!("- **added:** the feature `{name}`"))
    })
}

fn feature_row(text: &str, name: &str, row: &str) -> Result<String> {
    insert_sorted(text, "the table of features", name, row, |lines| {
        between(lines[0], "| `", "`").map(str::to_owned)
    })
}

/// Adds the dependency that the bundle takes its version from, and the crate to what is built by default.
fn workspace(text: &str, name: &str) -> Result<String> {
    let krate = format!("cloud-providers-{name}");
    let mut manifest: DocumentMut = text.parse()?;
    let mut dependency = InlineTable::new();
    // The bundle says exactly which version it has.
    dependency.insert("version", format!("={VERSION}").into());
    dependency.insert("path", format!("crates/{krate}").into());
    insert(table(&mut manifest, &["workspace", "dependencies"])?, &krate, dependency.into())?;
    let members = table(&mut manifest, &["workspace"])?.get_mut("default-members");
    let members = members.and_then(Item::as_array_mut).context("no list workspace.default-members")?;
    let path = format!("crates/{krate}");
    let text_of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let at = members.iter().position(|member| text_of(member) > path).unwrap_or(members.len());
    let neighbour =
        members.get(at.min(members.len().saturating_sub(1))).context("workspace.default-members is empty")?;
    let mut member = Value::from(path);
    *member.decor_mut() = neighbour.decor().clone();
    members.insert_formatted(at, member);
    Ok(manifest.to_string())
}

fn list(entry: &str) -> Value {
    Value::Array(Array::from_iter([entry]))
}

fn table<'a>(manifest: &'a mut DocumentMut, path: &[&str]) -> Result<&'a mut Table> {
    let mut table = manifest.as_table_mut();
    for key in path {
        table = table
            .get_mut(key)
            .and_then(Item::as_table_mut)
            .with_context(|| format!("no table [{}]", path.join(".")))?;
    }
    Ok(table)
}

/// Puts a key beside those that sort around it, and leaves the order of all others: they may be in groups.
fn insert(table: &mut Table, key: &str, value: Value) -> Result<()> {
    ensure!(!table.contains_key(key), "{key} is there already");
    let keys: Vec<String> = table.iter().map(|(key, _)| key.to_owned()).collect();
    // Beside its kind where there is one, such as the provider crates among all dependencies.
    let kind = if key.starts_with("cloud-providers-") { "cloud-providers" } else { "" };
    let of_kind = |known: &&String| known.starts_with(kind) && known.as_str() != "default";
    let before = keys.iter().filter(of_kind).rfind(|known| known.as_str() < key);
    let at = match before.and_then(|before| keys.iter().position(|known| known == before)) {
        Some(at) => at + 1,
        None => keys.iter().position(|known| of_kind(&known) && known.as_str() > key).unwrap_or(keys.len()),
    };
    let mut later = Vec::new();
    for known in &keys[at..] {
        later.push(table.remove_entry(known).context("a key that was just listed")?);
    }
    table.insert(key, Item::Value(value));
    for (known, item) in later {
        table.insert_formatted(&known, item);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    fn added(before: &str, after: &str) -> Vec<String> {
        let known: Vec<&str> = before.lines().collect();
        after.lines().filter(|line| !known.contains(line)).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn the_workspace_gets_one_dependency_and_one_member() {
        let before = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        for name in ["aaa", "my-cloud", "zzz"] {
            let after = workspace(&before, name).unwrap();
            let dependency = format!(
                "cloud-providers-{name} = {{ version = \"=0.1.0\", path = \"crates/cloud-providers-{name}\" }}"
            );
            assert_eq!(
                added(&before, &after),
                [format!("\"crates/cloud-providers-{name}\","), dependency.clone()]
            );
            assert_eq!(after.lines().count(), before.lines().count() + 2);
            let at = after.find(&dependency).unwrap();
            assert!(after[..at].lines().next_back().unwrap().starts_with("cloud-providers"), "{after}");
        }
        assert!(workspace(&before, "local").is_err(), "a dependency of that name is there");
        assert!(workspace("[package]\nname = \"x\"\n", "x").is_err());
    }

    #[test]
    fn every_edit_finds_its_place_in_this_workspace() {
        let mut plan = Plan::new(&root());
        add(&mut plan, &Names::parse("my-cloud").unwrap()).unwrap();
        let text = plan.describe();
        for line in [
            "+ use cloud_providers_my_cloud as _;",
            "+ \"my-cloud\",",
            "+ my-cloud = [\"dep:cloud-providers-my-cloud\"]",
            "+ my-cloud = [\"cloud-providers-bundle/my-cloud\"]",
            "+ cloud-providers-my-cloud = { workspace = true, optional = true }",
            "+ - [my-cloud](providers/my-cloud.md)",
            "+ - **added:** the feature `my-cloud`",
        ] {
            assert!(
                text.lines().any(|found| found.trim().replace("+     ", "+ ").replace("+   ", "+ ") == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("         - "), "a line went:\n{text}");
        let taken = add(&mut Plan::new(&root()), &Names::parse("local").unwrap()).unwrap_err();
        assert!(format!("{taken:#}").contains("is there already"), "{taken:#}");
    }
}

//! The new files: templates with the name filled in.

use anyhow::{Result, ensure};

use super::names::Names;
use super::plan::Plan;

/// Path in the workspace and text of every file, both with stand-ins for the name.
const FILES: &[(&str, &str)] = &[
    ("crates/cloud-providers-__name__/Cargo.toml", include_str!("template/Cargo.toml")),
    ("crates/cloud-providers-__name__/README.md", include_str!("template/README.md.in")),
    ("crates/cloud-providers-__name__/CHANGELOG.md", include_str!("template/CHANGELOG.md.in")),
    ("crates/cloud-providers-__name__/src/lib.rs", include_str!("template/src/lib.rs")),
    ("crates/cloud-providers-__name__/src/config.rs", include_str!("template/src/config.rs")),
    ("crates/cloud-providers-__name__/src/cloud.rs", include_str!("template/src/cloud.rs")),
    ("crates/cloud-providers-__name__/src/error.rs", include_str!("template/src/error.rs")),
    ("crates/cloud-providers-__name__/src/client.rs", include_str!("template/src/client.rs")),
    ("crates/cloud-providers-__name__/src/client/api.rs", include_str!("template/src/client/api.rs")),
    (
        "crates/cloud-providers-__name__/src/client/scripted.rs",
        include_str!("template/src/client/scripted.rs"),
    ),
    ("crates/cloud-providers-__name__/src/provider.rs", include_str!("template/src/provider.rs")),
    ("crates/cloud-providers-__name__/src/provider/owned.rs", include_str!("template/src/provider/owned.rs")),
    ("crates/cloud-providers-__name__/src/provider/tests.rs", include_str!("template/src/provider/tests.rs")),
    (
        "crates/cloud-providers-__name__/tests/conformance/main.rs",
        include_str!("template/tests/conformance/main.rs"),
    ),
    (
        "crates/cloud-providers-__name__/tests/conformance/account.rs",
        include_str!("template/tests/conformance/account.rs"),
    ),
    (
        "crates/cloud-providers-__name__/tests/conformance-skips.toml",
        include_str!("template/tests/conformance-skips.toml"),
    ),
    ("crates/cloud-providers-__name__/tests/docs.rs", include_str!("template/tests/docs.rs")),
    ("docs/providers/__name__.md", include_str!("template/page.md.in")),
    ("tests/setups/__name__/README.md", include_str!("template/setup/README.md.in")),
    ("tests/setups/__name__/setup.toml", include_str!("template/setup/setup.toml")),
];

/// The rows of the options table, as `cloud_providers::options_table` writes them for the options of `config.rs`. The
/// generated crate's own test compares them.
const OPTIONS: &str = "\
| flag | variable | value | default | |
| --- | --- | --- | --- | --- |
| `-__name__-endpoint` | `__ENV___ENDPOINT` | text | required | Address of the cloud's interface |
| `-__name__-key` | `__ENV___KEY` | text | required | Key of the account (secret) |
| `-__name__-tags` | `__ENV___TAGS` | key=value pairs separated by commas |  | More tags for every machine |
| `-__name__-call-timeout` | `__ENV___CALL_TIMEOUT` | a duration such as 300ms, 90s, 5m0s or 1.5h | `30s` | Longest time of one call to the cloud |
| `-__name__-start-timeout` | `__ENV___START_TIMEOUT` | a duration such as 300ms, 90s, 5m0s or 1.5h | `5m0s` | Longest time in which a machine comes up or goes |
";

/// Adds every new file to the plan.
///
/// # Errors
///
/// When one of them is there already.
pub(super) fn add(plan: &mut Plan, names: &Names) -> Result<()> {
    let krate = format!("crates/cloud-providers-{}", names.name);
    ensure!(
        !plan.root().join(&krate).exists(),
        "there is {krate} already: take another name, or remove it first"
    );
    for (path, template) in FILES {
        let text = template.replace("__options__", OPTIONS);
        plan.create(&names.fill(path), names.fill(&text))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn below(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, found)
            } else {
                assert!(found.insert(std::fs::read_to_string(path).unwrap()))
            }
        }
    }

    #[test]
    fn every_template_is_written_somewhere_and_no_stand_in_is_left() {
        let mut templates = BTreeSet::new();
        below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/new_provider/template"), &mut templates);
        let used: BTreeSet<String> = FILES.iter().map(|(_, text)| (*text).to_owned()).collect();
        assert_eq!(templates.len(), used.len());
        let names = Names::parse("my-cloud").unwrap();
        for (path, text) in FILES {
            let text = names.fill(&text.replace("__options__", OPTIONS));
            for stand_in in ["__name__", "__ident__", "__Type__", "__ENV__", "__options__"] {
                assert!(
                    !text.contains(stand_in) && !names.fill(path).contains(stand_in),
                    "{path}: {stand_in}"
                );
            }
        }
    }
}

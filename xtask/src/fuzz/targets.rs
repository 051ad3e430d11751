//! Which targets there are: unit tests in files `fuzz.rs` that name one.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::context::Context;

/// One target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// The package that it belongs to.
    pub(crate) package: String,
    /// The path of its test.
    pub(crate) test: String,
}

/// Finds the targets of the workspace, sorted by name.
///
/// # Errors
///
/// When a file cannot be read, has no target, or one whose test has another name.
pub(crate) fn find(context: &Context) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for file in context.files()? {
        if let Some((package, module)) = place(&file) {
            let text = std::fs::read_to_string(context.root.join(&file))?;
            let found = in_file(&text, &package, &module).with_context(|| file.display().to_string())?;
            ensure!(!found.is_empty(), "{} names no target", file.display());
            targets.extend(found);
        }
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = targets.windows(2).find(|pair| pair[0].name == pair[1].name) {
        anyhow::bail!("two targets have the name {}", pair[0].name);
    }
    Ok(targets)
}

/// The package and the module of `crates/<package>/src/<module>/fuzz.rs`.
fn place(file: &Path) -> Option<(String, String)> {
    let parts: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    let ["crates", package, "src", modules @ .., "fuzz.rs"] = parts.as_slice() else { return None };
    Some(((*package).to_owned(), modules.iter().map(|module| format!("{module}::")).collect()))
}

fn in_file(text: &str, package: &str, module: &str) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for (at, _) in text.match_indices("Target::new(\"") {
        let rest = &text[at + "Target::new(\"".len()..];
        let name = rest.split('"').next().unwrap_or_default();
        // The test is found by the name of the target.
        let function = name.replace('-', "_");
        ensure!(
            text.contains(&format!("#[test]\nfn {function}() {{")),
            "the test of {name} must be called {function}"
        );
        let test = format!("{module}fuzz::{function}");
        targets.push(Target { name: name.to_owned(), package: package.to_owned(), test });
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_of_hostile_input_has_a_target() {
        let targets = find(&Context::from_process().unwrap()).unwrap();
        let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        for reader in [
            "annotations",
            "cloud-config",
            "create-container",
            "frames",
            "init-data",
            "journal-records",
            "options",
            "pod-network",
            "user-data",
        ] {
            assert!(names.contains(&reader), "{reader}: {names:?}");
        }
    }

    #[test]
    fn a_target_is_found_by_its_file_and_name() {
        let (package, module) = place(Path::new("crates/podvm/src/userdata/fuzz.rs")).unwrap();
        let text = "#[test]\nfn user_data() {\n    Target::new(\"user-data\")";
        let found = in_file(text, &package, &module).unwrap();
        let test = "userdata::fuzz::user_data".to_owned();
        assert_eq!(found, [Target { name: "user-data".into(), package: "podvm".into(), test }]);
        assert!(in_file(&text.replace("fn user", "fn other"), &package, &module).is_err());
        assert!(place(Path::new("crates/podvm/src/fuzzy.rs")).is_none());
    }
}

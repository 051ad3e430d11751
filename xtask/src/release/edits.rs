//! Changes of files that are shown before they are made, and taken back when they do not work out.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::packages::Packages;
use super::{packages::Package, table};
use crate::command::Run;
use crate::context::Context;

/// New texts of files, by their path from the root.
#[derive(Debug)]
pub(super) struct Edits<'a> {
    context: &'a Context,
    files: BTreeMap<PathBuf, (Option<String>, String)>,
}

impl<'a> Edits<'a> {
    /// Starts with nothing.
    pub(super) fn new(context: &'a Context) -> Self {
        Self { context, files: BTreeMap::new() }
    }

    /// The text that a file will have.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub(super) fn text(&self, path: &Path) -> Result<String> {
        if let Some((_, text)) = self.files.get(path) {
            return Ok(text.clone());
        }
        let path = self.context.root.join(path);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Gives a file a new text.
    pub(super) fn set(&mut self, path: &Path, text: String) {
        let old = || std::fs::read_to_string(self.context.root.join(path)).ok();
        self.files.entry(path.to_owned()).or_insert_with(|| (old(), String::new())).1 = text;
    }

    /// Changes the text of a file by a function.
    ///
    /// # Errors
    ///
    /// Names the file when it cannot be read or the function fails.
    pub(super) fn change(&mut self, path: &Path, change: impl FnOnce(&str) -> Result<String>) -> Result<()> {
        let text = change(&self.text(path)?).with_context(|| format!("cannot change {}", path.display()))?;
        self.set(path, text);
        Ok(())
    }

    /// Whether nothing would change.
    pub(super) fn is_empty(&self) -> bool {
        self.files.values().all(|(old, new)| old.as_ref() == Some(new))
    }

    /// Prints what would change as a patch.
    ///
    /// # Errors
    ///
    /// When a temporary folder cannot be written.
    pub(super) fn show(&self, out: &mut dyn Write) -> Result<()> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        for side in ["a", "b"] {
            std::fs::create_dir(folder.path().join(side))?;
        }
        for (path, (old, new)) in &self.files {
            for (side, text) in [("a", old.as_ref()), ("b", Some(new))] {
                let file = folder.path().join(side).join(path);
                if let Some(text) = text {
                    std::fs::create_dir_all(file.parent().unwrap_or(folder.path()))?;
                    std::fs::write(&file, text)?;
                }
            }
        }
        // It ends with 1 when the folders differ, as diff does, so its output comes by a file.
        let patch = folder.path().join("patch");
        let args = ["diff", "--no-index", "--no-color", "--no-ext-diff", "-U1", "--no-prefix", "--output"];
        let _ = Run::new("git").args(args).arg(&patch).args(["a", "b"]).current_dir(folder.path()).stdout();
        writeln!(out, "{}", std::fs::read_to_string(&patch).context("git diff wrote no patch")?.trim_end())?;
        Ok(())
    }

    /// Writes the files, runs `then`, and puts all back as it was when that fails.
    ///
    /// # Errors
    ///
    /// When a file cannot be written, or `then` fails.
    pub(super) fn write(&self, then: impl FnOnce() -> Result<()>) -> Result<()> {
        let lock = self.context.root.join("Cargo.lock");
        let before = std::fs::read(&lock).ok();
        let written = self.files.iter().try_for_each(|(path, (_, text))| {
            let path = self.context.root.join(path);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        });
        written.and_then(|()| then()).inspect_err(|_| {
            for (path, (old, _)) in &self.files {
                let path = self.context.root.join(path);
                let _ = match old {
                    Some(text) => std::fs::write(path, text),
                    None => std::fs::remove_file(path),
                };
            }
            if let Some(before) = before {
                let _ = std::fs::write(&lock, before);
            }
        })
    }
}

/// Runs `release table`: writes the page of versions anew.
///
/// # Errors
///
/// When the packages cannot be read or the page cannot be written.
pub(super) fn table(context: &Context, execute: bool, out: &mut dyn Write) -> Result<()> {
    let packages = Packages::load(context)?;
    let mut edits = Edits::new(context);
    let log = |package: &Package| super::read_changelog(context, package);
    edits.set(Path::new(table::PAGE), table::page(&packages, log)?);
    if edits.is_empty() {
        writeln!(out, "{} is up to date", table::PAGE)?;
    } else if execute {
        edits.write(|| Ok(()))?;
        writeln!(out, "{} is written", table::PAGE)?;
    } else {
        edits.show(out)?;
        super::not_executed(out)?;
    }
    Ok(())
}

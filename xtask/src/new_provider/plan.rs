//! What is going to be written: everything, or nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::command::Run;
use crate::context::Context;

/// Files that are written anew from the packages of the workspace.
const GENERATED: &[&str] = &["Cargo.lock", crate::release::table::PAGE];

/// One file as it was and as it will be.
#[derive(Debug)]
struct Change {
    /// `None` when the file is new.
    before: Option<String>,
    after: String,
}

/// Every file that is made or changed, by its path in the workspace.
#[derive(Debug)]
pub(super) struct Plan {
    root: PathBuf,
    changes: BTreeMap<String, Change>,
}

impl Plan {
    /// Begins without any.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), changes: BTreeMap::new() }
    }

    /// Returns the root of the workspace.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Plans a new file.
    ///
    /// # Errors
    ///
    /// When it is there.
    pub(super) fn create(&mut self, path: &str, text: String) -> Result<()> {
        ensure!(
            !self.root.join(path).exists(),
            "there is {path} already: take another name, or remove it first"
        );
        self.changes.insert(path.to_owned(), Change { before: None, after: text });
        Ok(())
    }

    /// Plans the change of a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read or `edit` does not find its place; the error names the file.
    pub(super) fn edit(&mut self, path: &str, edit: impl FnOnce(&str) -> Result<String>) -> Result<()> {
        let before =
            fs::read_to_string(self.root.join(path)).with_context(|| format!("cannot read {path}"))?;
        // Several edits of one file follow each other.
        let now = self.changes.get(path).map_or(&before, |change| &change.after);
        let after = edit(now).with_context(|| format!("{path} does not look as expected"))?;
        self.changes.insert(path.to_owned(), Change { before: Some(before), after });
        Ok(())
    }

    /// Lays the Rust files out as `cargo fmt` would: the length of a name moves line breaks.
    ///
    /// # Errors
    ///
    /// When rustfmt is missing or refuses a file.
    pub(super) fn format(&mut self, context: &Context) -> Result<()> {
        for (path, change) in self.changes.iter_mut().filter(|(path, _)| path.ends_with(".rs")) {
            change.after =
                rustfmt(&context.root, &change.after).with_context(|| format!("cannot format {path}"))?;
        }
        Ok(())
    }

    /// Says what is made and changed, with every line that is added or taken out of a file.
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        for (path, change) in &self.changes {
            let Some(before) = &change.before else {
                let _ = writeln!(text, "new      {path}, {} lines", change.after.lines().count());
                continue;
            };
            let _ = writeln!(text, "changed  {path}");
            for (sign, line) in difference(before, &change.after) {
                let _ = writeln!(text, "         {sign} {}", line.trim_end());
            }
        }
        text
    }

    /// Writes everything, brings `Cargo.lock` up to date, and lets the tasks for releases complete the package in
    /// `folder`: its licence and its row on the page of versions.
    ///
    /// # Errors
    ///
    /// When anything cannot be written, or cargo does not accept the workspace; everything is then as it was.
    pub(super) fn write(&self, context: &Context, folder: &str) -> Result<()> {
        let read = |path: &&'static str| {
            let text =
                fs::read_to_string(self.root.join(path)).with_context(|| format!("cannot read {path}"))?;
            Ok((*path, text))
        };
        let generated: Vec<(&str, String)> = GENERATED.iter().map(read).collect::<Result<_>>()?;
        let complete = || crate::release::add_package(context, folder);
        let done = self.write_files().and_then(|()| update_lock(context)).and_then(|()| complete());
        let Err(error) = done else { return Ok(()) };
        let licence = self.root.join(folder).join("LICENSE");
        // It is there only when the last step had begun.
        let _ = fs::remove_file(licence);
        let restore = || generated.iter().try_for_each(|(path, text)| fs::write(self.root.join(path), text));
        match self.take_back().and_then(|()| Ok(restore()?)) {
            Ok(()) => Err(error.context("nothing was changed")),
            Err(also) => {
                Err(error.context(format!("and it could not be undone: {also:#}; see `git status`")))
            }
        }
    }

    fn write_files(&self) -> Result<()> {
        for (path, change) in &self.changes {
            let file = self.root.join(path);
            let folder = file.parent().context("every file lies in a folder")?;
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&file, &change.after))
                .with_context(|| format!("cannot write {path}"))?;
        }
        Ok(())
    }

    fn take_back(&self) -> Result<()> {
        for (path, change) in &self.changes {
            let file = self.root.join(path);
            match &change.before {
                Some(before) => fs::write(&file, before).with_context(|| format!("cannot restore {path}"))?,
                None if file.exists() => {
                    fs::remove_file(&file).with_context(|| format!("cannot remove {path}"))?;
                }
                None => {}
            }
        }
        for path in self.changes.iter().filter(|(_, change)| change.before.is_none()).map(|(path, _)| path) {
            for folder in Path::new(path).ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty())
            {
                // Those that were there before have other files and stay.
                if fs::remove_dir(self.root.join(folder)).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Adds the new package to `Cargo.lock`, if it can without asking the registry.
fn update_lock(context: &Context) -> Result<()> {
    let metadata = |more: &[&str]| {
        let run = Run::new(&context.cargo).current_dir(&context.root);
        run.args(["metadata", "--format-version", "1"]).args(more).stdout().map(drop)
    };
    metadata(&["--offline"]).or_else(|_| metadata(&[])).context("cargo does not accept the workspace")
}

fn rustfmt(root: &Path, text: &str) -> Result<String> {
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--emit", "stdout", "--config-path"])
        .arg(root)
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start rustfmt: install it with `rustup component add rustfmt`")?;
    let mut stdin = child.stdin.take().context("standard input is a pipe")?;
    let text = text.to_owned();
    // Its output may fill the pipe before it has read all.
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let out = child.wait_with_output()?;
    let written = writer.join().is_ok_and(|result| result.is_ok());
    ensure!(
        out.status.success() && written,
        "rustfmt refused it: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8(out.stdout)?)
}

/// Returns the lines that differ between two texts that have long common beginnings and ends, in order.
fn difference<'a>(before: &'a str, after: &'a str) -> Vec<(char, &'a str)> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let mut found = Vec::new();
    let mut rest = old.as_slice();
    for line in new {
        match rest.iter().position(|known| *known == line) {
            // Only lines that are nowhere further on are new ones; blank lines and brackets stand everywhere.
            Some(0) => rest = &rest[1..],
            Some(skipped)
                if !line.trim().is_empty()
                    && rest[..skipped].iter().all(|l| !after.lines().any(|n| n == *l)) =>
            {
                found.extend(rest[..skipped].iter().map(|line| ('-', *line)));
                rest = &rest[skipped + 1..];
            }
            _ => found.push(('+', line)),
        }
    }
    found.extend(rest.iter().map(|line| ('-', *line)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_lines_that_came_and_went() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\nb\nc\n"), [('+', "x")]);
        assert_eq!(difference("a\n\nb\n", "a\nnew\n\nb\n"), [('+', "new")]);
        assert_eq!(difference("a\nold\nb\n", "a\nnew\nb\n"), [('+', "new"), ('-', "old")]);
        assert_eq!(difference("a\n", "a\n"), []);
    }

    #[test]
    fn what_is_taken_back_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kept.md"), "one\n").unwrap();
        let mut plan = Plan::new(dir.path());
        plan.create("new/deep/file.md", "text\n".to_owned()).unwrap();
        plan.edit("kept.md", |text| Ok(format!("{text}two\n"))).unwrap();
        plan.edit("kept.md", |text| Ok(format!("{text}three\n"))).unwrap();
        plan.write_files().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("kept.md")).unwrap(), "one\ntwo\nthree\n");
        plan.take_back().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("kept.md")).unwrap(), "one\n");
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn a_file_that_is_there_or_an_edit_without_its_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("there.md"), "").unwrap();
        let mut plan = Plan::new(dir.path());
        let error = plan.create("there.md", String::new()).unwrap_err().to_string();
        assert!(error.contains("there is there.md already"), "{error}");
        let error = plan.edit("there.md", |_| anyhow::bail!("no table")).unwrap_err();
        assert!(format!("{error:#}").contains("there.md does not look as expected: no table"), "{error:#}");
        assert!(plan.edit("missing.md", |text| Ok(text.to_owned())).is_err());
    }
}

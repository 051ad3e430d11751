//! `cargo xtask tidy`: what no compiler checks. Every problem says how to mend it.

mod blocks;
mod docs;
mod faults;
mod graph;
mod layout;
mod providers;
mod requirements;
mod rules;
mod text;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use cargo_metadata::Metadata;

pub(crate) use self::docs::normalize;
use crate::context::Context;

/// Something to mend.
#[derive(Debug, Eq, PartialEq)]
struct Problem {
    place: String,
    what: String,
    mend: String,
}

impl Problem {
    fn new(place: impl fmt::Display, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { place: place.to_string(), what: what.into(), mend: mend.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    mend: {}", self.place, self.what, self.mend)
    }
}

/// The files of the workspace with their text, read once.
struct Tree {
    root: PathBuf,
    files: Vec<(PathBuf, Option<String>)>,
}

impl Tree {
    fn read(context: &Context) -> Result<Self> {
        let read = |path: PathBuf| {
            let text =
                std::fs::read(context.root.join(&path)).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            (path, text)
        };
        Ok(Self { root: context.root.clone(), files: context.files()?.into_iter().map(read).collect() })
    }

    /// The text of one file, given by its path from the root.
    fn text(&self, path: impl AsRef<Path>) -> Option<&str> {
        let path = path.as_ref();
        self.files.iter().find(|(file, _)| file == path)?.1.as_deref()
    }

    /// The files with this extension and their text.
    fn with_extension<'a>(&'a self, extension: &'a str) -> impl Iterator<Item = (&'a Path, &'a str)> {
        let wanted = move |path: &Path| path.extension().is_some_and(|found| found == extension);
        self.files
            .iter()
            .filter(move |(path, _)| wanted(path))
            .filter_map(|(path, text)| Some((path.as_path(), text.as_deref()?)))
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), Some((*text).to_owned())));
        Self { root: PathBuf::new(), files: files.collect() }
    }
}

/// Runs every check and prints what is to be mended.
///
/// # Errors
///
/// When the workspace cannot be read.
pub(crate) fn run(context: &Context) -> Result<ExitCode> {
    let (problems, warnings) = check(context, &context.metadata()?)?;
    for warning in &warnings {
        println!("warning: {warning}");
    }
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!("tidy: nothing to mend");
        return Ok(ExitCode::SUCCESS);
    }
    println!("tidy: {} to mend", problems.len());
    Ok(ExitCode::FAILURE)
}

/// Runs as a stage of the test.
///
/// # Errors
///
/// When there is something to mend.
pub(crate) fn stage(context: &Context) -> Result<String> {
    if run(context)? == ExitCode::SUCCESS {
        return Ok(String::new());
    }
    bail!("see above what is to be mended")
}

fn check(context: &Context, metadata: &Metadata) -> Result<(Vec<Problem>, Vec<Problem>)> {
    let tree = Tree::read(context)?;
    let (mut problems, warnings) = text::sizes(&tree);
    problems.extend(text::words(&tree));
    problems.extend(text::code(&tree));
    problems.extend(text::documented(&tree));
    problems.extend(layout::top_level(&tree));
    problems.extend(layout::packages(&tree, metadata));
    problems.extend(docs::summary(&tree));
    problems.extend(docs::links(&tree));
    problems.extend(docs::rules(&tree));
    problems.extend(blocks::blocks(&tree));
    problems.extend(requirements::fit(&tree, metadata));
    problems.extend(rules::cases(&tree));
    problems.extend(faults::table(&tree, metadata));
    problems.extend(faults::named(&tree, metadata));
    problems.extend(docs::kept_tables(&tree));
    problems.extend(docs::programs(&tree, metadata));
    problems.extend(providers::files(&tree, metadata));
    problems.extend(providers::suite(metadata));
    problems.extend(graph::public_sdks(&tree));
    problems.extend(graph::directions(context, metadata)?);
    problems.extend(graph::crypto_providers(context, metadata)?);
    let stale = crate::release::stale(context)?;
    problems.extend(stale.into_iter().map(|found| Problem::new(found.place, found.what, found.mend)));
    problems.sort_by(|left, right| left.place.cmp(&right.place));
    Ok((problems, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let context = Context::from_process().unwrap();
        let (problems, _) = check(&context, &context.metadata().unwrap()).unwrap();
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(list.is_empty(), "{}", list.join("\n"));
    }
}

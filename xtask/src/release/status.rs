//! `release status`: where every package stands.

use std::io::Write;

use anyhow::Result;

use super::history::{Tags, tag_name};
use super::packages::Packages;
use super::{plan, table_of};
use crate::context::Context;

/// Prints package, version, last tag, commits and lines of the changelog since, and dependents.
///
/// # Errors
///
/// When the state of the packages cannot be read.
pub(super) fn run(context: &Context, out: &mut dyn Write) -> Result<()> {
    let packages = Packages::load(context)?;
    let tags = Tags::load(context)?;
    let head = ["package", "version", "last tag", "commits", "lines", "dependents"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut changed = 0;
    for known in plan::known(context, &packages, &tags)? {
        let package = known.package;
        let mut commits = known.changes.commits.to_string();
        if known.last.is_none() {
            let count = context.git().args(["rev-list", "--count", "HEAD", "--"]).arg(&package.folder);
            count.stdout()?.trim().clone_into(&mut commits);
        }
        changed += usize::from(known.changed());
        let dependents: Vec<&str> =
            packages.dependents(&package.name).map(|dependent| dependent.name.as_str()).collect();
        rows.push(vec![
            package.name.clone(),
            package.version.to_string(),
            known.last.as_ref().map_or_else(|| "-".to_owned(), |last| tag_name(&package.name, last)),
            commits,
            known.changelog.since(known.last.as_ref()).len().to_string(),
            if dependents.is_empty() { "-".to_owned() } else { dependents.join(", ") },
        ]);
    }
    writeln!(out, "{}", table_of(&rows))?;
    let count = rows.len() - 1;
    writeln!(
        out,
        "{changed} of {count} packages changed since their last release; `cargo xtask release plan` says what is due"
    )?;
    let own: Vec<&str> =
        packages.all().filter(|package| !package.published).map(|package| package.name.as_str()).collect();
    if !own.is_empty() {
        writeln!(out, "never published: {}", own.join(", "))?;
    }
    Ok(())
}

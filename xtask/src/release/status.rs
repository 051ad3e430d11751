//! `release status`: where every package stands.

use std::io::Write;

use anyhow::Result;

use super::history::{Tags, tag_name};
use super::packages::Packages;
use super::{plan, table_of};
use crate::context::Context;

/// Prints package, version, last tag, commits and lines of the changelog since, and dependents.
///
/// Of the packages that are named, the commits and the lines themselves too.
///
/// # Errors
///
/// When the state of the packages cannot be read.
pub(super) fn run(context: &Context, names: &[String], out: &mut dyn Write) -> Result<()> {
    let packages = Packages::load(context)?;
    for name in names {
        packages.get(name)?;
    }
    let tags = Tags::load(context)?;
    let head = ["package", "version", "last tag", "commits", "lines", "dependents"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut changed = 0;
    let known = plan::known(context, &packages, &tags)?;
    for known in &known {
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
    for known in known.iter().filter(|known| names.contains(&known.package.name)) {
        let package = known.package;
        let since = known.last.as_ref().map(|last| tag_name(&package.name, last));
        let range = since.as_ref().map_or_else(|| "HEAD".to_owned(), |tag| format!("{tag}..HEAD"));
        let log =
            context.git().args(["log", "--oneline", "--no-decorate", &range, "--"]).arg(&package.folder);
        let since = since.map_or_else(|| "never released".to_owned(), |tag| format!("since {tag}"));
        writeln!(out, "\n{} {}, {since}\n\n{}", package.name, package.version, log.stdout()?)?;
        for entry in known.changelog.since(known.last.as_ref()) {
            writeln!(out, "{}", entry.text)?;
        }
    }
    let own: Vec<&str> =
        packages.all().filter(|package| !package.published).map(|package| package.name.as_str()).collect();
    if !own.is_empty() {
        writeln!(out, "never published: {}", own.join(", "))?;
    }
    Ok(())
}

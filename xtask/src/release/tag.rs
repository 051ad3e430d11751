//! `release tag`: annotated tags with the text of the changelogs.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::{Context as _, Result, bail, ensure};

use super::history::{Tags, tag_name};
use super::packages::Packages;
use super::plan::{self, Known};
use super::{check, not_executed, require_clean};
use crate::context::Context;

/// Tags what is prepared and committed, or shows the tags.
///
/// # Errors
///
/// Names what stands against it; no tag is made then.
pub(super) fn run(
    context: &Context,
    names: &[String],
    sign: bool,
    execute: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let packages = Packages::load(context)?;
    for name in names {
        packages.get(name)?;
    }
    require_clean(context, "tag")?;
    let tags = Tags::load(context)?;
    let known = plan::known(context, &packages, &tags)?;
    let head = context.git().args(["rev-parse", "HEAD"]).stdout()?.trim().to_owned();
    let mut due: Vec<&Known<'_>> = Vec::new();
    for known in &known {
        let package = known.package;
        let asked = names.contains(&package.name);
        if !asked && !names.is_empty() {
            continue;
        }
        if let Some(commit) = tags.commit(&package.name, &package.version) {
            let tag = tag_name(&package.name, &package.version);
            if commit == head && asked {
                writeln!(out, "{tag} is there already")?;
            }
            ensure!(
                commit == head || !asked,
                "the tag {tag} exists already, at {commit}: a version is released once; \
                 prepare the next one with `cargo xtask release prepare {} auto`",
                package.name
            );
        } else if known.prepared() {
            due.push(known);
        } else if asked {
            bail!(
                "{} {} is not prepared, its changelog has no section of it: cargo xtask release prepare {0} {1} --execute",
                package.name,
                package.version
            );
        }
    }
    if due.is_empty() {
        let why =
            if names.is_empty() { ": no package is prepared, see `cargo xtask release plan`" } else { "" };
        writeln!(out, "nothing to tag{why}")?;
        return Ok(());
    }
    let scope: BTreeSet<String> = packages.closure(due.iter().map(|known| known.package.name.clone()));
    let problems = check::problems(context, &packages, &scope, false)?;
    if !problems.is_empty() {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!("what is to be tagged cannot be released like this:\n{}", list.join("\n"));
    }
    for known in &due {
        let tag = tag_name(&known.package.name, &known.package.version);
        let text = message(known);
        writeln!(out, "{tag}\n\n{}\n", indented(&text))?;
        if execute {
            let file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
            std::fs::write(file.path(), &text)?;
            let kind = if sign { "--sign" } else { "--annotate" };
            // Lines of a changelog may begin with what git takes for a comment.
            let args = ["tag", kind, "--cleanup=verbatim", "--file"];
            context.git().args(args).arg(file.path()).args([tag.as_str(), "HEAD"]).stdout()?;
        }
    }
    if !execute {
        return not_executed(out);
    }
    writeln!(out, "made {} tags. Push them when you are sure, they name what others get:\n", due.len())?;
    let list: Vec<String> =
        due.iter().map(|known| tag_name(&known.package.name, &known.package.version)).collect();
    writeln!(out, "git push origin {}\ncargo xtask release publish", list.join(" "))?;
    Ok(())
}

/// The text of a tag: what the changelog says of the version.
fn message(known: &Known<'_>) -> String {
    let package = known.package;
    let entries = known.changelog.version(&package.version).map_or(&[][..], |section| &section.entries);
    let lines: Vec<&str> = entries.iter().map(|entry| entry.text.as_str()).collect();
    format!("{} {}\n\n{}\n", package.name, package.version, lines.join("\n"))
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text
        .trim_end()
        .lines()
        .map(|line| if line.is_empty() { String::new() } else { format!("    {line}") })
        .collect();
    lines.join("\n")
}

//! `release prepare`: versions, requirements, changelogs, lock file and the page of versions.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use semver::Version;

use super::changelog::{Changelog, Follow, today};
use super::edits::Edits;
use super::history::{Tags, tag_name};
use super::packages::{Package, Packages};
use super::plan::{self, Known};
use super::version::{Change, Level, allowed, next};
use super::{manifest, not_executed, read_changelog, table};
use crate::context::Context;

/// What was asked for.
#[derive(Debug)]
pub(super) enum What {
    /// One package, and those that follow it.
    One(String, Level),
    /// Everything that is due.
    All,
}

/// A package of the release.
struct Part {
    to: Version,
    follows: Vec<Follow>,
}

/// Prepares a release, or shows what that would change.
///
/// # Errors
///
/// Names what is wrong with the request, and what to do about it; nothing is changed then.
pub(super) fn run(
    context: &Context,
    what: &What,
    checks: bool,
    execute: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let packages = Packages::load(context)?;
    if let What::One(name, _) = what {
        packages.get(name)?;
    }
    let tags = Tags::load(context)?;
    let known = plan::known(context, &packages, &tags)?;
    let wanted = wanted(context, what, checks, &known, &tags, out)?;
    if wanted.is_empty() {
        writeln!(out, "nothing to release: no package changed since its last release")?;
        return Ok(());
    }
    let parts = parts(&known, &wanted, &tags)?;

    let mut edits = Edits::new(context);
    let date = today();
    for known in &known {
        let package = known.package;
        let Some(part) = parts.get(&package.name) else { continue };
        let from = known.last.as_ref().map_or_else(|| "never released".to_owned(), Version::to_string);
        let follows: Vec<String> =
            part.follows.iter().map(|follow| format!("{} {}", follow.package, follow.version)).collect();
        let because =
            if follows.is_empty() { String::new() } else { format!(", follows {}", follows.join(" and ")) };
        writeln!(out, "{}: {from} -> {}{because}", package.name, part.to)?;
        edits.change(&package.folder.join("CHANGELOG.md"), |text| {
            Ok(Changelog::parse(text).released(known.last.as_ref(), &part.to, &date, &part.follows))
        })?;
        edits.change(&package.folder.join("Cargo.toml"), |text| manifest::with_version(text, &part.to))?;
    }
    let mut manifests = vec![Path::new("Cargo.toml").to_owned()];
    manifests.extend(packages.all().map(|package| package.folder.join("Cargo.toml")));
    manifests.dedup();
    for path in &manifests {
        for (name, part) in &parts {
            edits.change(path, |text| manifest::with_requirement(text, &packages, name, &part.to))?;
        }
    }
    warn_of_pending(&packages, &known, &parts, out)?;
    if !execute {
        // The page of versions is made from manifests as cargo reads them, which the new ones are not yet.
        edits.show(out)?;
        writeln!(out, "\nand then Cargo.lock by `cargo update --workspace`, and {}", table::PAGE)?;
        return not_executed(out);
    }
    edits.write(|| finish(context))?;
    let names: Vec<&str> = parts.keys().map(String::as_str).collect();
    let subject = match (what, &names[..]) {
        (What::One(name, _), _) => format!("[{name}] version {}", parts[name].to),
        (What::All, [name]) => format!("[{name}] version {}", parts[*name].to),
        (What::All, _) => format!("[release] {} packages", names.len()),
    };
    writeln!(out, "\nwritten. Read it with `git diff`, then:\n")?;
    writeln!(out, "cargo xtask release check {}", names.join(" "))?;
    writeln!(out, "git commit --all --message \"{subject}\"")?;
    writeln!(out, "cargo xtask release tag --execute")?;
    Ok(())
}

/// The versions that were asked for, by package.
fn wanted(
    context: &Context,
    what: &What,
    checks: bool,
    known: &[Known<'_>],
    tags: &Tags,
    out: &mut dyn Write,
) -> Result<BTreeMap<String, Version>> {
    let needs_plan = matches!(what, What::All | What::One(_, Level::Auto));
    let found =
        if needs_plan && checks { plan::semver_checks(context, known, out)? } else { BTreeMap::new() };
    let due: BTreeMap<String, Version> = if needs_plan { plan::moves(known, &found) } else { Vec::new() }
        .into_iter()
        .map(|due| (due.package, due.to))
        .collect();
    let (name, level) = match what {
        What::All => return Ok(due),
        What::One(name, level) => (name, level),
    };
    let one = known.iter().find(|known| known.package.name == *name).expect("the package was found");
    let manifest = &one.package.version;
    let to = match (&one.last, level) {
        (None, Level::Exactly(version)) => version.clone(),
        (_, Level::Auto) => due.get(name).cloned().with_context(|| {
            format!("{name} did not change since its last release: give a level or a version to release it all the same")
        })?,
        (None, _) => bail!(
            "{name} was never released, so there is no version to count from: its first release is \
             `cargo xtask release prepare {name} {manifest}`"
        ),
        (Some(last), level) => level.after(last, Change::Fix),
    };
    if let Some(last) = &one.last {
        ensure!(to > *last, "{name} {to} is not above {last}, its last release: versions only go up");
    }
    if let Some(commit) = tags.commit(name, &to) {
        bail!(
            "the tag {} exists already, at {commit}: take a version that was never released",
            tag_name(name, &to)
        );
    }
    ensure!(
        to >= *manifest,
        "{name} {to} is below {manifest}, which its manifest has: versions only go up; \
         if {manifest} was prepared by mistake, take that back with git first"
    );
    Ok(BTreeMap::from([(name.clone(), to)]))
}

/// The packages that were asked for and those that follow them, each with its version.
fn parts(
    known: &[Known<'_>],
    wanted: &BTreeMap<String, Version>,
    tags: &Tags,
) -> Result<BTreeMap<String, Part>> {
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    let mut problems = Vec::new();
    for one in known {
        let package = one.package;
        let (mut follows, mut change) = (Vec::new(), None);
        for need in &package.needs {
            let Some(part) = parts.get(&need.name) else { continue };
            let from = known
                .iter()
                .find(|known| known.package.name == need.name)
                .and_then(|known| known.last.clone());
            if let Some(follow) = one.follows(need, from.as_ref(), &part.to) {
                let breaking = follow == Change::Breaking;
                follows.push(Follow { package: need.name.clone(), version: part.to.clone(), breaking });
                change = change.max(Some(follow));
            }
        }
        let to = match (wanted.get(&package.name), change, &one.last) {
            (Some(to), _, _) => to.clone(),
            (None, Some(change), Some(last)) => {
                let change = one.own().filter(|_| one.changed()).max(Some(change)).unwrap_or(change);
                next(last, change).max(package.version.clone())
            }
            _ => continue,
        };
        problems.extend(problems_of(one, &to, change, &follows, tags));
        parts.insert(package.name.clone(), Part { to, follows });
    }
    if problems.is_empty() {
        return Ok(parts);
    }
    bail!("nothing was changed:\n{}", problems.join("\n"))
}

/// What stands against releasing a package as `to`.
fn problems_of(
    known: &Known<'_>,
    to: &Version,
    change: Option<Change>,
    follows: &[Follow],
    tags: &Tags,
) -> Vec<String> {
    let name = &known.package.name;
    let log = known.package.folder.join("CHANGELOG.md");
    let log = log.display();
    let mistakes = known.changelog.mistakes.iter();
    let mut problems: Vec<String> = mistakes
        .map(|mistake| format!("{log}:{}: {}: {}", mistake.line, mistake.what, mistake.mend))
        .collect();
    if known.changelog.since(known.last.as_ref()).is_empty() && follows.is_empty() {
        problems.push(format!(
            "{log} has no line under `## Unreleased`: write what the release changes for users, such as `- **fixed:** …`"
        ));
    }
    if let Some(commit) = tags.commit(name, to) {
        problems.push(format!("the tag {} exists already, at {commit}", tag_name(name, to)));
    }
    let own = known.changelog.since(known.last.as_ref()).into_iter().map(|entry| entry.change).max();
    if let (Some(last), Some(change)) = (&known.last, own.max(change))
        && change > allowed(last, to)
    {
        let right = next(last, change);
        problems.push(format!(
            "{name} {to} promises less than what changed since {last} ({}): release it as {right}, or correct {log}",
            change.word()
        ));
    }
    problems
}

/// Says which packages are needed as they are now and not as they were released.
fn warn_of_pending(
    packages: &Packages,
    known: &[Known<'_>],
    parts: &BTreeMap<String, Part>,
    out: &mut dyn Write,
) -> Result<()> {
    let closure = packages.closure(parts.keys().cloned());
    for known in known {
        let name = &known.package.name;
        if closure.contains(name) && !parts.contains_key(name) && known.changed() && !known.prepared() {
            writeln!(
                out,
                "warning: {name} is needed and changed since its last release, but is no part of this one: \
                 prepare it too, or work on a branch from the tags"
            )?;
        }
    }
    Ok(())
}

/// Brings the lock file and the page of versions up to date with the new manifests.
fn finish(context: &Context) -> Result<()> {
    let update =
        |more: &[&str]| context.cargo().args(["update", "--workspace", "--quiet"]).args(more).stdout();
    // Versions of others stay as they are, so nothing has to be fetched, unless this machine never built the workspace.
    if update(&["--offline"]).is_err() {
        update(&[]).context("the new manifests do not fit together, everything is as it was")?;
    }
    let packages = Packages::load(context)?;
    let text = table::page(&packages, |package: &Package| read_changelog(context, package))?;
    let page = context.root.join(table::PAGE);
    if let Some(folder) = page.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))
}

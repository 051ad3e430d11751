//! `release plan`: which packages to release, as which versions, in which order.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use semver::Version;

use super::changelog::Changelog;
use super::history::{self, Changes, Tags, tag_name};
use super::packages::{Need, Package, Packages};
use super::version::{Change, allowed, is_pin, next};
use super::{read_changelog, table_of};
use crate::context::Context;

/// A package with all that is known of its history.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// The package.
    pub(super) package: &'a Package,
    /// Its last release.
    pub(super) last: Option<Version>,
    /// What changed since.
    pub(super) changes: Changes,
    /// Its changelog.
    pub(super) changelog: Changelog,
}

impl Known<'_> {
    /// Whether it differs from its last release, or has none.
    pub(super) fn changed(&self) -> bool {
        self.last.is_none() || !self.changes.what.is_empty()
    }

    /// Whether its manifest has a version that was not released.
    pub(super) fn bumped(&self) -> bool {
        self.last.as_ref().is_none_or(|last| self.package.version > *last)
    }

    /// Whether its changelog has the section of the version in its manifest, and that was not released.
    pub(super) fn prepared(&self) -> bool {
        self.bumped() && self.changelog.version(&self.package.version).is_some()
    }

    /// What its own changes mean, by its changelog.
    pub(super) fn own(&self) -> Option<Change> {
        let lines = self.changelog.since(self.last.as_ref());
        let most = lines.into_iter().map(|entry| entry.change).max();
        most.or_else(|| self.changed().then_some(Change::Fix))
    }

    /// What it demanded of a package when it was released.
    fn required(&self, need: &Need) -> Option<semver::VersionReq> {
        self.changes.required.get(&need.name).cloned().or_else(|| need.requirement.clone())
    }

    /// What it means for this package that one it needs becomes `to`; nothing when it can stay as it was released.
    pub(super) fn follows(&self, need: &Need, from: Option<&Version>, to: &Version) -> Option<Change> {
        let required = self.required(need).filter(|_| need.ships())?;
        if self.last.is_none() || required.matches(to) {
            return None;
        }
        // Who pins a package hands on what it does; who does not hands on its types, which are others now.
        if need.pinned() || is_pin(&required) {
            return Some(from.map_or(Change::Feature, |from| allowed(from, to)));
        }
        Some(Change::Breaking)
    }
}

/// Collects what is known of every published package, each after what it needs.
///
/// # Errors
///
/// When packages need each other in a circle, git fails or a changelog is missing.
pub(super) fn known<'a>(context: &Context, packages: &'a Packages, tags: &Tags) -> Result<Vec<Known<'a>>> {
    let mut list = Vec::new();
    for package in packages.order()? {
        let last = tags.last(&package.name);
        let changes = match &last {
            Some(last) => history::changes(context, packages, package, last)?,
            None => Changes::default(),
        };
        let changelog = Changelog::parse(&read_changelog(context, package)?);
        list.push(Known { package, last, changes, changelog });
    }
    Ok(list)
}

/// One release that is due.
#[derive(Debug)]
pub(super) struct Move {
    /// The package.
    pub(super) package: String,
    /// Its last release.
    pub(super) from: Option<Version>,
    /// The version it gets.
    pub(super) to: Version,
    /// Why.
    pub(super) why: Vec<String>,
    /// Whether `prepare` was run for it.
    pub(super) prepared: bool,
}

/// Says which packages are due, each after what it needs. `found` has what cargo-semver-checks found.
pub(super) fn moves(known: &[Known<'_>], found: &BTreeMap<String, Change>) -> Vec<Move> {
    let mut moves: BTreeMap<String, Move> = BTreeMap::new();
    let mut order = Vec::new();
    for known in known {
        let package = known.package;
        let mut why = Vec::new();
        let Some(last) = &known.last else {
            why.push("first release".to_owned());
            order.push(package.name.clone());
            let (to, prepared) = (package.version.clone(), known.prepared());
            moves.insert(
                package.name.clone(),
                Move { package: package.name.clone(), from: None, to, why, prepared },
            );
            continue;
        };
        let mut change = known.own().filter(|_| known.changed());
        if let Some(own) = change {
            let lines = known.changelog.since(Some(last)).len();
            why.push(match lines {
                0 => "changed, and no line in its changelog tells it".to_owned(),
                _ => format!("{} by its changelog", own.word()),
            });
        }
        if let Some(api) = found.get(&package.name).filter(|api| Some(**api) > change) {
            why.push(format!("{} by cargo-semver-checks", api.word()));
            change = Some(*api);
        }
        for need in &package.needs {
            let Some(moved) = moves.get(&need.name) else { continue };
            if let Some(follow) = known.follows(need, moved.from.as_ref(), &moved.to) {
                let how = if need.pinned() { "pins" } else { "uses" };
                why.push(format!("{how} {}, {} there", need.name, follow.word()));
                change = change.max(Some(follow));
            }
        }
        let Some(change) = change else { continue };
        let to = next(last, change).max(package.version.clone());
        let prepared = known.prepared() && to == package.version;
        order.push(package.name.clone());
        let from = Some(last.clone());
        moves.insert(package.name.clone(), Move { package: package.name.clone(), from, to, why, prepared });
    }
    order.into_iter().filter_map(|name| moves.remove(&name)).collect()
}

/// Prints what is due.
///
/// # Errors
///
/// When the state of the packages cannot be read.
pub(super) fn run(context: &Context, checks: bool, out: &mut dyn Write) -> Result<()> {
    let packages = Packages::load(context)?;
    let tags = Tags::load(context)?;
    let known = known(context, &packages, &tags)?;
    let found = if checks { semver_checks(context, &known, out)? } else { BTreeMap::new() };
    let moves = moves(&known, &found);
    if moves.is_empty() {
        writeln!(out, "nothing to release: no package changed since its last release")?;
        return Ok(());
    }
    let mut rows = vec![["package", "released", "next", "why"].map(str::to_owned).to_vec()];
    for due in &moves {
        let mut why = due.why.join("; ");
        if due.prepared {
            why.push_str(" (prepared)");
        }
        let from = due.from.as_ref().map_or_else(|| "never".to_owned(), Version::to_string);
        rows.push(vec![due.package.clone(), from, due.to.to_string(), why]);
    }
    writeln!(out, "{}", table_of(&rows))?;
    if moves.iter().all(|due| due.prepared) {
        writeln!(out, "all of them are prepared: commit, then cargo xtask release check, then tag")?;
        return Ok(());
    }
    writeln!(
        out,
        "a package stands below what it needs; those that pin another one follow it by themselves:\n"
    )?;
    let all = moves.iter().filter(|due| !due.prepared);
    for due in
        all.filter(|due| !due.why.iter().all(|why| why.starts_with("pins ") || why.starts_with("uses ")))
    {
        writeln!(out, "cargo xtask release prepare {} {} --execute", due.package, due.to)?;
    }
    writeln!(out, "\nor everything at once: cargo xtask release prepare --all --execute")?;
    Ok(())
}

/// Compares the public items of every changed library with its last release.
pub(super) fn semver_checks(
    context: &Context,
    known: &[Known<'_>],
    out: &mut dyn Write,
) -> Result<BTreeMap<String, Change>> {
    let mut found = BTreeMap::new();
    let Some(program) = context.find_program("cargo-semver-checks") else {
        let advice = "`cargo install --locked cargo-semver-checks` lets it compare public items too";
        writeln!(
            out,
            "cargo-semver-checks is not installed, the changelogs alone say what changed; {advice}\n"
        )?;
        return Ok(found);
    };
    for known in known.iter().filter(|known| known.package.library && known.changed()) {
        let (name, Some(last)) = (&known.package.name, &known.last) else { continue };
        let tag = tag_name(name, last);
        // Everything beyond a patch is then named as a finding, with the kind of version that it needs.
        let args = ["semver-checks", "--package", name, "--baseline-rev", &tag, "--release-type", "patch"];
        let result = context.program(&program).args(args).env("CARGO_TARGET_DIR", &context.target).stdout();
        let change = match result {
            Ok(_) => Change::Fix,
            Err(error) => match verdict(&error.to_string()) {
                Some(change) => change,
                None => {
                    writeln!(
                        out,
                        "cargo-semver-checks came to no end for {name}, its changelog alone counts: {error:#}\n"
                    )?;
                    continue;
                }
            },
        };
        found.insert(name.clone(), change);
    }
    Ok(found)
}

/// Reads the summary that cargo-semver-checks prints.
fn verdict(text: &str) -> Option<Change> {
    let requires = |word: &str| text.contains(&format!("semver requires new {word} version"));
    if requires("major") {
        Some(Change::Breaking)
    } else if requires("minor") {
        Some(Change::Feature)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_the_checks_is_understood() {
        let summary = |word: &str| {
            format!("     Summary semver requires new {word} version: 1 major and 0 minor checks failed")
        };
        assert_eq!(verdict(&summary("major")), Some(Change::Breaking));
        assert_eq!(verdict(&summary("minor")), Some(Change::Feature));
        assert_eq!(verdict("error: failed to build rustdoc"), None);
    }
}

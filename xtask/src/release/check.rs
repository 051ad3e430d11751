//! `release check`: whether the packages can be released as they are.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use semver::VersionReq;

use super::changelog::Changelog;
use super::history::{Tags, tag_name};
use super::packages::{Package, Packages};
use super::plan::{self, Known};
use super::version::{allowed, is_pin, next};
use super::{archives, manifest, read_changelog, table};
use crate::context::Context;

/// Who names the providers; pins them.
const BUNDLE: &str = "cloud-providers-bundle";
/// Files that every package contains.
pub(super) const FILES: &[&str] = &["LICENSE", "README.md", "CHANGELOG.md"];

/// What was asked for.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// The packages to release; all of them when empty.
    pub(super) names: Vec<String>,
    /// Whether changed packages may wait for their release.
    pub(super) pending: bool,
    /// Whether every packed package is built outside of the workspace.
    pub(super) archives: bool,
}

/// Something that stands against a release.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Problem {
    /// The package or the file.
    pub(crate) place: String,
    /// What is wrong.
    pub(crate) what: String,
    /// How to mend it.
    pub(crate) mend: String,
}

impl Problem {
    pub(super) fn new(place: impl fmt::Display, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { place: place.to_string(), what: what.into(), mend: mend.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    mend: {}", self.place, self.what, self.mend)
    }
}

/// Prints what stands against a release.
///
/// # Errors
///
/// When the state of the packages cannot be read.
pub(super) fn run(context: &Context, options: &Options, out: &mut dyn Write) -> Result<ExitCode> {
    let packages = Packages::load(context)?;
    let scope = scope(&packages, &options.names)?;
    let mut problems = problems(context, &packages, &scope, options.pending)?;
    // What does not fit together does not build either, and says so less clearly.
    if options.archives && problems.is_empty() {
        problems = archives::problems(context, &packages, &scope, !options.pending, out)?;
    }
    for problem in &problems {
        writeln!(out, "{problem}")?;
    }
    if problems.is_empty() {
        let built = if options.archives { ", and each builds outside of the workspace" } else { "" };
        writeln!(out, "release check: {} packages, nothing to mend{built}", scope.len())?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "release check: {} to mend", problems.len())?;
    Ok(ExitCode::FAILURE)
}

/// Runs as a stage of the test: changes may wait for their release.
///
/// # Errors
///
/// When there is something to mend.
pub(crate) fn stage(context: &Context) -> Result<String> {
    staged(context, &Options { pending: true, ..Options::default() })
}

/// Runs as a stage of the test, with every packed package built outside of the workspace.
///
/// # Errors
///
/// When there is something to mend.
pub(crate) fn archives_stage(context: &Context) -> Result<String> {
    staged(context, &Options { pending: true, archives: true, ..Options::default() })
}

fn staged(context: &Context, options: &Options) -> Result<String> {
    if run(context, options, &mut std::io::stdout())? == ExitCode::SUCCESS {
        let packages = Packages::load(context)?;
        return Ok(format!("{} packages", packages.published().count()));
    }
    bail!("see above what is to be mended")
}

/// What `tidy` wants to know: changelogs that are none or do not tell what changed since the last release, packages
/// without the licence, circles, and a page of versions that is out of date.
///
/// # Errors
///
/// When the packages cannot be read.
pub(crate) fn stale(context: &Context) -> Result<Vec<Problem>> {
    let packages = Packages::load(context)?;
    let mut problems = Vec::new();
    for package in packages.all() {
        let Ok(text) = read_changelog(context, package) else { continue };
        let file = package.folder.join("CHANGELOG.md");
        for mistake in Changelog::parse(&text).mistakes {
            problems.push(Problem::new(
                format!("{}:{}", file.display(), mistake.line),
                mistake.what,
                mistake.mend,
            ));
        }
    }
    for package in packages.published() {
        if !context.root.join(&package.folder).join("LICENSE").is_file() {
            problems.push(Problem::new(&package.name, "has no LICENSE", link_to_licence(package)));
        }
    }
    // Versions and requirements of a circle cannot be put in order, and so are not compared.
    if let Some(circle) = circle(&packages) {
        problems.push(circle);
        return Ok(problems);
    }
    // One that is missing is told by `tidy` itself.
    if packages.published().all(|package| read_changelog(context, package).is_ok()) {
        let known = plan::known(context, &packages, &Tags::load(context)?)?;
        problems.extend(known.iter().filter_map(untold));
    }
    problems.extend(stale_page(context, &packages));
    Ok(problems)
}

fn stale_page(context: &Context, packages: &Packages) -> Option<Problem> {
    // A circle, or a changelog that is missing, is told elsewhere.
    let page = table::page(packages, |package| read_changelog(context, package)).ok()?;
    let found = std::fs::read_to_string(context.root.join(table::PAGE)).unwrap_or_default();
    (found != page)
        .then(|| Problem::new(table::PAGE, "is out of date", "cargo xtask release table --execute"))
}

/// The packages that are asked for and what they need; every published one when none is named.
fn scope(packages: &Packages, names: &[String]) -> Result<BTreeSet<String>> {
    for name in names {
        packages.get(name)?;
    }
    if names.is_empty() {
        return Ok(packages.published().map(|package| package.name.clone()).collect());
    }
    Ok(packages.closure(names.iter().cloned()))
}

/// Finds everything that stands against a release, without building anything.
///
/// # Errors
///
/// When git or cargo fail.
pub(super) fn problems(
    context: &Context,
    packages: &Packages,
    scope: &BTreeSet<String>,
    pending: bool,
) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    if let Some(circle) = circle(packages) {
        return Ok(vec![circle]);
    }
    let mut wrong = shared_pins(context, packages)?;
    for package in packages.published().filter(|package| scope.contains(&package.name)) {
        wrong.extend(needs(packages, package));
    }
    problems.extend(wrong);
    // Cargo says what is packed only when the requirements fit together, and it writes a lock file that is out of date.
    if problems.is_empty()
        && let Err(error) = context.metadata()
    {
        problems.push(Problem::new("Cargo.lock", format!("{error:#}"), "cargo update --workspace"));
    }
    let unresolvable = !problems.is_empty();
    let tags = Tags::load(context)?;
    for package in packages.published().filter(|package| scope.contains(&package.name)) {
        if read_changelog(context, package).is_err() {
            let mend = "write CHANGELOG.md with a heading `## Unreleased`";
            problems.push(Problem::new(&package.name, "has no changelog", mend));
        }
        problems.extend(fields(package));
        if !unresolvable {
            problems.extend(files(context, package));
        }
    }
    if packages.published().all(|package| read_changelog(context, package).is_ok()) {
        let known = plan::known(context, packages, &tags)?;
        let bumped: Vec<&Known<'_>> =
            known.iter().filter(|known| known.last.is_some() && known.bumped()).collect();
        let released = packages.closure(bumped.iter().map(|known| known.package.name.clone()));
        for known in known.iter().filter(|known| scope.contains(&known.package.name)) {
            let may_wait = pending && !released.contains(&known.package.name);
            problems.extend(history(known, &tags, may_wait));
        }
    }
    problems.extend(stale_page(context, packages));
    problems.sort_by(|left, right| left.place.cmp(&right.place));
    problems.dedup();
    Ok(problems)
}

/// Packages that need each other, which can be published in no order.
fn circle(packages: &Packages) -> Option<Problem> {
    let circle = packages.order().err()?;
    let mend =
        "leave out the version of a dependency that only tests have: by path alone it is not published";
    Some(Problem::new("Cargo.toml", circle.to_string(), mend))
}

/// The requirements in the root manifest, also those that nobody uses at the moment.
fn shared_pins(context: &Context, packages: &Packages) -> Result<Vec<Problem>> {
    let text = std::fs::read_to_string(context.root.join("Cargo.toml"))?;
    let mut problems = Vec::new();
    for (name, text) in manifest::shared_requirements(&text)? {
        let Some(package) = packages.find(&name) else { continue };
        let requirement = VersionReq::parse(&text);
        if !requirement.as_ref().is_ok_and(|requirement| requirement.matches(&package.version)) {
            let what = format!("requires {name} {text}, and {name} is {}", package.version);
            let pin = requirement.is_ok_and(|requirement| is_pin(&requirement));
            let right = format!("{}{}", if pin { "=" } else { "" }, package.version);
            problems.push(Problem::new(
                "Cargo.toml",
                what,
                format!("write `version = \"{right}\"` for {name}"),
            ));
        }
    }
    Ok(problems)
}

/// What a package requires of the workspace.
fn needs(packages: &Packages, package: &Package) -> Vec<Problem> {
    let mut problems = Vec::new();
    for need in &package.needs {
        let Some(needed) = packages.find(&need.name).filter(|needed| needed.name != package.name) else {
            continue;
        };
        let name = &need.name;
        let mut problem = |what: String, mend: String| problems.push(Problem::new(&package.name, what, mend));
        let Some(requirement) = &need.requirement else {
            if need.kind != cargo_metadata::DependencyKind::Development {
                let what = format!("needs {name} by path alone, which no registry knows");
                problem(what, format!("give the dependency the version {} beside the path", needed.version));
            }
            continue;
        };
        if !needed.published {
            problem(
                format!("needs {name} by version, which is not published"),
                "leave out the version when only tests need it, or publish it".to_owned(),
            );
        }
        if !requirement.matches(&needed.version) {
            let what = format!("requires {name} {requirement}, and {name} is {}", needed.version);
            problem(what, format!("require {}{}", if need.pinned() { "=" } else { "" }, needed.version));
        }
        // Who builds the programs gets the providers that they were tested with.
        let provider = package.name == BUNDLE && name.starts_with("cloud-providers-");
        if need.ships() && (provider || name == BUNDLE) && !need.pinned() {
            let what = format!("requires {name} {requirement}, which other versions meet too");
            problem(what, format!("pin it: `version = \"={}\"`", needed.version));
        }
    }
    problems
}

/// What the manifest has to say.
fn fields(package: &Package) -> Option<Problem> {
    let missing = (!package.missing.is_empty()).then(|| package.missing.join(", "))?;
    Some(Problem::new(&package.name, format!("has no {missing}"), "write it in its Cargo.toml"))
}

/// What is inside of the packed package.
fn files(context: &Context, package: &Package) -> Vec<Problem> {
    let list =
        context.cargo().args(["package", "--list", "--allow-dirty", "--package", &package.name]).stdout();
    let missing: Vec<&str> = match &list {
        Ok(list) => {
            let files: BTreeSet<&str> = list.lines().collect();
            FILES.iter().copied().filter(|file| !files.contains(file)).collect()
        }
        // Cargo lists nothing when a file is missing that the manifest names, such as its `readme`.
        Err(_) => {
            let folder = context.root.join(&package.folder);
            FILES.iter().copied().filter(|file| !folder.join(file).is_file()).collect()
        }
    };
    if let (Err(error), true) = (&list, missing.is_empty()) {
        let mend = format!("see what `cargo package --list --package {}` says", package.name);
        return vec![Problem::new(&package.name, format!("cannot be packed: {error:#}"), mend)];
    }
    let found = |file: &str| {
        let mend = match file {
            "LICENSE" => link_to_licence(package),
            _ => format!("write {}/{file}, and leave it in `include`", package.folder.display()),
        };
        Problem::new(&package.name, format!("is packed without {file}"), mend)
    };
    missing.into_iter().map(found).collect()
}

/// How a package gets the licence of the repository.
fn link_to_licence(package: &Package) -> String {
    format!("ln -s ../../LICENSE {}/LICENSE", package.folder.display())
}

/// A package that changed and whose changelog does not tell.
fn untold(known: &Known<'_>) -> Option<Problem> {
    let package = known.package;
    if !known.changed() || !known.changelog.since(known.last.as_ref()).is_empty() {
        return None;
    }
    let what = match &known.last {
        None => "was never released, and its changelog says nothing of it".to_owned(),
        Some(last) => {
            let (tag, what) = (tag_name(&package.name, last), known.changes.what.first());
            let what = what.map(String::as_str).unwrap_or_default();
            format!("changed since {tag} ({what}), and its changelog does not tell")
        }
    };
    let log = package.folder.join("CHANGELOG.md");
    let mend = format!("write a line under `## Unreleased` in {}", log.display());
    Some(Problem::new(&package.name, what, mend))
}

/// Versions and changelog against what changed.
fn history(known: &Known<'_>, tags: &Tags, may_wait: bool) -> Vec<Problem> {
    let package = known.package;
    let (name, version) = (&package.name, &package.version);
    let log = package.folder.join("CHANGELOG.md");
    let mut problems = Vec::new();
    for mistake in &known.changelog.mistakes {
        let place = format!("{}:{}", log.display(), mistake.line);
        problems.push(Problem::new(place, mistake.what.clone(), mistake.mend.clone()));
    }
    let mut problem = |what: String, mend: String| problems.push(Problem::new(name, what, mend));
    let Some(last) = &known.last else {
        problems.extend(untold(known));
        return problems;
    };
    let tag = tag_name(name, last);
    if version < last {
        problem(
            format!("has version {version}, below its last release {tag}"),
            format!(
                "cargo xtask release prepare {name} {} --execute",
                next(last, super::version::Change::Fix)
            ),
        );
        return problems;
    }
    let what = known.changes.what.first().map(String::as_str).unwrap_or_default();
    if let Some(untold) = untold(known) {
        problem(untold.what, untold.mend);
    } else if known.changed() && !known.bumped() && !may_wait {
        problem(
            format!("changed since {tag} ({what}) and has the version of that release"),
            format!("cargo xtask release prepare {name} auto --execute"),
        );
    }
    if !known.bumped() {
        return problems;
    }
    if let Some(commit) = tags.commit(name, version) {
        let what =
            format!("has version {version}, whose tag is at {commit}, which is no part of this branch");
        problem(what, "take a version that was never released".to_owned());
    }
    let again = format!("cargo xtask release prepare {name} {version} --execute");
    if known.changelog.version(version).is_none() {
        problem(format!("has version {version}, and its changelog has no section of it"), again.clone());
    } else if !known.changelog.unreleased().is_empty() {
        problem(format!("has lines under `## Unreleased` that {version} would not tell"), again);
    }
    if let Some(own) = known.own().filter(|own| *own > allowed(last, version)) {
        let what = format!("{version} promises less than what changed since {last} ({})", own.word());
        problem(what, format!("cargo xtask release prepare {name} {} --execute", next(last, own)));
    }
    problems
}

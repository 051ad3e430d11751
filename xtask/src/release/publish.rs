//! `release publish`: each package after what it needs, and on with it after a break.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::history::{Tags, tag_name};
use super::index::Index;
use super::packages::{Package, Packages};
use super::{archives, check, not_executed, require_clean};
use crate::context::Context;

/// How long cargo may take to pack, build and upload one package.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Files that differ between two packings of the same commit: dependencies of the moment, and the commit's name.
const OF_THE_MOMENT: &[&str] = &["Cargo.lock", ".cargo_vcs_info.json", ".cargo-ok"];

/// What was asked for.
#[derive(Debug)]
pub(super) struct Options {
    /// The packages; all that are tagged at this commit when empty.
    pub(super) names: Vec<String>,
    /// The registry by its name in the configuration of cargo; crates.io when none is given.
    pub(super) registry: Option<String>,
    /// How long the index may take to show a package.
    pub(super) wait: Duration,
    /// Whether to do it.
    pub(super) execute: bool,
}

/// A package with its packed file.
struct Part<'a> {
    package: &'a Package,
    archive: PathBuf,
    checksum: String,
    /// Whether the registry has it, and if so why that is taken for the same.
    there: Option<&'static str>,
}

/// Publishes what is tagged at this commit, or shows what would be published.
///
/// # Errors
///
/// Names what stands against it before anything is published; later, what was published and what was not.
pub(super) fn run(context: &Context, options: &Options, out: &mut dyn Write) -> Result<()> {
    let packages = Packages::load(context)?;
    for name in &options.names {
        packages.get(name)?;
    }
    require_clean(context, "publish")?;
    let chosen = chosen(context, &packages, &options.names)?;
    let scope = packages.closure(chosen.iter().map(|package| package.name.clone()));
    let problems = check::problems(context, &packages, &scope, false)?;
    if !problems.is_empty() {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!("what is tagged cannot be released like this:\n{}", list.join("\n"));
    }
    let index = Index::new(context, options.registry.as_deref())?;
    others(&packages, &chosen, &index)?;
    let parts = parts(context, &chosen, &index)?;
    for part in &parts {
        let state = part.there.map_or("to be published".to_owned(), |why| format!("is there already: {why}"));
        writeln!(out, "{} {}: {state}", part.package.name, part.package.version)?;
    }
    if parts.iter().all(|part| part.there.is_some()) {
        writeln!(out, "\n{} has everything that is tagged at this commit", index.name())?;
        return Ok(());
    }
    if !options.execute {
        return not_executed(out);
    }
    let mut done: Vec<&str> = Vec::new();
    for part in parts.iter().filter(|part| part.there.is_none()) {
        if let Err(error) = publish(context, &index, part, options.wait, out) {
            let left =
                parts.iter().filter(|part| part.there.is_none()).map(|part| part.package.name.as_str());
            let left: Vec<&str> = left.filter(|name| !done.contains(name)).collect();
            let done = if done.is_empty() { "nothing".to_owned() } else { done.join(", ") };
            let name = &part.package.name;
            return Err(error.context(format!(
                "{name} was not published (published in this run: {done}; left: {}); \
                 once that is mended, run the same command again, it goes on from here",
                left.join(", ")
            )));
        }
        done.push(&part.package.name);
    }
    writeln!(out, "\npublished to {}: {}", index.name(), done.join(", "))?;
    Ok(())
}

/// The packages to publish, each after what it needs.
fn chosen<'a>(context: &Context, packages: &'a Packages, names: &[String]) -> Result<Vec<&'a Package>> {
    let tags = Tags::load(context)?;
    let head = context.git().args(["rev-parse", "HEAD"]).stdout()?.trim().to_owned();
    let tagged =
        |package: &Package| tags.commit(&package.name, &package.version).map(|commit| commit == head);
    let mut chosen = Vec::new();
    for package in packages.order()? {
        let tag = tag_name(&package.name, &package.version);
        match tagged(package) {
            Some(true) if names.is_empty() || names.contains(&package.name) => chosen.push(package),
            Some(false) if names.contains(&package.name) => {
                bail!("{tag} is not at this commit: `git switch --detach {tag}` and run it there")
            }
            None if names.contains(&package.name) => bail!(
                "{} {} is not tagged: cargo xtask release tag {0} --execute",
                package.name,
                package.version
            ),
            _ => {}
        }
    }
    ensure!(
        !chosen.is_empty(),
        "no package is tagged at this commit ({}): tag what is prepared with `cargo xtask release tag --execute`, \
         or switch to the commit of a release with `git switch --detach <package>-v<version>`",
        &head[..12]
    );
    Ok(chosen)
}

/// Checks that the registry has what the packages need and what is not published with them.
fn others(packages: &Packages, chosen: &[&Package], index: &Index<'_>) -> Result<()> {
    let names: BTreeSet<&str> = chosen.iter().map(|package| package.name.as_str()).collect();
    let mut asked = BTreeSet::new();
    for package in chosen {
        for need in &package.needs {
            let Some(requirement) = need.requirement.as_ref().map(ToString::to_string) else { continue };
            if names.contains(need.name.as_str()) || !asked.insert((&need.name, requirement.clone())) {
                continue;
            }
            if index.find(&need.name, &requirement)?.is_none() {
                let version =
                    packages.find(&need.name).map(|needed| needed.version.to_string()).unwrap_or_default();
                bail!(
                    "{} needs {} {requirement}, which {} does not have: publish {1} {version} first, from the commit of its tag",
                    package.name,
                    need.name,
                    index.name()
                );
            }
        }
    }
    Ok(())
}

/// Packs everything and compares it with what the registry has.
fn parts<'a>(context: &Context, chosen: &[&'a Package], index: &Index<'_>) -> Result<Vec<Part<'a>>> {
    let folder = archives::pack(context, chosen, &index.args())?;
    let mut parts = Vec::new();
    for package in chosen {
        let archive = folder.join(archives::file_name(package));
        let bytes = std::fs::read(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
        let checksum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let found = index.find(&package.name, &format!("={}", package.version))?;
        let mut part = Part { package, archive, checksum, there: None };
        if let Some((_, published)) = found {
            part.there = Some(if published == part.checksum {
                "the same checksum"
            } else {
                same_content(&part, index)?;
                "the same content"
            });
        }
        parts.push(part);
    }
    Ok(parts)
}

/// Checks that a package that was published has the content of ours.
fn same_content(part: &Part<'_>, index: &Index<'_>) -> Result<()> {
    let package = part.package;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let ours = contents(&archives::unpack(&part.archive, package, folder.path())?)?;
    let theirs = contents(&index.fetch(&package.name, &package.version)?)?;
    let names: BTreeSet<&PathBuf> = ours.keys().chain(theirs.keys()).collect();
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| name.display().to_string())
        .collect();
    ensure!(
        differing.is_empty(),
        "{} has {} {} with other content ({}): a version is published once, so this one needs the next: \
         cargo xtask release prepare {1} patch --execute",
        index.name(),
        package.name,
        package.version,
        differing.join(", ")
    );
    Ok(())
}

/// The files below a folder, but for those that every packing makes anew.
fn contents(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(current) = open.pop() {
        for entry in
            std::fs::read_dir(&current).with_context(|| format!("cannot read {}", current.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).expect("it lies below the folder").to_owned();
            if !OF_THE_MOMENT.iter().any(|file| name == Path::new(file)) {
                files.insert(name, std::fs::read(&path)?);
            }
        }
    }
    Ok(files)
}

/// Publishes one package and waits until the index shows it.
fn publish(
    context: &Context,
    index: &Index<'_>,
    part: &Part<'_>,
    wait: Duration,
    out: &mut dyn Write,
) -> Result<()> {
    let Part { package, checksum, .. } = part;
    let version = &package.version;
    writeln!(out, "\npublishing {} {version}", package.name)?;
    // Cargo packs it again and builds it from what the registry has, which is what others will do.
    context.cargo().args(["publish", "--package", &package.name]).args(index.args()).visible(LIMIT)?;
    let start = Instant::now();
    let mut pause = Duration::from_millis(250);
    loop {
        // What is not shown yet and what does not answer at the moment are both waited for.
        let found = index.find(&package.name, &format!("={version}"));
        if let Ok(Some((_, found))) = &found {
            ensure!(
                found == checksum,
                "{} shows {} {version} with the checksum {found}, and not {checksum}, which was sent",
                index.name(),
                package.name
            );
            return Ok(());
        }
        if start.elapsed() > wait {
            let why = found.err().map(|error| format!(": {error:#}")).unwrap_or_default();
            bail!(
                "{} was sent, and the index of {} does not show it after {} s{why}",
                package.name,
                index.name(),
                wait.as_secs()
            );
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

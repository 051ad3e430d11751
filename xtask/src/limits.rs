//! `cargo xtask limits`: how large programs are and of how many packages they are made, against a file of the repository.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Deserialize;

use crate::bench::goals::{Goal, table as goals_table};
use crate::bundle::{self, Listed, Set};
use crate::context::Context;
use crate::dist::build::Builder;

/// The file with the limits, from the root of the workspace.
pub(crate) const FILE: &str = "xtask/limits.toml";
/// What may be added to a number before somebody has to agree, in per cent.
const GROWTH: u64 = 5;
const HEAD: &str = "\
# How large programs are as they ship, and how many packages are linked into them. `cargo xtask limits` fails when one
# is more than 5 % over; `cargo xtask limits --accept` writes the numbers of today. Say in the commit what was bought.
# What is `at_most` is promised to users, and nobody accepts more.
";

/// The file.
#[derive(Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
struct Limits {
    /// What the sizes were measured for; elsewhere only packages are compared.
    target: String,
    /// The compiler they were measured with.
    rustc: String,
    #[serde(rename = "program")]
    programs: Vec<Row>,
}

/// A program with a choice of providers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    package: String,
    features: BTreeSet<String>,
    packages: u64,
    bytes: u64,
    /// Bytes that users were promised.
    at_most: Option<u64>,
}

impl Row {
    fn set(&self) -> Set {
        Set { name: String::new(), features: self.features.clone(), heavy: false }
    }
}

/// The command line of `limits`.
pub(crate) fn command() -> Command {
    Command::new("limits")
        .about("Compares sizes of programs and numbers of packages with xtask/limits.toml")
        .arg(
            Arg::new("accept")
                .long("accept")
                .action(ArgAction::SetTrue)
                .help("Write the numbers of today into the file"),
        )
}

/// Runs the task.
///
/// # Errors
///
/// When a number has grown too much and is not accepted.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let file = context.root.join(FILE);
    let before = read(&file)?;
    if !matches.get_flag("accept") {
        println!("limits: {}", check(context, &before, true)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut now = measure(context, &before, true)?;
    println!("{}", table(&before, &now));
    promised(&now)?;
    now.target = Builder::new(context, &context.metadata()?)?.triple;
    now.rustc = compiler(context);
    std::fs::write(&file, write(&now)?).with_context(|| format!("cannot write {}", file.display()))?;
    println!("limits: wrote {FILE}");
    Ok(ExitCode::SUCCESS)
}

/// Runs as a stage of the test: the packages only, which are counted in a second.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn stage(context: &Context) -> Result<String> {
    check(context, &read(&context.root.join(FILE))?, false)
}

/// Runs as a stage of the test with `--all`: the sizes too, for which the programs are built as they ship.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn stage_all(context: &Context) -> Result<String> {
    check(context, &read(&context.root.join(FILE))?, true)
}

/// Measures, prints the table, and refuses what has grown too much.
fn check(context: &Context, before: &Limits, sizes: bool) -> Result<String> {
    let same_target = Builder::new(context, &context.metadata()?)?.triple == before.target;
    // The packages are counted in a second, the programs are built for minutes.
    let counted = measure(context, before, false)?;
    refuse(before, &counted)?;
    if !sizes {
        let rows = counted.programs.iter().map(|row| format!("{} of {} packages", title(row), row.packages));
        return Ok(rows.collect::<Vec<_>>().join("; "));
    }
    if !same_target {
        return Ok(format!("packages only: the sizes are those of {}", before.target));
    }
    let now = measure(context, before, true)?;
    context.say(table(before, &now));
    context.say(goals_table(&[&goals(&now)]));
    if before.rustc != compiler(context) {
        context.say(format!("the sizes of {FILE} are those of rustc {}", before.rustc));
    }
    refuse(before, &now)?;
    promised(&now)?;
    let sizes = now
        .programs
        .iter()
        .map(|row| format!("{} {:.1} MB of {} packages", title(row), row.bytes as f64 / 1e6, row.packages));
    Ok(sizes.collect::<Vec<_>>().join("; "))
}

fn compiler(context: &Context) -> String {
    let release = context.rustc.lines().find_map(|line| line.strip_prefix("release: "));
    release.unwrap_or("unknown").to_owned()
}

/// Counts the packages of every row, and builds it as it ships when sizes are wanted.
fn measure(context: &Context, before: &Limits, sizes: bool) -> Result<Limits> {
    let metadata = context.metadata()?;
    let providers = bundle::providers(&metadata)?;
    let builder = Builder::new(context, &metadata)?;
    let mut programs = Vec::new();
    for row in &before.programs {
        for feature in &row.features {
            let known = providers.iter().any(|provider| provider.feature == *feature);
            ensure!(known, "{FILE} names the provider {feature}, which {} does not have", bundle::BUNDLE);
        }
        // The same packages are counted on every machine.
        let triple = if before.target.is_empty() { &builder.triple } else { &before.target };
        let packages = bundle::linked(context, &row.package, &row.set(), triple)?.len() as u64;
        let bytes = if sizes { size_of(&build(context, &builder, &providers, row)?)? } else { row.bytes };
        programs.push(Row { packages, bytes, ..row.clone() });
    }
    Ok(Limits { target: before.target.clone(), rustc: before.rustc.clone(), programs })
}

/// Builds a row's program as it ships.
fn build(context: &Context, builder: &Builder, providers: &[Listed], row: &Row) -> Result<PathBuf> {
    let set = row.set();
    Ok(builder.build(context, &row.package, &row.name, &set.args(), set.is_static(providers))?.path)
}

fn size_of(file: &Path) -> Result<u64> {
    Ok(file.metadata().with_context(|| format!("cannot read {}", file.display()))?.len())
}

/// A program of which users were promised a size.
#[derive(Clone, Debug)]
pub(crate) struct Promised {
    /// The program and its providers, for people.
    pub(crate) title: String,
    /// Its name.
    pub(crate) name: String,
    /// The program as it ships.
    pub(crate) path: PathBuf,
    /// Its size.
    pub(crate) bytes: u64,
    /// The bytes that were promised.
    pub(crate) at_most: u64,
}

impl Promised {
    /// The goal of its size.
    pub(crate) fn goal(&self) -> Goal {
        size_goal(&self.title, self.bytes, self.at_most)
    }
}

/// Builds every program of which users were promised a size, as it ships, and puts it into a folder.
///
/// # Errors
///
/// When the file does not parse, or a program does not build.
pub(crate) fn build_promised(context: &Context, folder: &Path) -> Result<Vec<Promised>> {
    let metadata = context.metadata()?;
    let providers = bundle::providers(&metadata)?;
    let builder = Builder::new(context, &metadata)?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut programs = Vec::new();
    for row in read(&context.root.join(FILE))?.programs {
        let Some(at_most) = row.at_most else { continue };
        let built = build(context, &builder, &providers, &row)?;
        // The next build of a program, with other features, writes to the same place.
        let path = folder.join(format!("{}-{}", programs.len(), row.name));
        std::fs::copy(&built, &path).with_context(|| format!("cannot write {}", path.display()))?;
        programs.push(Promised { title: title(&row), bytes: size_of(&path)?, path, name: row.name, at_most });
    }
    Ok(programs)
}

fn size_goal(title: &str, bytes: u64, at_most: u64) -> Goal {
    Goal::at_most(format!("{title}, bytes"), bytes as f64, at_most as f64)
}

/// The goals of all sizes that were promised.
fn goals(now: &Limits) -> Vec<Goal> {
    let promised = now.programs.iter().filter_map(|row| Some((row, row.at_most?)));
    promised.map(|(row, at_most)| size_goal(&title(row), row.bytes, at_most)).collect()
}

/// Refuses what has grown by more than the limit.
fn refuse(before: &Limits, now: &Limits) -> Result<()> {
    let mut grown = Vec::new();
    for (old, new) in before.programs.iter().zip(&now.programs) {
        for (what, old_number, new_number) in
            [("packages", old.packages, new.packages), ("bytes", old.bytes, new.bytes)]
        {
            if new_number * 100 > old_number * (100 + GROWTH) {
                grown.push(format!("{what} of {}", title(old)));
            }
        }
    }
    if grown.is_empty() {
        return Ok(());
    }
    bail!(
        "grown by more than {GROWTH} %: {}\n\n{}\nlook where it comes from with `cargo tree`, or accept it with \
         `cargo xtask limits --accept` and say in the commit what was bought",
        grown.join(", "),
        table(before, now)
    )
}

/// Refuses what is larger than users were promised.
fn promised(now: &Limits) -> Result<()> {
    let broken = now.programs.iter().filter_map(|row| {
        let most = row.at_most.filter(|most| row.bytes > *most)?;
        Some(format!("{} has {} bytes, and {most} were promised", title(row), row.bytes))
    });
    let broken: Vec<String> = broken.collect();
    ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(())
}

fn title(row: &Row) -> String {
    let features: Vec<&str> = row.features.iter().map(String::as_str).collect();
    match features.is_empty() {
        // Only the daemon's choice is looked at.
        true if row.package != "caa" => row.name.clone(),
        true => format!("{} with no provider", row.name),
        false => format!("{} with {}", row.name, features.join(", ")),
    }
}

fn table(before: &Limits, now: &Limits) -> String {
    let percent = |old: u64, new: u64| {
        if old == 0 { "new".to_owned() } else { format!("{:+.1} %", (new as f64 / old as f64 - 1.0) * 100.0) }
    };
    let mut text = format!(
        "{:<36} {:>8} {:>8} {:>8}   {:>11} {:>11} {:>8}\n",
        "program", "packages", "now", "", "bytes", "now", ""
    );
    for (old, new) in before.programs.iter().zip(&now.programs) {
        let _ = writeln!(
            text,
            "{:<36} {:>8} {:>8} {:>8}   {:>11} {:>11} {:>8}",
            title(old),
            old.packages,
            new.packages,
            percent(old.packages, new.packages),
            old.bytes,
            new.bytes,
            percent(old.bytes, new.bytes)
        );
    }
    text
}

fn read(file: &Path) -> Result<Limits> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let limits: Limits =
        toml::from_str(&text).with_context(|| format!("{} does not parse", file.display()))?;
    ensure!(!limits.programs.is_empty(), "{} names no program", file.display());
    Ok(limits)
}

fn write(limits: &Limits) -> Result<String> {
    let mut text = HEAD.to_owned();
    writeln!(text, "target = {:?}\nrustc = {:?}", limits.target, limits.rustc)?;
    for row in &limits.programs {
        let features: Vec<&String> = row.features.iter().collect();
        writeln!(text, "\n[[program]]\nname = {:?}\npackage = {:?}", row.name, row.package)?;
        writeln!(text, "features = {features:?}\npackages = {}\nbytes = {}", row.packages, row.bytes)?;
        if let Some(most) = row.at_most {
            writeln!(text, "at_most = {most}")?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(packages: u64, bytes: u64) -> Limits {
        let row = |features: &[&str]| Row {
            name: "cloud-api-adaptor".into(),
            package: "caa".into(),
            features: features.iter().map(|name| (*name).to_owned()).collect(),
            packages,
            bytes,
            at_most: Some(15_000_000).filter(|_| !features.is_empty()),
        };
        let programs = vec![row(&[]), row(&["libvirt"])];
        Limits { target: "x86_64-unknown-linux-gnu".into(), rustc: "1.95.0".into(), programs }
    }

    #[test]
    fn five_per_cent_are_allowed_and_more_is_told_with_both_numbers() {
        let before = limits(100, 10_000_000);
        refuse(&before, &limits(105, 10_500_000)).unwrap();
        refuse(&before, &limits(50, 1)).unwrap();
        for grown in [limits(106, 10_000_000), limits(100, 10_500_001)] {
            let error = refuse(&before, &grown).unwrap_err().to_string();
            assert!(error.contains("cloud-api-adaptor with no provider, "), "{error}");
            assert!(error.contains("with libvirt") && error.contains("--accept"), "{error}");
            assert!(error.contains("10000000") && error.contains(&grown.programs[0].packages.to_string()));
        }
        let error = refuse(&before, &limits(106, 10_500_001)).unwrap_err().to_string();
        assert!(
            error.contains("packages of") && error.contains("bytes of") && error.contains("+6.0 %"),
            "{error}"
        );
    }

    #[test]
    fn what_was_promised_is_kept_whatever_is_accepted() {
        promised(&limits(100, 15_000_000)).unwrap();
        let kept = |bytes| goals(&limits(100, bytes)).iter().map(|goal| goal.met).collect::<Vec<_>>();
        assert_eq!((kept(15_000_000), kept(15_000_001)), (vec![true], vec![false]));
        let error = promised(&limits(100, 15_000_001)).unwrap_err().to_string();
        assert_eq!(error, "cloud-api-adaptor with libvirt has 15000001 bytes, and 15000000 were promised");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("limits.toml");
        std::fs::write(&file, write(&limits(100, 10_000_000)).unwrap()).unwrap();
        assert_eq!(read(&file).unwrap(), limits(100, 10_000_000));
        std::fs::write(&file, "target = \"x\"\nrustc = \"y\"\nprogram = []\n").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("names no program"));
    }

    #[test]
    fn the_daemon_is_limited_without_providers_and_with_libvirt() {
        let context = Context::from_process().unwrap();
        let limits = read(&context.root.join(FILE)).unwrap();
        for features in [&[][..], &["libvirt"]] {
            let features: BTreeSet<String> = features.iter().map(|name| (*name).to_owned()).collect();
            let found = limits.programs.iter().find(|row| row.package == "caa" && row.features == features);
            assert!(found.is_some_and(|row| row.bytes > 1_000_000 && row.packages > 50), "{features:?}");
        }
    }

    #[test]
    fn every_promise_of_the_performance_goals_is_kept_to() {
        let context = Context::from_process().unwrap();
        let limits = read(&context.root.join(FILE)).unwrap();
        for (name, most) in [
            ("cloud-api-adaptor", 15_000_000),
            ("peerpod-gateway", 5_000_000),
            ("agent-protocol-forwarder", 5_000_000),
        ] {
            let found = limits.programs.iter().find(|row| row.name == name && row.at_most == Some(most));
            assert!(found.is_some(), "{name}");
        }
    }

    #[test]
    fn packages_are_counted_before_anything_is_built() {
        let context = Context::from_process().unwrap();
        let mut before = read(&context.root.join(FILE)).unwrap();
        before.programs[0].packages = 10;
        let error = check(&context, &before, true).unwrap_err().to_string();
        assert!(error.contains("packages of cloud-api-adaptor with no provider"), "{error}");
    }
}

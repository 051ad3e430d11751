//! `cargo xtask release`: from a change to a published package. See docs/development/releasing.md.
//!
//! Everything shows what it would do; `--execute` does it. Nothing is pushed.

mod archives;
pub(crate) mod changelog;
mod check;
mod edits;
mod history;
mod index;
mod manifest;
mod packages;
mod plan;
mod prepare;
mod publish;
mod status;
pub(crate) mod table;
mod tag;
mod version;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};

use self::packages::Package;
use self::version::Level;
use crate::context::Context;

pub(crate) use self::check::{archives_stage, stage, stale};

/// Describes `cargo xtask release`.
pub(crate) fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let execute = flag("execute", "Do it; without this it is only shown");
    let no_checks =
        flag("no-semver-checks", "Do not compare public items, also if cargo-semver-checks is installed");
    let packages = |help: &'static str| {
        Arg::new("package").value_name("PACKAGE").action(ArgAction::Append).num_args(0..).help(help)
    };
    Command::new("release")
        .about("Versions, changelogs, tags and publishing of the packages")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("status")
                .about("Shows where every package stands since its last release")
                .arg(packages("Commits and news of these too")),
        )
        .subcommand(
            Command::new("plan").about("Says which packages are due, as which versions").arg(no_checks.clone()),
        )
        .subcommand(
            Command::new("prepare")
                .about("Writes versions, requirements, changelogs, the lock file and the page of versions")
                .arg(Arg::new("package").value_name("PACKAGE").help("The package to release; what pins it follows"))
                .arg(
                    Arg::new("level")
                        .value_name("LEVEL|VERSION")
                        .help("patch, minor, major, breaking, auto, or a version such as 0.2.0"),
                )
                .arg(
                    flag("all", "Everything that `plan` lists, with its versions")
                        .conflicts_with_all(["package", "level"]),
                )
                .arg(no_checks)
                .arg(execute.clone()),
        )
        .subcommand(
            Command::new("check")
                .about("Checks that the packages can be released as they are")
                .arg(packages("Only these and what they need [default: every package]"))
                .arg(flag("pending", "Changed packages may wait for their release when their changelog tells the change"))
                .arg(flag("all", "Build every packed package outside of the workspace too")),
        )
        .subcommand(
            Command::new("tag")
                .about("Makes the annotated tags of what is prepared and committed")
                .arg(packages("Only these [default: every prepared package]"))
                .arg(flag("sign", "Sign the tags, as git is configured to"))
                .arg(execute.clone()),
        )
        .subcommand(
            Command::new("publish")
                .about("Publishes what is tagged at this commit, each package after what it needs")
                .arg(packages("Only these [default: every package that is tagged at this commit]"))
                .arg(Arg::new("registry").long("registry").value_name("NAME").help(
                    "A registry of the cargo configuration, which has to answer for crates.io too [default: crates.io]",
                ))
                .arg(
                    Arg::new("wait")
                        .long("wait")
                        .value_name("SECONDS")
                        .default_value("600")
                        .value_parser(clap::value_parser!(u64))
                        .help("How long the index may take to show a package"),
                )
                .arg(execute.clone()),
        )
        .subcommand(Command::new("table").about("Writes the page of versions anew").arg(execute))
}

/// Runs `cargo xtask release`.
///
/// # Errors
///
/// Names what is wrong and what to do about it.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    run_to(context, matches, &mut std::io::stdout())
}

fn run_to(context: &Context, matches: &ArgMatches, out: &mut dyn Write) -> Result<ExitCode> {
    let (name, sub) = matches.subcommand().expect("clap demands the subcommand");
    let execute = || sub.get_flag("execute");
    let names = || -> Vec<String> { sub.get_many("package").into_iter().flatten().cloned().collect() };
    match name {
        "status" => status::run(context, &names(), out)?,
        "plan" => plan::run(context, !sub.get_flag("no-semver-checks"), out)?,
        "prepare" => {
            let text = |name: &str| sub.get_one::<String>(name);
            let what = match (text("package"), text("level"), sub.get_flag("all")) {
                (None, None, true) => prepare::What::All,
                (Some(package), Some(level), false) => {
                    prepare::What::One(package.clone(), Level::parse(level)?)
                }
                _ => bail!("say what to release: `prepare <package> <level or version>`, or `prepare --all`"),
            };
            prepare::run(context, &what, !sub.get_flag("no-semver-checks"), execute(), out)?;
        }
        "check" => {
            let options = check::Options {
                names: names(),
                pending: sub.get_flag("pending"),
                archives: sub.get_flag("all"),
            };
            return check::run(context, &options, out);
        }
        "tag" => tag::run(context, &names(), sub.get_flag("sign"), execute(), out)?,
        "publish" => {
            let options = publish::Options {
                names: names(),
                registry: sub.get_one::<String>("registry").cloned(),
                wait: Duration::from_secs(*sub.get_one("wait").expect("it has a default")),
                execute: execute(),
            };
            publish::run(context, &options, out)?;
        }
        "table" => edits::table(context, execute(), out)?,
        _ => unreachable!("clap knows the subcommands"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Completes a package that was just made: its licence, and the page of versions.
///
/// # Errors
///
/// When one of them cannot be written.
pub(crate) fn add_package(context: &Context, folder: &str) -> Result<()> {
    let up = folder.split('/').map(|_| "../").collect::<String>();
    let link = context.root.join(folder).join("LICENSE");
    if link.symlink_metadata().is_err() {
        std::os::unix::fs::symlink(format!("{up}LICENSE"), &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
    }
    edits::table(context, true, &mut std::io::sink())
}

fn not_executed(out: &mut dyn Write) -> Result<()> {
    writeln!(out, "\nnothing was done: add --execute to do it")?;
    Ok(())
}

fn read_changelog(context: &Context, package: &Package) -> Result<String> {
    let path = context.root.join(&package.folder).join("CHANGELOG.md");
    std::fs::read_to_string(&path)
        .with_context(|| format!("{} has no changelog: write {}", package.name, path.display()))
}

/// Refuses a work tree that differs from its commit.
fn require_clean(context: &Context, to: &str) -> Result<()> {
    let changes = context.git().args(["status", "--porcelain"]).stdout()?;
    let files: Vec<&str> = changes.lines().take(5).collect();
    ensure!(
        files.is_empty(),
        "the work tree differs from its commit, so nobody could {to} the same again: commit or take back\n{}",
        files.join("\n")
    );
    Ok(())
}

/// Lays out rows in columns; the first row is the heading.
fn table_of(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;

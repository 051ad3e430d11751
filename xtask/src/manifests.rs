//! `cargo xtask manifests`: writes what an installation creates in a cluster, from the code that says what it needs.
//!
//! A test of `peerpod-api` compares the files with the code, so that every run of the tests notices an old one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Arg, ArgMatches, Command};

use crate::context::Context;

const FOLDER: &str = "crates/peerpod-api/manifests";
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// The subcommand.
pub(crate) fn command() -> Command {
    let arg = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("manifests")
        .about("Writes definition, roles and Deployment of an installation, generated from the code")
        .arg(arg("namespace", "NAME", "The namespace of the installation").requires("out"))
        .arg(arg("image", "IMAGE", "The image of the controller").requires("out").requires("namespace"))
        .arg(
            arg("out", "PATH", "Write them into this folder, in place of crates/peerpod-api/manifests")
                .value_parser(clap::value_parser!(PathBuf)),
        )
}

/// Runs `manifests`.
///
/// # Errors
///
/// When the program that generates them does not build, or cannot write.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<()> {
    let out = matches.get_one::<PathBuf>("out").cloned().unwrap_or_else(|| context.root.join(FOLDER));
    std::fs::create_dir_all(&out)?;
    let cargo = context.cargo().args(["run", "--quiet", "--locked", "--package", "peerpod-api"]);
    let cargo = cargo.args(["--example", "manifests", "--"]).arg(std::path::absolute(out)?);
    let options = ["namespace", "image"].into_iter().filter_map(|name| matches.get_one::<String>(name));
    cargo.args(options).visible(LIMIT).map(drop)
}

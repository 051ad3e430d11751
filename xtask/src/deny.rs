//! `cargo xtask deny`: licences, sources and banned dependencies; advisories when there is a database of them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Arg, ArgMatches, Command};

use crate::command::Run;
use crate::context::Context;
use crate::tools;

const LIMIT: Duration = Duration::from_secs(10 * 60);
/// A database older than this is pointed out: it knows nothing of what was found since.
const STALE_DAYS: u64 = 30;
/// The checker demands a URL with a host. Git is told to take the copy in its place, and nothing answers at this one.
const NOWHERE: &str = "https://advisories.invalid/advisory-db";

/// The command line of `deny`.
pub(crate) fn command() -> Command {
    Command::new("deny")
        .about("Checks licences, sources and banned dependencies, and advisories with --advisory-db")
        .arg(database_arg())
}

/// The option that names a copy of the advisory database.
pub(crate) fn database_arg() -> Arg {
    Arg::new("advisory-db")
        .long("advisory-db")
        .value_name("PATH")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Check advisories too, with this copy of the RustSec database [variable: CLOUD_PROVIDERS_ADVISORY_DB]")
}

/// Takes the database of the command line, which goes before that of the environment.
pub(crate) fn take_database(context: &mut Context, matches: &ArgMatches) {
    if let Some(path) = matches.get_one::<PathBuf>("advisory-db") {
        context.advisory_db = Some(path.clone());
    }
}

/// Runs the task.
///
/// # Errors
///
/// When a rule of `deny.toml` is broken, or an advisory concerns a dependency.
pub(crate) fn run(context: &mut Context, matches: &ArgMatches) -> Result<ExitCode> {
    take_database(context, matches);
    let said = stage(context)?;
    println!("deny: {said}");
    Ok(ExitCode::SUCCESS)
}

/// Runs as a stage of the test.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn stage(context: &Context) -> Result<String> {
    let program = tools::install(context, &tools::CARGO_DENY)?;
    let args = ["--locked", "--all-features", "check", "bans", "licenses", "sources"];
    context.program(&program).args(args).visible(LIMIT)?;
    let Some(path) = &context.advisory_db else {
        return Ok(
            "advisories are NOT checked: give a copy of the advisory database with --advisory-db PATH or \
                   CLOUD_PROVIDERS_ADVISORY_DB, see docs/development/testing.md"
                .to_owned(),
        );
    };
    advisories(context, &program, path)
}

/// Checks every dependency against the advisories of a database.
fn advisories(context: &Context, program: &Path, path: &Path) -> Result<String> {
    let known = count(&path.join("crates")).with_context(|| {
        format!(
            "{} is no copy of the advisory database: it has no folder crates with advisories",
            path.display()
        )
    })?;
    ensure!(known > 0, "{} has no advisory: give the whole database", path.join("crates").display());
    // The checker takes a database from a repository and no folder: an archive that was unpacked would not do, nor a
    // copy on another branch. So it gets a repository with exactly these files.
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let repository = folder.path().join("advisory-db");
    copy(&path.join("crates"), &repository.join("crates"))?;
    let git = || Run::new("git").current_dir(&repository);
    git().args(["init", "--quiet", "--initial-branch=main"]).stdout()?;
    git().args(["add", "--all"]).stdout()?;
    let who = ["-c", "user.name=copy", "-c", "user.email=copy@localhost", "-c", "commit.gpgsign=false"];
    git().args(who).args(["commit", "--quiet", "--message", "copy"]).stdout()?;

    let rules = std::fs::read_to_string(context.root.join("deny.toml")).context("cannot read deny.toml")?;
    let config = folder.path().join("deny.toml");
    std::fs::write(&config, with_database(&rules, folder.path())?)?;
    let run = context.program(program).args(["--locked", "--all-features", "--config"]).arg(&config);
    let url = format!("url.file://{}.insteadOf", repository.display());
    let run =
        run.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", url).env("GIT_CONFIG_VALUE_0", NOWHERE);
    run.args(["check", "advisories"]).visible(LIMIT)?;
    let age = age(path).map_or_else(
        || "of unknown age: keep it as a git repository".to_owned(),
        |days| {
            let stale = if days > STALE_DAYS { ", which is OLD: fetch it anew" } else { "" };
            format!("last changed {days} days ago{stale}")
        },
    );
    Ok(format!("no advisory of {known} concerns a dependency; the database was {age}"))
}

/// Adds to the rules where the database is.
fn with_database(rules: &str, folder: &Path) -> Result<String> {
    let heading = "[advisories]\n";
    let place = rules.find(heading).context("deny.toml has no section [advisories]")? + heading.len();
    let db = folder.join("db");
    Ok(format!("{}db-path = {db:?}\ndb-urls = [{NOWHERE:?}]\n{}", &rules[..place], &rules[place..]))
}

/// Counts the advisories below a folder.
fn count(folder: &Path) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found += count(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found += 1;
        }
    }
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// How many days ago the database was last changed, by the last commit of its repository.
fn age(path: &Path) -> Option<u64> {
    let run = Run::new("git").arg("-c").arg(format!("safe.directory={}", path.display())).arg("-C").arg(path);
    let time: u64 = run.args(["log", "-1", "--format=%ct"]).stdout().ok()?.trim().parse().ok()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    Some(now.saturating_sub(time) / 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a database with one advisory on all versions of a package.
    fn database(folder: &Path, package: &str) {
        let home = folder.join("crates").join(package);
        std::fs::create_dir_all(&home).unwrap();
        let text = format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-2026-9999\"\npackage = \"{package}\"\ndate = \"2026-01-02\"\n\n\
             [versions]\npatched = []\n```\n\n# It answers what nobody asked\n\nA made-up advisory.\n"
        );
        std::fs::write(home.join("RUSTSEC-2026-9999.md"), text).unwrap();
    }

    #[test]
    fn an_advisory_on_a_dependency_fails_and_one_on_another_package_does_not() {
        let context = Context::from_process().unwrap();
        let program = tools::install(&context, &tools::CARGO_DENY).unwrap();
        let dir = tempfile::tempdir().unwrap();
        database(dir.path(), "no-such-package-of-ours");
        let said = advisories(&context, &program, dir.path()).unwrap();
        assert!(said.contains("no advisory of 1"), "{said}");
        database(dir.path(), "anyhow");
        std::fs::remove_dir_all(dir.path().join("crates/no-such-package-of-ours")).unwrap();
        let error = advisories(&context, &program, dir.path()).unwrap_err().to_string();
        assert!(error.contains("advisories"), "{error}");
    }

    #[test]
    fn a_folder_that_is_no_database_is_refused() {
        let context = Context::from_process().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let refused = || advisories(&context, Path::new("cargo-deny"), dir.path()).unwrap_err();
        assert!(refused().to_string().contains("no copy of the advisory database"));
        std::fs::create_dir(dir.path().join("crates")).unwrap();
        assert!(refused().to_string().contains("has no advisory"));
    }

    #[test]
    fn the_database_joins_the_rules_that_are_there() {
        let rules = "[graph]\n\n[advisories]\nyanked = \"warn\"\n";
        let with = with_database(rules, Path::new("/x")).unwrap();
        let wanted =
            format!("[advisories]\ndb-path = \"/x/db\"\ndb-urls = [\"{NOWHERE}\"]\nyanked = \"warn\"\n");
        assert!(with.contains(&wanted), "{with}");
        assert!(with_database("[graph]\n", Path::new("/x")).is_err());
    }

    /// Makes a project of packages by these names and versions, and one that depends on all of them.
    fn project(folder: &Path, packages: &[(&str, &str)]) {
        let write = |name: &str, rest: &str| {
            let home = folder.join(name);
            std::fs::create_dir_all(home.join("src")).unwrap();
            std::fs::write(home.join("src/lib.rs"), "").unwrap();
            let head = format!("[package]\nname = {name:?}\nedition = \"2024\"\npublish = false\n");
            std::fs::write(home.join("Cargo.toml"), format!("{head}{rest}")).unwrap();
        };
        let mut dependencies = "version = \"0.1.0\"\n[dependencies]\n".to_owned();
        for (name, version) in packages {
            write(name, &format!("version = {version:?}\n"));
            dependencies.push_str(&format!("{name} = {{ path = \"../{name}\" }}\n"));
        }
        write("project", &dependencies);
        std::fs::write(folder.join("Cargo.toml"), "[workspace]\nmembers = [\"*\"]\nresolver = \"3\"\n")
            .unwrap();
    }

    /// What the rules of the repository say of that project.
    fn bans(context: &Context, program: &Path, folder: &Path) -> (bool, String) {
        let manifest = folder.join("Cargo.toml");
        let rules = context.root.join("deny.toml");
        let run = Run::new(program).arg("--manifest-path").arg(&manifest).arg("--offline").arg("--config");
        let run = run.arg(&rules).args(["check", "--hide-inclusion-graph", "bans"]);
        let (code, stdout, stderr) = run.answer(LIMIT).unwrap();
        (code == Some(0), stdout + &stderr)
    }

    #[test]
    fn a_second_or_an_old_tls_stack_is_refused() {
        let context = Context::from_process().unwrap();
        let program = tools::install(&context, &tools::CARGO_DENY).unwrap();
        let refused = [
            ("h2", "0.3.27"),
            ("hyper", "0.14.32"),
            ("hyper-rustls", "0.24.2"),
            ("openssl", "0.10.70"),
            ("ring", "0.17.14"),
            ("rustls", "0.21.12"),
            ("rustls-webpki", "0.101.7"),
        ];
        for package in refused {
            let dir = tempfile::tempdir().unwrap();
            project(dir.path(), &[package]);
            let (passed, said) = bans(&context, &program, dir.path());
            assert!(
                !passed && said.contains("error[banned]") && said.contains(package.0),
                "{package:?}: {said}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        project(
            dir.path(),
            &[("h2", "0.4.20"), ("hyper", "1.12.0"), ("rustls", "0.23.46"), ("rustls-webpki", "0.103.16")],
        );
        let (passed, said) = bans(&context, &program, dir.path());
        assert!(passed, "{said}");
    }
}

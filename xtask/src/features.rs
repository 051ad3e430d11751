//! `cargo xtask features`: builds every program that chooses among the providers with each of them alone, with none and
//! with all, and compares what the built program says it has with what was asked for.

mod forgotten;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::bundle::{self, Chooser, Listed, Set};
use crate::command::Run;
use crate::context::Context;

const LIMIT: Duration = Duration::from_secs(40 * 60);
/// What the list of providers begins with in the answer to `help`.
const HEADING: &str = "Providers:";
/// What a program without providers says when it is told to use one.
const NONE: &str = "none was compiled in";

/// The command line of `features`.
pub(crate) fn command() -> Command {
    Command::new("features")
        .about("Builds the programs with each provider alone, with none and with all, and asks them what they have")
        .arg(
            Arg::new("all")
                .long("all")
                .action(ArgAction::SetTrue)
                .help("Also with providers that contain the SDK of a vendor, which take long to build"),
        )
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Only this set: none, a provider, light or all; may be given more than once"),
        )
}

/// Runs the task.
///
/// # Errors
///
/// When a program does not build, or has other providers than it was built with.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let only: Vec<String> = matches.get_many("set").into_iter().flatten().cloned().collect();
    let metadata = context.metadata()?;
    let providers = bundle::providers(&metadata)?;
    // What is named is wanted, heavy or not.
    let mut sets = bundle::sets(&providers, matches.get_flag("all") || !only.is_empty());
    for name in &only {
        let known: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
        ensure!(known.contains(&name.as_str()), "there is no set {name}: the sets are {}", known.join(", "));
    }
    sets.retain(|set| only.is_empty() || only.contains(&set.name));
    let choosers = bundle::choosers(&metadata, &providers)?;
    matrix(context, &providers, &sets, &alone(&choosers))?;
    if only.is_empty() {
        forgotten::check(context, &metadata, &providers, &alone(&choosers))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs as a stage of the test: light providers only, and one build of all programs for each set, so that what they
/// share is compiled once.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn stage(context: &Context) -> Result<String> {
    let metadata = context.metadata()?;
    let providers = bundle::providers(&metadata)?;
    let choosers = bundle::choosers(&metadata, &providers)?;
    let together = [choosers.as_slice()];
    let built = matrix(context, &providers, &bundle::sets(&providers, false), &together)?;
    forgotten::check(context, &metadata, &providers, &together)?;
    Ok(format!("{built} programs have what they were built with; a forgotten provider is refused"))
}

/// Runs as a stage of the test with heavy providers too, and each program alone.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn stage_all(context: &Context) -> Result<String> {
    let metadata = context.metadata()?;
    let providers = bundle::providers(&metadata)?;
    let choosers = bundle::choosers(&metadata, &providers)?;
    let built = matrix(context, &providers, &bundle::sets(&providers, true), &alone(&choosers))?;
    Ok(format!("{built} programs have what they were built with"))
}

/// Each program in a build of its own, as its users build it.
fn alone(choosers: &[Chooser]) -> Vec<&[Chooser]> {
    choosers.iter().map(std::slice::from_ref).collect()
}

/// Builds groups of programs with sets, and returns how many programs that were.
fn matrix(context: &Context, providers: &[Listed], sets: &[Set], groups: &[&[Chooser]]) -> Result<usize> {
    for provider in providers {
        let left_out = !sets.iter().any(|set| set.features.contains(&provider.feature));
        if let Some(why) = provider.heavy.as_ref().filter(|_| left_out) {
            context.say(format!("{}: only with --all: {why}", provider.feature));
        }
    }
    let mut rows = Vec::new();
    for group in groups {
        for set in sets {
            let names: Vec<&str> = group.iter().map(|chooser| chooser.package.as_str()).collect();
            let what = format!("{} with {}", names.join(", "), set.name);
            let start = Instant::now();
            // In one build, one program's features would hide what another forgets: each is asked for alone.
            let mut packages = Vec::new();
            for chooser in *group {
                let linked = linked_packages(context, chooser, set, providers);
                packages.push(linked.with_context(|| what.clone())?);
            }
            build(context, group, set, &[]).with_context(|| what.clone())?;
            let took = start.elapsed();
            for (chooser, packages) in group.iter().zip(packages) {
                let what = format!("{} with {}", chooser.package, set.name);
                let bins = bins(context, chooser);
                let listing = ask(&bins, set, chooser.optional).with_context(|| what.clone())?;
                let found = listing.iter().cloned().collect::<Vec<_>>().join(", ");
                rows.push((what, packages, found));
            }
            context.say(format!("{what}: built in {:.1} s", took.as_secs_f64()));
        }
    }
    context.say(format!("\n{:<40} {:>8}  providers that the program lists", "program", "packages"));
    for (what, packages, found) in &rows {
        let found = if found.is_empty() { "none" } else { found };
        context.say(format!("{what:<40} {packages:>8}  {found}"));
    }
    Ok(rows.len())
}

/// Counts the packages that are linked, and refuses one of a provider that was not chosen.
fn linked_packages(context: &Context, chooser: &Chooser, set: &Set, providers: &[Listed]) -> Result<usize> {
    let linked = bundle::linked(context, &chooser.package, set, &context.host()?)?;
    for provider in providers {
        let is_linked = linked.iter().any(|package| package.split(' ').next() == Some(&provider.package));
        let wanted = set.features.contains(&provider.feature);
        ensure!(
            is_linked == wanted,
            "{} {} linked: see `cargo tree -p {} {} -i {}`",
            provider.package,
            if is_linked { "was not chosen and is" } else { "was chosen and is not" },
            chooser.package,
            set.args().join(" "),
            provider.package
        );
    }
    Ok(linked.len())
}

/// Builds the programs in the development profile, which compiles fastest; `more` are further arguments of cargo.
fn build(context: &Context, group: &[Chooser], set: &Set, more: &[String]) -> Result<()> {
    let packages = group.iter().flat_map(|chooser| ["--package", &chooser.package]);
    let cargo = context.cargo().args(["build", "--quiet", "--locked", "--bins"]).args(packages);
    // Of several packages cargo wants to know whose feature it is.
    let of = |feature| group.iter().map(move |chooser: &Chooser| format!("{}/{feature}", chooser.package));
    let features: Vec<String> = set.features.iter().flat_map(of).collect();
    cargo.args(["--no-default-features", "--features", &features.join(",")]).args(more).visible(LIMIT)?;
    Ok(())
}

/// Where cargo puts the programs of a package.
fn bins(context: &Context, chooser: &Chooser) -> Vec<PathBuf> {
    chooser.bins.iter().map(|bin| context.target.join("debug").join(bin)).collect()
}

/// Asks the programs which providers they have. Without any they refuse to start, unless providers are `optional`.
fn ask(bins: &[PathBuf], set: &Set, optional: bool) -> Result<BTreeSet<String>> {
    let mut answer = None;
    for bin in bins {
        // One of the programs of a package may have nothing to do with providers.
        let Some(found) = help(bin)?.as_deref().and_then(listed) else { continue };
        ensure!(
            found == set.features,
            "{} lists the providers {found:?} and was built with {:?}",
            bin.display(),
            set.features
        );
        if found.is_empty() && !optional {
            refuses_to_start(bin)?;
        }
        answer = Some(found);
    }
    answer.with_context(|| {
        let bins: Vec<String> = bins.iter().map(|bin| bin.display().to_string()).collect();
        format!(
            "none of {} answers `help` with a section {HEADING:?}: give it one, as caa has",
            bins.join(", ")
        )
    })
}

/// What a program prints for `help`; nothing when it knows no such word.
fn help(bin: &Path) -> Result<Option<String>> {
    ensure!(bin.is_file(), "cargo built no {}", bin.display());
    let (code, stdout, stderr) = Run::new(bin).arg("help").env_clear().answer(Duration::from_secs(30))?;
    // The check of the bundle ends a program before it reads its command line.
    ensure!(!stderr.contains("did not register"), "{} does not start: {}", bin.display(), stderr.trim());
    Ok((code == Some(0)).then_some(stdout))
}

/// Reads the names of the section of providers.
fn listed(help: &str) -> Option<BTreeSet<String>> {
    let mut lines = help.lines().skip_while(|line| line.trim() != HEADING);
    lines.next()?;
    let rows = lines.take_while(|line| line.starts_with(' ') && !line.trim_start().starts_with('('));
    Some(rows.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// A program without providers ends at once when it is told to use one, and says why.
fn refuses_to_start(bin: &Path) -> Result<()> {
    let (code, _, stderr) = Run::new(bin).arg("local").env_clear().answer(Duration::from_secs(30))?;
    match code {
        Some(code) if code != 0 && stderr.contains(NONE) => Ok(()),
        _ => bail!("{} has no provider and must end with {NONE:?}, but: {}", bin.display(), stderr.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a program. Another process writes the file: a test that forks at that moment would keep it busy.
    fn write_script(path: &Path, text: &str) {
        let write = "printf %s \"$1\" > \"$0\" && chmod +x \"$0\"";
        Run::new("sh").args(["-c", write]).arg(path).arg(text).stdout().unwrap();
    }

    fn names(list: &[&str]) -> Option<BTreeSet<String>> {
        Some(list.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn the_list_of_providers_is_read_from_the_help() {
        let help = "Usage: x <provider>\n\nProviders:\n  libvirt            machines\n  local  namespaces\n\nx -help\n";
        assert_eq!(listed(help), names(&["libvirt", "local"]));
        assert_eq!(listed("Providers:\n  (none was compiled in)\n\nx\n"), names(&[]));
        assert_eq!(listed("Usage: caactl list | help\n"), None);
    }

    #[test]
    fn a_program_with_other_providers_than_it_was_built_with_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("program");
        let script =
            "#!/bin/sh\nif [ $1 = help ]; then printf 'Providers:\\n  local  x\\n'; else exit 0; fi\n";
        write_script(&bin, script);
        let set =
            |features: &[&str]| Set { name: "x".into(), features: names(features).unwrap(), heavy: false };
        assert_eq!(
            ask(std::slice::from_ref(&bin), &set(&["local"]), false).unwrap(),
            names(&["local"]).unwrap()
        );
        for wrong in [&[][..], &["libvirt"], &["libvirt", "local"]] {
            let error = ask(std::slice::from_ref(&bin), &set(wrong), false).unwrap_err().to_string();
            assert!(error.contains("lists the providers"), "{error}");
        }
    }

    #[test]
    fn a_program_without_providers_must_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("program");
        let none = Set { name: "none".into(), features: BTreeSet::new(), heavy: false };
        let silent = "#!/bin/sh\nif [ $1 = help ]; then echo Providers:; else exit 1; fi\n";
        write_script(&bin, silent);
        assert!(ask(std::slice::from_ref(&bin), &none, false).unwrap_err().to_string().contains(NONE));
        let clear = "#!/bin/sh\nif [ $1 = help ]; then echo Providers:; else echo none was compiled in >&2; exit 1; fi\n";
        write_script(&bin, clear);
        ask(std::slice::from_ref(&bin), &none, false).unwrap();
    }

    #[test]
    fn programs_that_list_no_providers_are_named() {
        let none = Set { name: "none".into(), features: BTreeSet::new(), heavy: false };
        let error = ask(&["/bin/false".into()], &none, false).unwrap_err().to_string();
        assert!(error.contains("/bin/false") && error.contains("section"), "{error}");
    }
}

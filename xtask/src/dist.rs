//! `cargo xtask dist`: the programs as they ship, with checksums, bills of materials, licences and contexts of containers.

pub(crate) mod build;
mod container;
mod licences;
pub(crate) mod programs;
mod sbom;
mod twice;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::Metadata;
use clap::{Arg, ArgAction, ArgMatches, Command};
use sha2::{Digest as _, Sha256};

use self::build::{Builder, Built};
use self::programs::Program;
use crate::bundle::{self, Listed};
use crate::context::Context;

/// The file with the checksums of all others.
const SUMS: &str = "SHA256SUMS";
/// What a result consists of.
const RESULT: [&str; 5] = [SUMS, "bin", "containers", "licenses", "sbom"];

/// What is to be made.
#[derive(Clone, Debug)]
struct Wanted {
    programs: Vec<Program>,
    /// The providers of programs that choose among them.
    features: BTreeSet<String>,
    out: PathBuf,
}

/// The command line of `dist`.
pub(crate) fn command() -> Command {
    Command::new("dist")
        .about("Builds the programs that ship, with checksums, bills of materials and contexts of containers")
        .arg(
            Arg::new("program")
                .long("program")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Only this program; may be given more than once [default: all]"),
        )
        .arg(
            Arg::new("features")
                .long("features")
                .value_name("PROVIDERS")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("The providers, or none [default: all light ones that can be linked statically]"),
        )
        .arg(Arg::new("out").long("out").value_name("DIR").value_parser(clap::value_parser!(PathBuf)).help(
            "Where everything goes; a former result there is replaced [default: dist in the target folder]",
        ))
        .arg(
            Arg::new("twice")
                .long("twice")
                .action(ArgAction::SetTrue)
                .help("Build everything once more from a copy elsewhere, and compare all bytes"),
        )
}

/// Runs the task.
///
/// # Errors
///
/// When something does not build or does not run, or two builds differ.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let metadata = context.metadata()?;
    let all = programs::shipped(&metadata)?;
    let names: Vec<&String> = matches.get_many("program").into_iter().flatten().collect();
    for name in &names {
        let known: Vec<&str> = all.iter().map(|program| program.name).collect();
        ensure!(known.contains(&name.as_str()), "{name} does not ship: what ships is {}", known.join(", "));
    }
    let chosen = |program: &Program| names.is_empty() || names.iter().any(|name| *name == program.name);
    let providers = bundle::providers(&metadata)?;
    let features = match matches.get_many::<String>("features") {
        Some(given) => features(&providers, given)?,
        None => by_default(context, &providers),
    };
    let out = matches.get_one::<PathBuf>("out").cloned().unwrap_or_else(|| context.target.join("dist"));
    // Programs run elsewhere; a path that depends on the current folder would be another one there.
    let out = std::path::absolute(out)?;
    let wanted = Wanted { programs: all.into_iter().filter(chosen).collect(), features, out };
    let mut builder = Builder::new(context, &metadata)?;
    builder.commit = Some(context.commit());
    make(context, &metadata, &builder, &wanted)?;
    if matches.get_flag("twice") {
        println!("{}", twice::check(context, &metadata, &builder, &wanted)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs as a stage of the test: two programs, and everything that goes with them.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn stage(context: &Context) -> Result<String> {
    let metadata = context.metadata()?;
    let mut programs = programs::shipped(&metadata)?;
    // The daemon without providers was built for the limits already, and the gateway takes half a minute.
    programs.retain(|program| ["cloud-api-adaptor", "peerpod-gateway"].contains(&program.name));
    let wanted = Wanted { programs, features: BTreeSet::new(), out: context.target.join("dist-test") };
    make(context, &metadata, &Builder::new(context, &metadata)?, &wanted)
}

/// Runs as a stage of the test: everything that ships, twice, with static and with dynamic providers.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn stage_twice(context: &Context) -> Result<String> {
    let metadata = context.metadata()?;
    let providers = bundle::providers(&metadata)?;
    let programs = programs::shipped(&metadata)?;
    let features = by_default(context, &providers);
    let mut wanted = Wanted { programs, features, out: context.target.join("dist-test") };
    let mut builder = Builder::new(context, &metadata)?;
    builder.commit = Some(context.commit());
    make(context, &metadata, &builder, &wanted)?;
    let said = twice::check(context, &metadata, &builder, &wanted)?;
    // The dynamic ones are tried out as well.
    let light = providers.iter().filter(|provider| provider.heavy.is_none());
    wanted.features = light.map(|provider| provider.feature.clone()).collect();
    wanted.programs.retain(|program| program.name == "cloud-api-adaptor");
    let dynamic = make(context, &metadata, &builder, &wanted)?;
    Ok(format!("{said}; {dynamic}"))
}

/// All providers that need neither an SDK of a vendor nor a dynamic library.
fn by_default(context: &Context, providers: &[Listed]) -> BTreeSet<String> {
    let mut chosen = BTreeSet::new();
    for provider in providers {
        match provider.heavy.as_ref().or(provider.dynamic.as_ref()) {
            Some(why) => context.say(format!(
                "provider {0} is left out: {why}; to have it: cargo xtask dist --features {0}",
                provider.feature
            )),
            None => drop(chosen.insert(provider.feature.clone())),
        }
    }
    chosen
}

fn features<'a>(providers: &[Listed], given: impl Iterator<Item = &'a String>) -> Result<BTreeSet<String>> {
    let known: Vec<&str> = providers.iter().map(|provider| provider.feature.as_str()).collect();
    let mut chosen: BTreeSet<String> = given.filter(|name| !name.is_empty()).cloned().collect();
    if chosen.remove("none") {
        ensure!(chosen.is_empty(), "none goes with no other provider");
    }
    if let Some(name) = chosen.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no provider {name}: the providers are {}", known.join(", "));
    }
    Ok(chosen)
}

/// Makes everything and says in a few words what that was.
fn make(context: &Context, metadata: &Metadata, builder: &Builder, wanted: &Wanted) -> Result<String> {
    let providers = bundle::providers(metadata)?;
    let choosers = bundle::choosers(metadata, &providers)?;
    replaceable(&wanted.out)?;
    // The next build of a program, with other features, writes to the same place.
    let kept = tempfile::tempdir().context("cannot make a folder")?;
    let mut files: BTreeMap<String, (u32, Vec<u8>)> = BTreeMap::new();
    let mut all = Vec::new();
    for program in &wanted.programs {
        let chooses = choosers.iter().any(|chooser| chooser.package == program.package);
        let set = bundle::Set { name: String::new(), features: wanted.features.clone(), heavy: false };
        let args = if chooses { set.args() } else { Vec::new() };
        let dynamic = providers.iter().find_map(|provider| {
            let why = provider.dynamic.as_ref()?;
            (chooses && wanted.features.contains(&provider.feature)).then_some((&provider.feature, why))
        });
        context.say(format!("\n{} for {}", program.name, builder.triple));
        if let Some((feature, why)) = dynamic {
            context.say(format!("it is dynamic because of {feature}: {why}"));
        }
        let built = builder.build(context, program.package, program.name, &args, dynamic.is_none())?;
        let graph = sbom::Graph::read(context, builder, program.package, &args)?;
        let sbom = sbom::write(context, metadata, builder, *program, &built, &graph)?;
        let glibc = dynamic.is_none() && builder.triple.ends_with("-gnu");
        let licences = licences::write(metadata, &graph, glibc)?;
        let how = if dynamic.is_none() { "static" } else { "dynamic" };
        let bytes = std::fs::read(&built.path)?;
        context.say(format!(
            "{}: {how}, {:.1} MB, {} packages",
            program.name,
            bytes.len() as f64 / 1e6,
            graph.linked.len()
        ));
        files.insert(format!("bin/{}", program.name), (0o755, bytes));
        files.insert(format!("sbom/{}.cdx.json", program.name), (0o644, sbom.into_bytes()));
        files.insert(format!("licenses/{}.txt", program.name), (0o644, licences.into_bytes()));
        let path = kept.path().join(program.name);
        write(&path, 0o755, &files[&format!("bin/{}", program.name)].1)?;
        all.push((*program, Built { path, ..built }));
    }
    for (image, inside) in programs::images(&wanted.programs) {
        let (path, tar) = container(context, metadata, builder, image, &inside, &all, &files)?;
        files.insert(path, (0o644, tar));
    }
    let sums: Vec<String> = files
        .iter()
        .map(|(path, (_, bytes))| format!("{}  {path}\n", sbom::hex(&Sha256::digest(bytes))))
        .collect();
    files.insert(SUMS.to_owned(), (0o644, sums.concat().into_bytes()));
    clear(&wanted.out)?;
    for (path, (mode, bytes)) in &files {
        write(&wanted.out.join(path), *mode, bytes)?;
    }
    context.say(format!("\n{} files and {SUMS} in {}", files.len() - 1, wanted.out.display()));
    let names: Vec<&str> = wanted.programs.iter().map(|program| program.name).collect();
    let is_static = all.iter().filter(|(_, built)| built.needs.loader.is_none()).count();
    Ok(format!("{is_static} of {} are static: {}", names.len(), names.join(", ")))
}

/// Makes the context of one image and tries it out.
fn container(
    context: &Context,
    metadata: &Metadata,
    builder: &Builder,
    image: &programs::Image,
    inside: &[Program],
    all: &[(Program, Built)],
    files: &BTreeMap<String, (u32, Vec<u8>)>,
) -> Result<(String, Vec<u8>)> {
    let built: Vec<(Program, Built)> =
        all.iter().filter(|(program, _)| inside.contains(program)).cloned().collect();
    let version = bundle::package(metadata, inside[0].package)?.version.to_string();
    let commit = builder.commit.as_deref().unwrap_or("unknown");
    let mut archive = container::context(image, &version, commit, &built)?;
    for program in inside {
        for (kind, end) in [("sbom", "cdx.json"), ("licenses", "txt")] {
            let name = format!("{}.{end}", program.name);
            let (mode, bytes) = &files[&format!("{kind}/{name}")];
            archive.file(&format!("rootfs/usr/share/{kind}/{name}"), *mode, bytes.clone());
        }
    }
    let tar = archive.tar(builder.epoch)?;
    if nix::unistd::geteuid().is_root() {
        let said = container::try_out(context, &tar, image, inside)?;
        context.say(format!(
            "container {}: runs with nothing but its image: {}",
            image.name,
            said.join("; ")
        ));
    } else {
        context.say(format!("container {}: NOT tried out, since only root may change the root", image.name));
    }
    Ok((format!("containers/{}.tar", image.name), tar))
}

/// Refuses a folder that has something else in it than a former result.
fn replaceable(out: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(()) };
    let names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    let foreign = names.iter().find(|name| !RESULT.contains(&name.as_str()));
    if let Some(name) = foreign.or(names.first().filter(|_| !names.iter().any(|name| name == SUMS))) {
        bail!("{} has {name}, which is no former result: name an empty folder with --out", out.display());
    }
    Ok(())
}

/// Removes a former result.
fn clear(out: &Path) -> Result<()> {
    replaceable(out)?;
    for path in RESULT.map(|name| out.join(name)) {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(path, bytes))
        .and_then(|()| std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_taken_by_name_and_wrong_ones_are_named() {
        let provider = |feature: &str| Listed {
            feature: feature.into(),
            package: format!("cloud-providers-{feature}"),
            heavy: None,
            dynamic: (feature == "libvirt").then(|| "shared only".into()),
        };
        let known = [provider("libvirt"), provider("local")];
        let of = |names: &[&str]| {
            features(&known, names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>().iter())
        };
        assert_eq!(of(&["none"]).unwrap(), BTreeSet::new());
        assert_eq!(of(&["local", "libvirt"]).unwrap().len(), 2);
        assert!(of(&["none", "local"]).is_err());
        assert!(of(&["nowhere"]).unwrap_err().to_string().contains("libvirt, local"));
        let context = Context::from_process().unwrap();
        assert_eq!(by_default(&context, &known), BTreeSet::from(["local".to_owned()]));
    }

    #[test]
    fn only_a_former_result_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        clear(&out).unwrap();
        write(&out.join("bin/x"), 0o755, b"x").unwrap();
        assert!(clear(&out).unwrap_err().to_string().contains("has bin"));
        write(&out.join(SUMS), 0o644, b"").unwrap();
        write(&out.join("thesis.txt"), 0o644, b"years of work").unwrap();
        assert!(clear(&out).unwrap_err().to_string().contains("has thesis.txt"));
        assert!(out.join("bin/x").is_file());
        std::fs::remove_file(out.join("thesis.txt")).unwrap();
        clear(&out).unwrap();
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    }
}

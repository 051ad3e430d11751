//! Packed packages, built where there is no workspace.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use toml_edit::{DocumentMut, InlineTable};

use super::check::{FILES, Problem};
use super::packages::{Package, Packages};
use crate::command::Run;
use crate::context::Context;
use crate::inputs::Digest;
use crate::light;

/// How long one package may take; a machine without any cache needs a third of it.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Packs packages, all at once, so that those that need each other do not have to be in a registry.
///
/// Returns the folder with the files `<name>-<version>.crate`.
///
/// # Errors
///
/// When cargo refuses to pack one.
pub(super) fn pack(context: &Context, packages: &[&Package], more: &[String]) -> Result<PathBuf> {
    let target = context.target.join("packages");
    let mut cargo = context.cargo().args(["package", "--quiet", "--no-verify", "--target-dir"]).arg(&target);
    for package in packages {
        cargo = cargo.args(["--package", &package.name]);
    }
    cargo.args(more).stdout()?;
    Ok(target.join("package"))
}

/// The file of a packed package.
pub(super) fn file_name(package: &Package) -> String {
    format!("{}-{}.crate", package.name, package.version)
}

/// Unpacks a package into a folder, and returns the folder in it that has the manifest.
///
/// # Errors
///
/// When `tar` fails.
pub(super) fn unpack(archive: &Path, package: &Package, folder: &Path) -> Result<PathBuf> {
    // Packed files have a time of long ago, by which cargo would take a changed one for one that it has built.
    Run::new("tar").arg("-xmzf").arg(archive).arg("-C").arg(folder).stdout()?;
    Ok(folder.join(format!("{}-{}", package.name, package.version)))
}

/// Packs and builds each package in a folder of its own, the others taken from their unpacked packages; the SDKs of
/// vendors only where `heavy` says so.
///
/// # Errors
///
/// When a package cannot be packed.
pub(super) fn problems(
    context: &Context,
    packages: &Packages,
    scope: &BTreeSet<String>,
    heavy: bool,
    out: &mut dyn Write,
) -> Result<Vec<Problem>> {
    let metadata = context.metadata()?;
    let order: Vec<&Package> =
        packages.order()?.into_iter().filter(|package| scope.contains(&package.name)).collect();
    // Without lock files nobody asks a registry, which need not have any of the packages yet, nor be crates.io itself.
    let args = ["--allow-dirty", "--exclude-lockfile", "--registry", "crates-io"];
    let archives = pack(context, &order, &args.map(str::to_owned))?;
    // Always the same folder of a clone: cargo keeps what it builds by the path, and would keep it for each one anew.
    // It is not in the target folder, which may lie in the workspace.
    let clone = Digest::new().text(&context.root.to_string_lossy()).short();
    let folder = context.cache.join("archives").join(clone);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
        }
        _ => std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?,
    }
    let mut problems = Vec::new();
    let mut unpacked: Vec<(&Package, PathBuf)> = Vec::new();
    for package in &order {
        let place = unpack(&archives.join(file_name(package)), package, &folder)?;
        for file in FILES {
            if std::fs::metadata(place.join(file)).map_or(0, |meta| meta.len()) == 0 {
                problems.push(Problem::new(&package.name, format!("is packed without {file}"), "add it"));
            }
        }
        // The packages of others are those that the workspace is tested with.
        std::fs::copy(context.root.join("Cargo.lock"), place.join("Cargo.lock"))?;
        unpacked.push((package, place));
    }
    let config = config(context, &folder, &unpacked)?;
    // What is not packed is missed by the compiler's first half, for which clippy has looked at the dependencies already.
    let work = if heavy { "build" } else { "check" };
    for (package, place) in &unpacked {
        writeln!(out, "building {} {} outside of the workspace", package.name, package.version)?;
        let light = light::features(&metadata, &package.name).filter(|_| !heavy);
        if light.is_some() {
            writeln!(out, "{}: without its heavy features, which are built before a release", package.name)?;
        }
        let all = || vec![vec![], vec!["--all-features".to_owned()]];
        for features in light.map_or_else(all, |light| vec![light]) {
            let build = context
                .cargo()
                // The folder has no configuration of the workspace above it, as it is with whoever uses the package.
                .current_dir(place)
                .args([work, "--quiet", "--config"])
                .arg(&config)
                .args(features);
            if let Err(error) = build.visible(LIMIT) {
                let mend = format!(
                    "it uses a file or a dependency that is not packed; `cargo package --list -p {}` shows what is",
                    package.name
                );
                problems.push(Problem::new(
                    &package.name,
                    format!("does not build by itself: {error:#}"),
                    mend,
                ));
                break;
            }
        }
    }
    Ok(problems)
}

/// Writes a configuration that takes the packages from their folders, and has the profiles of the workspace, so that
/// what others wrote does not have to be compiled once more.
fn config(context: &Context, folder: &Path, unpacked: &[(&Package, PathBuf)]) -> Result<PathBuf> {
    let text = std::fs::read_to_string(context.root.join("Cargo.toml"))?;
    let root: DocumentMut = text.parse().context("Cargo.toml is not understood")?;
    let mut config = DocumentMut::new();
    config["patch"] = toml_edit::table();
    config["patch"]["crates-io"] = toml_edit::table();
    for (package, path) in unpacked {
        let mut entry = InlineTable::new();
        entry.insert("path", path.display().to_string().into());
        config["patch"]["crates-io"][&package.name] = toml_edit::value(entry);
    }
    if let Some(profile) = root.get("profile") {
        config["profile"] = profile.clone();
    }
    let path = folder.join("config.toml");
    std::fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

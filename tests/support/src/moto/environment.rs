//! Makes the Python environment of the emulator, once for each list of packages.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::run_python;

const REQUIREMENTS: &str = include_str!("requirements.txt");
/// Written last: an environment without it was left unfinished.
const COMPLETE: &str = "complete";

/// Returns the folder in which environments are kept, after the process environment.
///
/// # Errors
///
/// When neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn moto_cache() -> Result<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME is set: set one, the caches go there")?;
    Ok(cache.join("cloud-providers/python"))
}

/// Makes the environment of the emulator in a folder below `cache`, unless it is there, and returns that folder.
///
/// The name of the folder has a hash of the pinned versions and of the interpreter. Several processes may ask at the
/// same time: one makes it and the others wait.
///
/// # Errors
///
/// When there is no Python with its module `venv`, or a package cannot be had; with the line to run where one helps.
pub fn install_moto(cache: &Path) -> Result<PathBuf> {
    let python = find_python()?;
    let key: String = Sha256::digest(format!("{REQUIREMENTS}{python:?}"))
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect();
    let folder = cache.join(format!("moto-{key}"));
    if is_complete(&folder) {
        return Ok(folder);
    }
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = cache.join("lock");
    let file = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    let _held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    if is_complete(&folder) {
        return Ok(folder);
    }
    // Scripts of an environment hold its path, so that it cannot be made elsewhere and moved here.
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    eprintln!("making a Python environment with moto in {}, about a minute, once", folder.display());
    let place = folder.to_str().context("the path of the cache is not UTF-8")?;
    run_python(&python.program, &["-m", "venv", place])?;
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, REQUIREMENTS)
        .with_context(|| format!("cannot write {}", requirements.display()))?;
    let requirements = requirements.to_str().context("the path of the cache is not UTF-8")?;
    // Only wheels: nothing of a package is executed while it is installed. Without the step that completes the list,
    // a version that nobody pinned would be taken.
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let args = [&quiet[..], &["--only-binary", ":all:", "--requirement", requirements]].concat();
    let own = folder.join("bin/python");
    run_python(&own, &args)?;
    // A package that the list lacks is noticed here and not in the middle of a test.
    run_python(&own, &["-m", "pip", "check", "--disable-pip-version-check"])?;
    std::fs::write(folder.join(COMPLETE), "").context("cannot mark the environment as complete")?;
    Ok(folder)
}

fn is_complete(folder: &Path) -> bool {
    // The interpreter is a link: one that was upgraded away leaves it dangling.
    folder.join(COMPLETE).exists() && folder.join("bin/python").exists()
}

/// An interpreter that can make environments.
#[derive(Debug)]
struct Python {
    program: PathBuf,
    #[expect(dead_code, reason = "the key of the environment is made of its Debug form")]
    version: String,
}

/// Returns the first interpreter with what environments are made of.
fn find_python() -> Result<Python> {
    let mut tried = Vec::new();
    // The first one on the path may be one that somebody built without some modules.
    for program in ["python3", "/usr/bin/python3"].map(PathBuf::from) {
        let asked = ["-c", "import ensurepip, sys, venv; print(sys.executable); print(sys.version)"];
        match run_python(&program, &asked) {
            Ok(text) => match text.split_once('\n') {
                Some((path, version)) if !path.is_empty() => {
                    return Ok(Python { program: path.into(), version: version.trim().to_owned() });
                }
                _ => tried.push(format!("{} printed {text:?}", program.display())),
            },
            Err(error) => tried.push(format!("{error:#}")),
        }
    }
    bail!(
        "no Python can make an environment for the emulator of EC2; run: apt-get install -y python3-venv\n{}",
        tried.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned() {
        let packages: Vec<&str> =
            REQUIREMENTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert!(packages.len() > 5);
        for package in packages {
            assert!(package.contains("==") && !package.contains(';'), "{package}");
        }
    }

    #[test]
    fn an_unfinished_environment_is_no_environment() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_complete(folder.path()));
        std::fs::write(folder.path().join(COMPLETE), "").unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        let python = folder.path().join("bin/python");
        std::os::unix::fs::symlink("/no/such/python", &python).unwrap();
        assert!(!is_complete(folder.path()), "its interpreter is gone");
        std::fs::remove_file(&python).unwrap();
        std::fs::write(&python, "").unwrap();
        assert!(is_complete(folder.path()));
    }
}

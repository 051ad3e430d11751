//! Tools of the test that cargo can build, kept in the cache by version and compiler.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::context::Context;
use crate::inputs::Digest;

/// A program from the registry.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
    args: &'static [&'static str],
}

/// Checks licences, sources and bans.
pub(crate) const CARGO_DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", args: &[] };

/// Builds the book; its server and search index are not needed.
pub(crate) const MDBOOK: Tool = Tool { name: "mdbook", version: "0.5.4", args: &["--no-default-features"] };

/// Returns the path of the tool, built first when the cache has none of this version.
///
/// # Errors
///
/// When the registry cannot be reached or the tool does not build.
pub(crate) fn install(context: &Context, tool: &Tool) -> Result<PathBuf> {
    let key = Digest::new().text(tool.name).text(tool.version).text(&context.rustc).short();
    let tools = context.cache.join("tools");
    let root = tools.join(format!("{}-{}-{key}", tool.name, tool.version));
    let program = root.join("bin").join(tool.name);
    once(&tools, &program, || {
        println!("installing {} {} with cargo, about two minutes, once", tool.name, tool.version);
        let start = Instant::now();
        let build = tools.join("build");
        let run = context
            .cargo()
            // Unoptimised builds take a third of the time, and the tools run for a second.
            .args(["install", "--quiet", "--locked", "--debug", "--force"])
            .args(tool.args)
            .arg(format!("{}@{}", tool.name, tool.version))
            .arg("--root")
            .arg(&root)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_TARGET_DIR", &build);
        run.visible(Duration::from_secs(30 * 60))?;
        std::fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
        println!("installed {} in {:.0} s", tool.name, start.elapsed().as_secs_f64());
        Ok(())
    })?;
    Ok(program)
}

/// Makes `program` where it is missing. Of several that want it at once, or another one of the folder, one makes it and
/// the others wait.
fn once(tools: &Path, program: &Path, make: impl FnOnce() -> Result<()>) -> Result<()> {
    if program.is_file() {
        return Ok(());
    }
    std::fs::create_dir_all(tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let lock = tools.join("lock");
    let file = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
    let _turn = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("cannot lock {}", lock.display()))?;
    if !program.is_file() {
        make()?;
        ensure!(program.is_file(), "cargo install left no {}", program.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_several_want_at_once_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        let (made, at_work) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let make = || {
            assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "two make it");
            std::thread::sleep(Duration::from_millis(20));
            std::fs::write(&program, "")?;
            at_work.fetch_sub(1, Ordering::SeqCst);
            made.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| once(dir.path(), &program, make).unwrap());
            }
        });
        assert_eq!(made.into_inner(), 1);
        let told = once(dir.path(), &dir.path().join("other"), || Ok(())).unwrap_err().to_string();
        assert!(told.contains("left no"), "{told}");
    }
}

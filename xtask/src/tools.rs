//! Tools of the test that cargo can build, kept in the cache by version and compiler.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

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
    let root = context.cache.join("tools").join(format!("{}-{}-{key}", tool.name, tool.version));
    let program = root.join("bin").join(tool.name);
    if program.is_file() {
        return Ok(program);
    }
    println!("installing {} {} with cargo, about two minutes, once", tool.name, tool.version);
    let start = Instant::now();
    let build = context.cache.join("tools/build");
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
    ensure!(program.is_file(), "cargo install left no {}", program.display());
    println!("installed {} in {:.0} s", tool.name, start.elapsed().as_secs_f64());
    Ok(program)
}

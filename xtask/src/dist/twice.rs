//! The same bytes from two builds: everything is built once more from a copy in another folder, by another cargo target
//! folder, and compared file by file.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Metadata;

use super::build::Builder;
use super::{SUMS, Wanted, make};
use crate::context::Context;

/// Makes everything again and compares it with what was made.
///
/// # Errors
///
/// When a file differs, naming each.
pub(super) fn check(
    context: &Context,
    metadata: &Metadata,
    builder: &Builder,
    wanted: &Wanted,
) -> Result<String> {
    // Other lengths and depths of paths than those of the first build.
    let folder =
        tempfile::Builder::new().prefix("another-place-").tempdir().context("cannot make a folder")?;
    let root = folder.path().join("a/b/source-of-a-release");
    for file in context.files()? {
        let to = root.join(&file);
        std::fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        std::fs::copy(context.root.join(&file), &to)
            .with_context(|| format!("cannot copy {}", file.display()))?;
    }
    let again = Builder { root, target: folder.path().join("t"), ..builder.clone() };
    context.say(format!("\nonce more in {}", again.root.display()));
    let other = Wanted { out: folder.path().join("out"), ..wanted.clone() };
    make(context, metadata, &again, &other)?;
    compare(&wanted.out, &other.out)
}

/// Compares the lists of checksums.
fn compare(one: &Path, other: &Path) -> Result<String> {
    let read = |folder: &Path| {
        let path = folder.join(SUMS);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (one, other) = (read(one)?, read(other)?);
    let differ: Vec<&str> = one
        .lines()
        .filter(|line| !other.lines().any(|found| found == *line))
        .map(|line| line.split_whitespace().nth(1).unwrap_or(line))
        .collect();
    if !differ.is_empty() || one != other {
        bail!("two builds differ in {}", differ.join(", "));
    }
    Ok(format!("{} files have the same bytes from two builds in different folders", one.lines().count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_differ_are_named() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(one.path().join(SUMS), "aa  bin/x\nbb  bin/y\n").unwrap();
        std::fs::write(other.path().join(SUMS), "aa  bin/x\nbb  bin/y\n").unwrap();
        assert!(compare(one.path(), other.path()).unwrap().starts_with("2 files"));
        std::fs::write(other.path().join(SUMS), "aa  bin/x\ncc  bin/y\n").unwrap();
        let error = compare(one.path(), other.path()).unwrap_err().to_string();
        assert_eq!(error, "two builds differ in bin/y");
        std::fs::write(other.path().join(SUMS), "aa  bin/x\nbb  bin/y\ndd  bin/z\n").unwrap();
        assert!(compare(one.path(), other.path()).is_err());
    }
}

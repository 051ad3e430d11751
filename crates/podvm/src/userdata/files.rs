//! Writes files so that a reader sees the old one or the whole new one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use tracing::info;

use crate::paths::{self, Paths};

/// Files that carry keys, credentials, or configuration in which users put such: only root reads them.
const SECRET: &[&str] = &[paths::APF_CONFIG, paths::AUTH_JSON, paths::CDH_CONFIG, paths::INITDATA];

/// Replaces the file at `path` (below the root of `paths`) with `content`.
///
/// Units start when such a file appears, so it must be whole by then: it is written beside, flushed to disk and renamed.
pub(super) fn write(paths: &Paths, path: &str, content: &[u8]) -> Result<()> {
    let mode = if SECRET.contains(&path) { 0o600 } else { 0o644 };
    let target = paths.at(path);
    replace(&target, content, mode).with_context(|| format!("write {}", target.display()))?;
    info!(path, bytes = content.len(), "wrote file");
    Ok(())
}

fn replace(target: &Path, content: &[u8], mode: u32) -> Result<()> {
    let folder = target.parent().context("the path has no folder")?;
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let mut name = target.file_name().context("the path has no file name")?.to_owned();
    name.push(".tmp");
    let beside = folder.join(name);
    // A left-over of an interrupted run may be a link or readable by others: start from nothing.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, target)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn secrets_are_for_root_only_and_folders_are_listable() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        for path in [paths::APF_CONFIG, paths::AUTH_JSON, paths::CDH_CONFIG, paths::INITDATA] {
            write(&paths, path, b"x").unwrap();
            assert_eq!(mode(&paths.at(path)), 0o600, "{path}");
        }
        write(&paths, paths::AA_CONFIG, b"x").unwrap();
        assert_eq!(mode(&paths.at(paths::AA_CONFIG)), 0o644);
        assert_eq!(mode(&paths.at(paths::PEERPOD_DIR)), 0o755);
    }

    #[test]
    fn a_readable_file_of_an_earlier_image_becomes_secret() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        fs::create_dir_all(paths.at(paths::PEERPOD_DIR)).unwrap();
        fs::write(paths.at(paths::AUTH_JSON), b"{}").unwrap();
        fs::set_permissions(paths.at(paths::AUTH_JSON), Permissions::from_mode(0o644)).unwrap();
        write(&paths, paths::AUTH_JSON, b"secret").unwrap();
        assert_eq!(mode(&paths.at(paths::AUTH_JSON)), 0o600);
        assert_eq!(fs::read(paths.at(paths::AUTH_JSON)).unwrap(), b"secret");
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing_beside() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        // A folder in the file's place makes the rename fail after everything was written.
        fs::create_dir_all(paths.at(paths::AA_CONFIG).join("in-the-way")).unwrap();
        let error = write(&paths, paths::AA_CONFIG, b"x").unwrap_err();
        assert!(format!("{error:#}").contains("aa.toml"), "{error:#}");
        let left: Vec<_> = fs::read_dir(paths.at(paths::PEERPOD_DIR)).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

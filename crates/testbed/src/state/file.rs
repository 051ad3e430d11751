//! Writes files that are either old or new, never half of each, and that nobody else reads.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{ErrorKind as IoKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use cloud_providers::{Error, Result};

/// Makes a folder for the user alone, with what is missing above it, or takes the rights of others away from it.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::config("cannot make the folder").with("path", path.display()).with_source(error)
    };
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        fs::create_dir_all(above).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == IoKind::AlreadyExists => {
            let found = fs::metadata(path).map_err(failed)?;
            if !found.is_dir() {
                return Err(Error::config("there is a file where a folder is to be")
                    .with("path", path.display())
                    .with("mend", "move the file away or name another folder with --env"));
            }
            if found.permissions().mode() & 0o077 != 0 {
                fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)?;
            }
            Ok(())
        }
        other => other.map_err(failed),
    }
}

/// Replaces the file at `path` by one with `content`, for the user alone. Returns when it is safe against a crash.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, content)
        .map_err(|error| Error::internal("cannot write").with("path", path.display()).with_source(error))
}

fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new.{}", std::process::id()));
    let fresh: PathBuf = folder.join(name);
    // What a killed process of the same number left would keep its own rights.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != IoKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/env");
        private_folder(path.parent().unwrap()).unwrap();
        write_private(&path, b"one").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let folder = path.parent().unwrap();
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_folder_that_others_could_read_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        private_folder(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        fs::write(&path, "mine").unwrap();
        let text = private_folder(&path).unwrap_err().to_string();
        assert!(text.contains("there is a file") && text.contains("--env"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}

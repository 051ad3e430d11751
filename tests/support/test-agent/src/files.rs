//! CopyFile: files, folders and links that the node sends in pieces.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use peerpod_proto::messages::agent::CopyFileRequest;

/// Only below this folder may the node write.
const BASE: &str = "/run/kata-containers";

const TYPE_MASK: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// Writes one piece; the file appears under its name with the last one.
pub(crate) fn copy(root: &Path, request: &CopyFileRequest) -> Result<()> {
    let path = place(root, &request.path)?;
    ensure!(request.offset >= 0 && request.file_size >= 0, "negative offset or size");
    let parent = path.parent().context("the path has no folder")?;
    make_folders(parent, request.dir_mode)?;
    let ids = (u32::try_from(request.uid).ok(), u32::try_from(request.gid).ok());
    match request.file_mode & TYPE_MASK {
        FOLDER => {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
            fs::set_permissions(&path, Permissions::from_mode(request.file_mode & 0o7777))?;
        }
        LINK => {
            remove_if_there(&path)?;
            symlink(OsStr::from_bytes(&request.data), &path)?;
        }
        _ => {
            let beside = path.with_extension("copying");
            let file =
                OpenOptions::new().write(true).create(true).truncate(request.offset == 0).open(&beside)?;
            file.write_all_at(&request.data, request.offset as u64)?;
            if file.metadata()?.len() < request.file_size as u64 {
                return Ok(());
            }
            file.set_permissions(Permissions::from_mode(request.file_mode & 0o7777))?;
            fs::rename(&beside, &path)?;
        }
    }
    lchown(&path, ids.0, ids.1)?;
    Ok(())
}

/// Places a path of the node below the root.
///
/// # Errors
///
/// When it leaves [`BASE`].
pub(crate) fn place(root: &Path, path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    ensure!(plain && path.starts_with(BASE), "path {} must be below {BASE}", path.display());
    Ok(root.join(path.strip_prefix("/").unwrap_or(path)))
}

fn make_folders(folder: &Path, mode: u32) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    if mode != 0 {
        fs::set_permissions(folder, Permissions::from_mode(mode & 0o7777))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, mode: u32, size: i64, offset: i64, data: &'static str) -> CopyFileRequest {
        CopyFileRequest {
            path: format!("/run/kata-containers/shared/{path}"),
            file_size: size,
            file_mode: mode,
            dir_mode: 0o750,
            uid: 0,
            gid: 0,
            offset,
            data: data.into(),
        }
    }

    #[test]
    fn pieces_become_one_file_that_appears_when_it_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("run/kata-containers/shared/a");
        copy(root.path(), &request("a", 0o100_640, 5, 0, "hel")).unwrap();
        assert!(!target.exists());
        copy(root.path(), &request("a", 0o100_640, 5, 3, "lo")).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "hello");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o640);
        copy(root.path(), &request("a", 0o100_640, 1, 0, "x")).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "x");
    }

    #[test]
    fn folders_and_links_are_made_and_made_again() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("run/kata-containers/shared");
        for _ in 0..2 {
            copy(root.path(), &request("d", 0o040_711, 0, 0, "")).unwrap();
            copy(root.path(), &request("d/l", 0o120_777, 6, 0, "../a/b")).unwrap();
        }
        assert_eq!(fs::metadata(base.join("d")).unwrap().permissions().mode() & 0o7777, 0o711);
        assert_eq!(fs::read_link(base.join("d/l")).unwrap(), Path::new("../a/b"));
    }

    #[test]
    fn paths_outside_the_shared_folder_are_refused() {
        let root = tempfile::tempdir().unwrap();
        for path in
            ["/etc/passwd", "/run/kata-containers/../../etc/passwd", "relative", "/run/kata-containersx/a"]
        {
            assert!(
                place(root.path(), path).unwrap_err().to_string().contains("/run/kata-containers"),
                "{path}"
            );
        }
    }
}

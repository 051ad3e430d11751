//! The folder of a sandbox: private, and gone with the sandbox.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Name of the agent socket in a sandbox's folder.
pub const AGENT_SOCKET: &str = "agent.ttrpc";
const APF: &str = "apf.json";

/// Returns the path of a sandbox's agent socket.
pub fn agent_socket(pods_dir: &Path, id: &str) -> PathBuf {
    pods_dir.join(id).join(AGENT_SOCKET)
}

/// Makes the folder (0700) and writes the copy of the forwarder's configuration (0600) for people who debug.
///
/// # Errors
///
/// The file system's. What was made stays for [`remove`].
pub fn create(pods_dir: &Path, id: &str, apf: &str) -> io::Result<()> {
    let dir = pods_dir.join(id);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(dir.join(APF))?;
    file.write_all(apf.as_bytes())
}

/// Removes the folder with all it holds; a folder that is not there is fine.
///
/// # Errors
///
/// The file system's.
pub fn remove(pods_dir: &Path, id: &str) -> io::Result<()> {
    match fs::remove_dir_all(pods_dir.join(id)) {
        // A file where the folder of all sandboxes should be holds nothing of this one.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_of_a_sandbox_are_private_and_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), "s1", "{}").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("s1")), 0o700);
        assert_eq!(mode(&dir.path().join("s1/apf.json")), 0o600);
        remove(dir.path(), "s1").unwrap();
        remove(dir.path(), "s1").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! The key pair with which machines are logged in to.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cloud_providers::{Error, Result};
use rand::TryRngCore as _;
use ssh_key::{LineEnding, PrivateKey, private::Ed25519Keypair};

use super::{
    Folder,
    file::{private_folder, write_private},
};
use crate::Access;

/// Fills in what `access` lacks: the public key of a private key that is named, or a pair that is made in the
/// environment's folder.
///
/// # Errors
///
/// When a key that is named cannot be read.
pub fn provide_access(folder: &Folder, access: &mut Access) -> Result<()> {
    match (&access.private_key, &access.public_key) {
        // A public key alone means that an agent holds the other half.
        (_, Some(_)) => {}
        (Some(private), None) => access.public_key = Some(public_of(private)?),
        (None, None) => {
            let (private, public) = pair_in(folder)?;
            access.private_key = Some(private);
            access.public_key = Some(public);
        }
    }
    Ok(())
}

/// Does what [`provide_access`] does without writing anything: for a look at what would be made.
///
/// # Errors
///
/// When a key that is named cannot be read.
pub fn pretend_access(folder: &Folder, access: &mut Access) -> Result<()> {
    if access.private_key.is_none() && access.public_key.is_none() && !path_in(folder).exists() {
        access.public_key = Some(make()?.public_key().to_openssh().map_err(failed)?);
        return Ok(());
    }
    provide_access(folder, access)
}

fn path_in(folder: &Folder) -> PathBuf {
    folder.path().join("ssh").join("id_ed25519")
}

fn failed(error: ssh_key::Error) -> Error {
    Error::internal("cannot make a key pair").with_source(error)
}

fn make() -> Result<PrivateKey> {
    let mut seed = [0; 32];
    rand::rngs::OsRng
        .try_fill_bytes(&mut seed)
        .map_err(|error| Error::internal("the system gives no random numbers").with_source(error))?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment("testbed");
    Ok(key)
}

/// Returns the pair of the environment, made when there is none.
fn pair_in(folder: &Folder) -> Result<(PathBuf, String)> {
    let path = path_in(folder);
    if path.exists() {
        let public = public_of(&path)?;
        return Ok((path, public));
    }
    private_folder(&folder.path().join("ssh"))?;
    let key = make()?;
    let public = key.public_key().to_openssh().map_err(failed)?;
    let private = key.to_openssh(LineEnding::LF).map_err(failed)?;
    // The private half last: with it the pair is complete.
    write_private(&path.with_extension("pub"), format!("{public}\n").as_bytes())?;
    write_private(&path, private.as_bytes())?;
    Ok((path, public))
}

/// Returns the public key that belongs to the private key in `path`.
fn public_of(path: &Path) -> Result<String> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".pub");
    if let Ok(text) = fs::read_to_string(&beside) {
        return Ok(text.trim().to_owned());
    }
    let unreadable = |what: &str| {
        Error::config(what).with("path", path.display()).with(
            "mend",
            "name a private key of OpenSSH with its .pub file beside it, or leave `key` out: a pair is made then",
        )
    };
    let text = fs::read_to_string(path)
        .map_err(|error| unreadable("cannot read the private key").with_source(error))?;
    // The public half stands unencrypted in an encrypted key, too.
    let key = PrivateKey::from_openssh(text)
        .map_err(|error| unreadable("this is no private key of OpenSSH").with_source(error))?;
    key.public_key()
        .to_openssh()
        .map_err(|error| unreadable("cannot write the public key").with_source(error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_pair_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("env"));
        folder.create().unwrap();
        let mut looked = Access::default();
        pretend_access(&folder, &mut looked).unwrap();
        assert!(looked.public_key.is_some() && !folder.path().join("ssh").exists());
        let mut first = Access::default();
        provide_access(&folder, &mut first).unwrap();
        let mut second = Access::default();
        provide_access(&folder, &mut second).unwrap();
        assert_eq!(first, second);
        let path = first.private_key.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(first.public_key.as_deref().unwrap().starts_with("ssh-ed25519 "));
        // Without the file beside it the public half comes from the private one.
        fs::remove_file(path.with_extension("pub")).unwrap();
        let mut named = Access { private_key: Some(path), ..Access::default() };
        provide_access(&folder, &mut named).unwrap();
        assert_eq!(named.public_key, first.public_key);
    }

    #[test]
    fn a_key_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let mut access = Access { private_key: Some(path.clone()), ..Access::default() };
        let folder = Folder::new(dir.path());
        assert!(provide_access(&folder, &mut access).unwrap_err().report().contains("cannot read"));
        fs::write(&path, "hello").unwrap();
        assert!(provide_access(&folder, &mut access).unwrap_err().report().contains("no private key"));
    }
}

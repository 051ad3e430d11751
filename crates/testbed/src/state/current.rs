//! Which environment a command is about.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use cloud_providers::{Error, ErrorKind, Result};

use super::Folder;

/// The link to the environment that was worked on last.
const CURRENT: &str = "current";

/// Makes `current` in `folder` point to `environment`.
///
/// # Errors
///
/// When something that is no link is there, or it cannot be written. Nothing depends on it: a warning is enough.
pub fn point_current(folder: &Path, environment: &Path) -> Result<()> {
    let link = folder.join(CURRENT);
    let failed = |error: std::io::Error| {
        Error::config("cannot point the link to the environment")
            .with("link", link.display())
            .with_source(error)
    };
    match fs::symlink_metadata(&link) {
        Ok(found) if !found.file_type().is_symlink() => {
            return Err(Error::config("`current` is no link and was left as it is")
                .with("path", link.display())
                .with("mend", "name the environment with --env in later commands"));
        }
        Ok(_) if fs::read_link(&link).is_ok_and(|to| to == environment) => return Ok(()),
        _ => {}
    }
    // A new link is moved over the old one, so that there is always one.
    let fresh = folder.join(format!("{CURRENT}.new.{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    symlink(environment, &fresh).map_err(failed)?;
    fs::rename(&fresh, &link).map_err(|error| {
        let _ = fs::remove_file(&fresh);
        failed(error)
    })
}

/// Returns the environment that a later command is about: `named`, or what `current` in `folder` points to, or
/// `fallback` when it has a state.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when there is none.
pub fn find(folder: &Path, named: Option<&Path>, fallback: Option<PathBuf>) -> Result<Folder> {
    if let Some(named) = named {
        let found = Folder::new(folder.join(named));
        return if found.file().exists() {
            Ok(found)
        } else {
            Err(Error::new(ErrorKind::NotFound, "there is no environment in this folder")
                .with("folder", named.display())
                .with("mend", "name the folder that `testbed up` made, or run `testbed up` first"))
        };
    }
    let link = folder.join(CURRENT);
    let of_link = fs::read_link(&link).ok().map(|to| Folder::new(folder.join(to)));
    let of_document = fallback.map(Folder::new);
    of_link.into_iter().chain(of_document).find(|found| found.file().exists()).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "there is no environment here")
            .with("looked for", link.display())
            .with(
                "mend",
                "run `testbed up` first, go to the folder where it ran, or name the environment with --env",
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_follows_the_last_environment_and_spares_what_is_no_link() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let environment = dir.path().join(name);
            fs::create_dir(&environment).unwrap();
            fs::write(environment.join("env"), "{}").unwrap();
            point_current(dir.path(), &environment).unwrap();
            point_current(dir.path(), &environment).unwrap();
            assert_eq!(find(dir.path(), None, None).unwrap().path(), environment);
        }
        fs::remove_file(dir.path().join("current")).unwrap();
        fs::write(dir.path().join("current"), "mine").unwrap();
        assert!(point_current(dir.path(), dir.path()).unwrap_err().to_string().contains("no link"));
        assert_eq!(fs::read(dir.path().join("current")).unwrap(), b"mine");
        let one = dir.path().join("one");
        assert_eq!(find(dir.path(), None, Some(one.clone())).unwrap().path(), one);
    }

    #[test]
    fn without_an_environment_it_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        for named in [None, Some(Path::new("nowhere"))] {
            let error = find(dir.path(), named, None).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains("testbed up"), "{error}");
        }
    }
}

//! Certificates in files that somebody replaces while we run.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

/// Something made of the content of files, made anew when they have other content.
///
/// Names are looked up and files read at each [`Rotating::current`], so it does not matter how they are replaced: by
/// writing, by renaming, or by Kubernetes' exchange of a link to their folder. Content that makes nothing, as half of a
/// replacement does, is told once, and what was made before stays in use.
pub struct Rotating<T> {
    paths: Vec<PathBuf>,
    state: Mutex<State<T>>,
}

/// What the files held; one entry for each path.
type Contents = Vec<Zeroizing<Vec<u8>>>;

struct State<T> {
    made: Arc<T>,
    from: Contents,
    /// Content that made nothing, or why it could not be read.
    refused: Option<Result<Contents, String>>,
}

impl<T> Rotating<T> {
    /// Reads the files and makes the first.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, with its path, or `make` fails.
    pub fn new<E: From<io::Error>>(
        paths: Vec<PathBuf>,
        make: impl FnOnce(&[Zeroizing<Vec<u8>>]) -> Result<T, E>,
    ) -> Result<Self, E> {
        let from = read_all(&paths)?;
        let made = Arc::new(make(&from)?);
        Ok(Self { paths, state: Mutex::new(State { made, from, refused: None }) })
    }

    /// What the files make now, or made when they last made something, and whether it is new.
    pub fn current<E: Display>(
        &self,
        make: impl FnOnce(&[Zeroizing<Vec<u8>>]) -> Result<T, E>,
    ) -> (Arc<T>, bool) {
        let read = read_all(&self.paths);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = match read {
            Ok(contents) => contents,
            Err(error) => {
                let error = error.to_string();
                if !matches!(&state.refused, Some(Err(told)) if *told == error) {
                    self.tell(&error);
                    state.refused = Some(Err(error));
                }
                return (Arc::clone(&state.made), false);
            }
        };
        if contents == state.from {
            if state.refused.take().is_some() {
                tracing::info!(files = self.names(), "the certificates are again those in use");
            }
            return (Arc::clone(&state.made), false);
        }
        if matches!(&state.refused, Some(Ok(refused)) if *refused == contents) {
            return (Arc::clone(&state.made), false);
        }
        match make(&contents) {
            Ok(made) => {
                tracing::info!(
                    files = self.names(),
                    "the certificates were replaced, and the new ones are used from now on"
                );
                *state = State { made: Arc::new(made), from: contents, refused: None };
                (Arc::clone(&state.made), true)
            }
            Err(error) => {
                self.tell(&error);
                state.refused = Some(Ok(contents));
                (Arc::clone(&state.made), false)
            }
        }
    }

    fn tell(&self, error: &dyn Display) {
        tracing::warn!(
            files = self.names(),
            error = format!("{error:#}"),
            "the certificates were replaced by what cannot be used, and the earlier ones stay in use"
        );
    }

    fn names(&self) -> String {
        self.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

fn read_all(paths: &[PathBuf]) -> io::Result<Contents> {
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    fs::read(path)
        .map(Zeroizing::new)
        .map_err(|error| io::Error::new(error.kind(), format!("read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Zeroizing<Vec<u8>>]) -> Result<Vec<u32>, io::Error> {
        contents
            .iter()
            .map(|content| {
                let text = std::str::from_utf8(content).map_err(io::Error::other)?;
                text.trim().parse().map_err(io::Error::other)
            })
            .collect()
    }

    #[test]
    fn files_are_followed_however_they_are_replaced_and_what_is_broken_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // As the kubelet lays out a volume: names that lead through one link.
        for (version, content) in [("v1", "1"), ("v2", "2"), ("v3", "broken")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("n"), content).unwrap();
        }
        let exchange = |version: &str| {
            std::os::unix::fs::symlink(version, at("data_tmp")).unwrap();
            fs::rename(at("data_tmp"), at("data")).unwrap();
        };
        exchange("v1");
        std::os::unix::fs::symlink("data/n", at("n")).unwrap();
        fs::write(at("m"), "7").unwrap();
        let files = Rotating::new(vec![at("n"), at("m")], number).unwrap();
        let current = || {
            let (made, new) = files.current(number);
            (made.to_vec(), new)
        };
        assert_eq!(current(), (vec![1, 7], false));
        exchange("v2");
        assert_eq!(current(), (vec![2, 7], true));
        assert_eq!(current(), (vec![2, 7], false));
        exchange("v3");
        assert_eq!(current(), (vec![2, 7], false));
        fs::remove_file(at("m")).unwrap();
        assert_eq!(current(), (vec![2, 7], false));
        exchange("v1");
        fs::write(at("new"), "8").unwrap();
        fs::rename(at("new"), at("m")).unwrap();
        assert_eq!(current(), (vec![1, 8], true));
    }

    #[test]
    fn what_is_missing_at_the_start_is_named() {
        let error = Rotating::new(vec!["/nonexistent/tls.crt".into()], number).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/tls.crt"), "{error}");
    }
}

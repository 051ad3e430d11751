//! Executables of providers on the search path.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use cloud_providers::{EnvSource, ProcessEnv};

use crate::plugin::Limits;

/// The variable with the folders that are looked at before those of `PATH`.
pub const PROVIDER_PATH: &str = "TESTBED_PROVIDER_PATH";

/// How the file of a provider begins.
const PREFIX: &str = "testbed-provider-";

/// Where providers are looked for, and where their options may come from.
#[derive(Clone)]
pub struct Search {
    env: Arc<dyn EnvSource>,
    folders: Vec<(&'static str, Vec<PathBuf>)>,
    limits: Limits,
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment may hold credentials.
        f.debug_struct("Search").field("folders", &self.folders).finish_non_exhaustive()
    }
}

impl Default for Search {
    fn default() -> Self {
        Self::new(Arc::new(ProcessEnv))
    }
}

impl Search {
    /// Takes the folders from the variables `TESTBED_PROVIDER_PATH` and `PATH` of `env`.
    pub fn new(env: Arc<dyn EnvSource>) -> Self {
        let folders = [PROVIDER_PATH, "PATH"].map(|variable| {
            let value = env.variable(variable).unwrap_or_default();
            // An empty entry means the current folder to a shell. A program from whatever folder one stands in is not run.
            let folders = std::env::split_paths(&value).filter(|f| !f.as_os_str().is_empty()).collect();
            (variable, folders)
        });
        Self { env, folders: folders.into(), limits: Limits::default() }
    }

    /// Sets the bounds on executables.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Returns where options come from that the document does not give.
    pub fn env(&self) -> &dyn EnvSource {
        &*self.env
    }

    /// Says where executables are looked for, for messages.
    pub(super) fn places(&self) -> String {
        let mut places = vec!["what is linked in".to_owned()];
        for (variable, folders) in &self.folders {
            let list = folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(":");
            let list = if list.is_empty() { "not set".to_owned() } else { list };
            places.push(format!("{PREFIX}<name> in {variable} ({list})"));
        }
        places.join(", ")
    }

    fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        self.folders.iter().flat_map(|(_, folders)| folders)
    }

    /// Returns the executable of `name`: in the letters as given, or all small.
    pub(super) fn executable(&self, name: &str) -> Option<PathBuf> {
        self.files(name).find(|file| is_executable(file))
    }

    /// Returns a file that would be the provider's if it could be run.
    pub(super) fn not_executable(&self, name: &str) -> Option<PathBuf> {
        self.files(name).find(|file| file.is_file() && !is_executable(file))
    }

    fn files(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        let small = name.to_lowercase();
        let mut names = vec![name.to_owned()];
        if small != name {
            names.push(small);
        }
        // A name is one part of a path: `../x` names nothing.
        names.retain(|name| is_name(name));
        self.folders().flat_map(move |folder| {
            names.iter().map(|name| folder.join(format!("{PREFIX}{name}"))).collect::<Vec<_>>()
        })
    }

    /// Returns every executable of a provider with its name, in the order of the path.
    pub(super) fn executables(&self) -> Vec<(String, PathBuf)> {
        let mut all = Vec::new();
        // A folder that is there under two names, as /bin and /usr/bin often are, has each provider once.
        let mut seen = BTreeSet::new();
        for folder in self.folders() {
            if !seen.insert(folder.canonicalize().unwrap_or_else(|_| folder.clone())) {
                continue;
            }
            // A folder of the path that is not there is no error for a shell either.
            let Ok(entries) = fs::read_dir(folder) else { continue };
            let mut found: Vec<(String, PathBuf)> = entries
                .filter_map(|entry| {
                    let file = entry.ok()?.path();
                    let name = file.file_name()?.to_str()?.strip_prefix(PREFIX)?.to_owned();
                    (is_name(&name) && is_executable(&file)).then_some((name, file))
                })
                .collect();
            found.sort();
            all.extend(found);
        }
        all
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
}

fn is_executable(file: &Path) -> bool {
    // Symbolic links are followed.
    fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;

    use super::*;

    fn file(folder: &Path, name: &str, mode: u32) -> PathBuf {
        let file = folder.join(name);
        fs::write(&file, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn the_own_path_comes_first_and_what_cannot_run_is_told() {
        let (own, path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = file(own.path(), "testbed-provider-a", 0o755);
        file(path.path(), "testbed-provider-a", 0o755);
        let plain = file(path.path(), "testbed-provider-b", 0o644);
        fs::create_dir(path.path().join("testbed-provider-folder")).unwrap();
        let lists = [own.path().to_str().unwrap(), &format!(":{}:/nowhere", path.path().display())];
        let search = Search::new(Arc::new(MapEnv::new([(PROVIDER_PATH, lists[0]), ("PATH", lists[1])])));
        assert_eq!(search.executable("a"), Some(first.clone()));
        assert_eq!(search.executable("A"), Some(first));
        assert_eq!((search.executable("b"), search.not_executable("b")), (None, Some(plain)));
        assert_eq!(search.executable("folder"), None);
        assert_eq!(search.executable("../a"), None);
        let names: Vec<String> = search.executables().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "a"]);
        assert!(search.places().contains("/nowhere"), "{}", search.places());
        assert_eq!(search.folders().count(), 3, "an empty entry is passed over");
    }

    #[test]
    fn a_folder_under_two_names_has_each_provider_once() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let first = file(&real, "testbed-provider-a", 0o755);
        let list = format!("{}:{}:{0}", real.display(), link.display());
        let search = Search::new(Arc::new(MapEnv::new([("PATH", list)])));
        assert_eq!(search.executables(), [("a".to_owned(), first)]);
    }

    #[test]
    fn nothing_set_is_nothing_found() {
        let search = Search::new(Arc::new(MapEnv::default()));
        assert!(search.executables().is_empty());
        assert!(search.places().contains("TESTBED_PROVIDER_PATH (not set)"));
    }
}

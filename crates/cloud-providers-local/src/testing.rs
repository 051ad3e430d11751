//! Lets a test fail single steps of one data folder's instances. Feature `testing`, never in a program.
//!
//! A step is what a remote call is to a cloud: making a record, a link, a root, or removing one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cloud_providers::{CancellationToken, Result};
use nix::errno::Errno;

use crate::error::io_error;

/// When a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before it changes anything.
    Before,
    /// After it took effect.
    After,
}

#[derive(Debug)]
struct Fault {
    steps_to_go: usize,
    when: When,
    told: CancellationToken,
}

#[derive(Debug, Default)]
struct Folder {
    steps: usize,
    faults: Vec<Fault>,
    removals_blocked: bool,
}

static FOLDERS: Mutex<BTreeMap<PathBuf, Folder>> = Mutex::new(BTreeMap::new());

fn lock() -> MutexGuard<'static, BTreeMap<PathBuf, Folder>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<T>(data_dir: &Path, change: impl FnOnce(&mut Folder) -> T) -> T {
    let path = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    change(lock().entry(path).or_default())
}

/// Returns how many steps were taken for instances of this data folder.
pub fn steps(data_dir: &Path) -> usize {
    with(data_dir, |folder| folder.steps)
}

/// Lets the `nth` step from now on fail, counted from 1. `told` is cancelled when it does.
pub fn fail(data_dir: &Path, nth: usize, when: When, told: CancellationToken) {
    with(data_dir, |folder| folder.faults.push(Fault { steps_to_go: nth, when, told }));
}

/// Lets every step that removes something fail.
pub fn block_removals(data_dir: &Path) {
    with(data_dir, |folder| folder.removals_blocked = true);
}

/// Takes back everything that was to fail.
pub fn clear(data_dir: &Path) {
    with(data_dir, |folder| {
        folder.faults.clear();
        folder.removals_blocked = false;
    });
}

/// Takes a step, or fails it as a test wants.
pub(crate) fn step<T>(root: &Path, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let struck = with(root, |folder| {
        folder.steps += 1;
        folder.faults.iter_mut().for_each(|fault| fault.steps_to_go = fault.steps_to_go.saturating_sub(1));
        let at = folder.faults.iter().position(|fault| fault.steps_to_go == 0);
        let fault = at.map(|at| folder.faults.remove(at));
        let blocked = folder.removals_blocked && name.starts_with("remove");
        fault
            .map(|fault| (fault.when, fault.told))
            .or(blocked.then(|| (When::Before, CancellationToken::new())))
    });
    let Some((when, told)) = struck else { return work() };
    if when == When::After {
        work()?;
    }
    told.cancel();
    Err(io_error(format!("the step fails as a test wants: {name}"), Errno::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_that_was_told_to_fails_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let told = CancellationToken::new();
        fail(dir.path(), 2, When::After, told.clone());
        let mut done = 0;
        let mut take = |name: &str| {
            step(dir.path(), name, || {
                done += 1;
                Ok(())
            })
        };
        assert!(take("one").is_ok() && !told.is_cancelled());
        assert_eq!(take("two").unwrap_err().code(), Some("EIO"));
        assert!(told.is_cancelled() && take("three").is_ok());
        block_removals(dir.path());
        assert!(take("remove the link").is_err() && take("make the link").is_ok());
        clear(dir.path());
        assert!(take("remove the link").is_ok());
        assert_eq!((done, steps(dir.path())), (5, 6));
    }
}

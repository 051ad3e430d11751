//! The ids that a user may use in a namespace of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cloud_providers::{Error, ErrorKind, Result};
use nix::unistd::{Uid, User};

use crate::error::path_error;

pub(super) const NEWUIDMAP: &str = "newuidmap";
pub(super) const NEWGIDMAP: &str = "newgidmap";

/// The folders in which programs are looked for.
const PATH: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// What a range should have: images use ids up to 65535.
const WANTED: u32 = 65_536;

/// Subordinate ids, each a first one and a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    pub(super) uids: (u32, u32),
    pub(super) gids: (u32, u32),
}

impl Ranges {
    /// Finds the ranges of a user, and the programs that map them.
    ///
    /// # Errors
    ///
    /// What is missing, and how to get it.
    pub(super) fn of(uid: Uid) -> Result<Self> {
        for program in [NEWUIDMAP, NEWGIDMAP] {
            find(program, &PATH.map(PathBuf::from))?;
        }
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        Ok(Self {
            uids: range(Path::new("/etc/subuid"), "--add-subuids", name.as_deref(), uid)?,
            gids: range(Path::new("/etc/subgid"), "--add-subgids", name.as_deref(), uid)?,
        })
    }

    /// Writes the ranges as arguments of the helper.
    pub(super) fn arguments(self) -> [String; 4] {
        [self.uids.0, self.uids.1, self.gids.0, self.gids.1].map(|number| number.to_string())
    }

    /// Reads what [`Ranges::arguments`] writes.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub(super) fn parse(texts: &[&str]) -> Result<Self> {
        let numbers: Option<Vec<u32>> = texts.iter().map(|text| text.parse().ok()).collect();
        match numbers.as_deref() {
            Some([a, b, c, d]) => Ok(Self { uids: (*a, *b), gids: (*c, *d) }),
            _ => Err(Error::config("this flag is for the program itself")),
        }
    }
}

fn find(program: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    folders.iter().map(|folder| folder.join(program)).find(|file| file.is_file()).ok_or_else(|| {
        Error::new(ErrorKind::Config, "a program that maps ids is missing")
            .with("program", program)
            .with("install", "the package uidmap (Debian, Ubuntu), shadow-utils (Fedora) or shadow (Arch)")
            .with("or run with", "--one-id, which maps your user alone")
    })
}

/// Returns the longest range that a file gives a user, by name or number.
fn range(file: &Path, flag: &str, name: Option<&str>, uid: Uid) -> Result<(u32, u32)> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|e| path_error("cannot read the ranges of ids", file, e))?,
    };
    let number = uid.to_string();
    let ours = |line: &str| {
        let mut fields = line.trim().split(':');
        let (whose, start, count) = (fields.next()?, fields.next()?, fields.next()?);
        let found: (u32, u32) = (start.parse().ok()?, count.parse().ok()?);
        (Some(whose) == name || whose == number).then_some(found).filter(|(_, count)| *count > 0)
    };
    text.lines().filter_map(ours).max_by_key(|(_, count)| *count).ok_or_else(|| {
        let who = name.unwrap_or(&number);
        // Behind all ranges that others have.
        let ends = text.lines().filter_map(|line| {
            let mut fields = line.split(':').skip(1);
            let (start, count): (u32, u32) =
                (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
            start.checked_add(count)
        });
        let start = ends.max().unwrap_or(100_000).max(100_000);
        Error::new(ErrorKind::Config, "the user has no range of subordinate ids")
            .with("user", who)
            .with("add the line", format!("{who}:{start}:{WANTED} to {}", file.display()))
            .with("as with", format!("usermod {flag} {start}-{} {who}", start.saturating_add(WANTED - 1)))
            .with("or run with", "--one-id, which maps your user alone")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str) -> Result<(u32, u32)> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subuid");
        fs::write(&file, text).unwrap();
        range(&file, "--add-subuids", Some("alice"), Uid::from_raw(1000))
    }

    #[test]
    fn the_longest_range_of_a_user_counts_by_name_or_number() {
        assert_eq!(look("bob:1:9\nalice:100000:65536\n").unwrap(), (100_000, 65_536));
        assert_eq!(look("1000:200000:10\nalice:100000:5\n").unwrap(), (200_000, 10));
    }

    #[test]
    fn a_missing_range_is_told_with_the_line_to_add() {
        for text in ["", "bob:100000:65536\n", "alice:x:1\nalice:5\n", "alice:5:0\n", "# alice:1:1\n"] {
            let error = look(text).unwrap_err().report();
            let start = if text.starts_with("bob") { 165_536 } else { 100_000 };
            assert!(error.contains(&format!("alice:{start}:65536 to /")), "{error}");
            assert!(error.contains("usermod --add-subuids") && error.contains("--one-id"), "{error}");
        }
        let nowhere = range(Path::new("/nonexistent/subuid"), "-x", None, Uid::from_raw(7)).unwrap_err();
        assert!(nowhere.report().contains("7:100000:65536"), "{}", nowhere.report());
    }

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(NEWUIDMAP, &[folder.path().to_owned()]).unwrap_err().report();
        assert!(error.contains("newuidmap") && error.contains("the package uidmap"), "{error}");
        fs::write(folder.path().join(NEWUIDMAP), "").unwrap();
        assert!(find(NEWUIDMAP, &[folder.path().to_owned()]).is_ok());
    }

    #[test]
    fn ranges_pass_to_the_helper() {
        let ranges = Ranges { uids: (1, 2), gids: (3, 4) };
        let texts = ranges.arguments();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(Ranges::parse(&texts).unwrap(), ranges);
        assert!(Ranges::parse(&texts[1..]).is_err());
    }
}

//! `reservation.yaml`: one document for every provider.
//!
//! The page `docs/testbed/reservation.md` is the reference. Every problem of a document is found in one go, and each says
//! where it stands, what stands there, and what is allowed.

mod assemble;
mod constraints;
mod draft;
mod groups;
mod hooks;
mod hosts;
mod keys;
mod machine;
mod names;
mod networks;
mod problem;
mod providers;
mod range;
mod reader;
mod sample;
mod schema;
mod size;
mod styles;
mod tree;

use std::path::{Path, PathBuf};

use cloud_providers::{Error, ErrorKind, Result};

use crate::{NetworkConstraints, Place, Reservation};

pub use problem::{Problem, Problems};
pub use sample::{sample, sample_of};
pub use schema::schema;

use reader::Reader;
use tree::{Node, Tree};

/// The name that is looked for when the user names no file.
pub const FILE_NAME: &str = "reservation.yaml";

/// Reads a file: one reservation for each provider that it names.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when there is no such file, [`ErrorKind::Config`] with every problem of the document.
pub fn read(path: &Path) -> Result<Vec<Reservation>> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|e| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Config,
        };
        Error::new(kind, "cannot read the reservation").with("file", &shown).with_source(e)
    })?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::config("the reservation is not in UTF-8").with("file", &shown).with_source(e.utf8_error())
    })?;
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    parse(&text, whole.parent().unwrap_or_else(|| Path::new("/")), &shown.to_string())
}

/// Reads the text of a document whose relative paths start in `base`; `file` names it in messages.
///
/// ```
/// let text = "provider: local\nresources:\n  small: {control: 1, compute: 2}\n";
/// let all = testbed::document::parse(text, "/tmp/demo".as_ref(), "reservation.yaml")?;
/// let names: Vec<&str> = all[0].machines.iter().map(|m| m.name.as_str()).collect();
/// assert_eq!(names, ["small-control-1", "small-compute-1", "small-compute-2"]);
/// assert_eq!(all[0].machines[0].roles, ["small", "control"]);
/// assert_eq!(all[0].experiment, "demo");
/// # Ok::<_, testbed::Error>(())
/// ```
///
/// # Errors
///
/// [`ErrorKind::Config`] with every problem of the document.
pub fn parse(text: &str, base: &Path, file: &str) -> Result<Vec<Reservation>> {
    check(text, base, file).map_err(Error::from)
}

/// Does what [`parse`] does, with the problems as data.
///
/// # Errors
///
/// Every problem of the document.
pub fn check(text: &str, base: &Path, file: &str) -> Result<Vec<Reservation>, Problems> {
    let tree = tree_of(text, file)?;
    let mut reader = Reader::new(file, text);
    let reservations = match tree.value {
        Tree::Null => {
            reader.problem(tree.spot, "the document is empty; `testbed new local` writes one to start from");
            Vec::new()
        }
        _ => assemble::document(&mut reader, &tree, base, file),
    };
    reader.finish()?;
    Ok(reservations)
}

/// Reads `network_constraints` from a file of their own, with that key or without it.
///
/// # Errors
///
/// [`ErrorKind::Config`] with every problem of the file.
pub fn constraints(text: &str, file: &str) -> Result<NetworkConstraints> {
    let read = || -> Result<NetworkConstraints, Problems> {
        let tree = tree_of(text, file)?;
        let mut reader = Reader::new(file, text);
        let inner = match &tree.value {
            Tree::Map(entries) => entries.iter().find(|(key, _)| key.name == "network_constraints"),
            _ => None,
        };
        let node = inner.map_or(&tree, |(_, node)| node);
        let constraints = constraints::read(&mut reader, node, &mut Vec::new());
        reader.finish()?;
        Ok(constraints)
    };
    read().map_err(Error::from)
}

/// Puts `home` in place of `~` where the document names the files of keys.
pub fn expand_home(reservations: &mut [Reservation], home: &Path) {
    let expand = |path: &mut PathBuf| {
        if let Ok(rest) = path.strip_prefix("~") {
            *path = home.join(rest);
        }
    };
    for reservation in reservations {
        reservation.access.private_key.iter_mut().for_each(expand);
        let hosts = reservation.machines.iter_mut().filter_map(|m| m.host.as_mut());
        hosts.filter_map(|h| h.key.as_mut()).for_each(expand);
    }
}

/// Parses the YAML.
fn tree_of(text: &str, file: &str) -> Result<Node, Problems> {
    // Keys that stand twice are told with all the other problems.
    let options = serde_yaml::options! {
        duplicate_keys: serde_yaml::options::DuplicateKeyPolicy::PassThrough,
    };
    serde_yaml::from_str_with_options(text, options).map_err(|e| {
        let location = e.location();
        let (line, column) = location.map_or((1, 1), |l| (l.line().max(1), l.column().max(1)));
        let row = usize::try_from(line - 1).ok().and_then(|n| text.lines().nth(n));
        let place = Place { file: file.to_owned(), line, column };
        let text = problem::masked(row.unwrap_or_default());
        Problems(vec![Problem { place, text, message: format!("this is no YAML: {}", problem::bare(&e)) }])
    })
}

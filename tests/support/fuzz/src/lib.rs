#![doc = include_str!("../README.md")]

mod dice;
mod finding;
pub mod json;
pub mod mutate;
mod plan;
pub mod proto;
mod seen;
mod target;
pub mod text;

use std::path::{Path, PathBuf};

pub use dice::Dice;
pub use plan::variables;
pub use seen::Seen;
pub use target::{Mutator, Target};

/// Returns a file of `tests/fixtures`.
///
/// # Panics
///
/// When it cannot be read: a target without its seeds finds little, and nobody would notice.
pub fn fixture(path: &str) -> Vec<u8> {
    let file = folder().join(path);
    std::fs::read(&file).unwrap_or_else(|error| panic!("read the seed {}: {error}", file.display()))
}

/// Returns the files of a folder of `tests/fixtures` with their names, sorted; folders in it are left out.
///
/// # Panics
///
/// When one cannot be read.
pub fn fixtures(path: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder().join(path);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("read {}: {error}", folder.display()));
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder is read").path()).collect();
    names.sort();
    let files = names.into_iter().filter(|file| file.is_file());
    files
        .map(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, std::fs::read(&file).expect("the seed is read"))
        })
        .collect()
}

/// Returns the inner messages of the recorded requests of one method, all of them where it is empty.
///
/// # Panics
///
/// When there is none.
pub fn recorded(method: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for (name, bytes) in fixtures("kata-4.1.0-runtime-rs") {
        if !name.ends_with("c2s.bin") && !name.starts_with("createvm") {
            continue;
        }
        let mut rest = &bytes[..];
        while let Some((header, after)) = rest.split_at_checked(10) {
            let length = header[..4].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            let (payload, next) = after.split_at(length);
            rest = next;
            let envelope = proto::fields(payload).expect("the recording is whole");
            let field =
                |number| envelope.iter().find(|field| field.number == number).map(|field| &field.value);
            if method.is_empty() || field(2).is_some_and(|called| called == method.as_bytes()) {
                found.push((format!("{name}:{}", found.len()), field(3).cloned().unwrap_or_default()));
            }
        }
    }
    assert!(!found.is_empty(), "no {method} was recorded");
    found
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

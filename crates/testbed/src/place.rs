//! Where something stands in a document.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// A place in a file, for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The file, as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// The places of a mapping's keys.
///
/// Where something stands says nothing about what it is: any two values are equal, and none is ever written to disk.
#[derive(Clone, Debug, Default)]
pub struct Places(BTreeMap<String, Place>);

impl Places {
    /// Returns the place of `key`, where it came from a file.
    pub fn of(&self, key: &str) -> Option<&Place> {
        self.0.get(key)
    }
}

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Places {}

impl FromIterator<(String, Place)> for Places {
    fn from_iter<T: IntoIterator<Item = (String, Place)>>(places: T) -> Self {
        Self(places.into_iter().collect())
    }
}

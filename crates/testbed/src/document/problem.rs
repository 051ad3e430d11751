//! What is wrong with a document.

use std::{error::Error as StdError, fmt};

use cloud_providers::Error;
use serde::Serialize;

use crate::{Place, near::near};

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// The offending text, at most its first line.
    pub text: String,
    /// What is wrong with it, and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.text.is_empty() {
            write!(f, "`{}`: ", self.text)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a document, in its order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => one.fmt(f),
            all => {
                write!(f, "{} problems:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl StdError for Problems {}

impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        Self::config(problems.to_string())
    }
}

/// Cuts a text to what fits a message.
pub(super) fn excerpt(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// Cuts a whole line of the source to what fits a message, without the value of what may be a secret.
pub(super) fn masked(row: &str) -> String {
    let lower = row.to_lowercase();
    let secret = ["password", "passphrase", "secret", "token", "key"].iter().any(|word| lower.contains(word));
    match row.split_once(':') {
        Some((name, _)) if secret => excerpt(&format!("{name}: …")),
        _ => excerpt(row),
    }
}

/// Says what was probably meant and what is allowed.
pub(super) fn allowed<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let hint = near(word, candidates.iter().copied())
        .map(|near| format!("did you mean `{near}`? "))
        .unwrap_or_default();
    format!("{hint}allowed: {}", candidates.join(", "))
}

/// Returns the message of a syntax error without place and source, which a [`Problem`] has already.
pub(super) fn bare(error: &serde_yaml::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    text.split(" at line ").next().unwrap_or(text).trim_end_matches(['.', ',', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found() {
        assert_eq!(allowed("mn", ["min", "count"]), "did you mean `min`? allowed: min, count");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let text = "é".repeat(80);
        assert_eq!(excerpt(&text).chars().count(), 61);
        assert_eq!(excerpt("a\nb"), "a");
        assert_eq!(masked("  api-Key: 'x"), "api-Key: …");
        assert_eq!(masked("user: 'x"), "user: 'x");
    }
}

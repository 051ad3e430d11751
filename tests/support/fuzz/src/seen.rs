//! What an input led to.

use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What an input led to, as a number: inputs of one kind have the same.
///
/// Stable Rust has no callbacks for the branches that are taken. What a function answers says much of that, when its
/// errors are precise: an input with an answer that was not seen before joins the corpus and is mutated further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen(u64);

impl Seen {
    /// An input that was accepted, with what tells it apart from others; counts should be coarse.
    pub fn accepted(what: impl Hash) -> Self {
        Self::of((1, what))
    }

    /// An input that was refused. Numbers and quoted parts of the error do not count.
    pub fn refused(error: &(impl Display + ?Sized)) -> Self {
        Self::of((2, shape(&error.to_string())))
    }

    /// An input that is left out, because it is no case of this target.
    pub fn skipped() -> Self {
        Self::of(3)
    }

    /// Adds something that tells inputs apart.
    #[must_use]
    pub fn and(self, what: impl Hash) -> Self {
        Self::of((self.0, what))
    }

    fn of(what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The text of an error without what differs between inputs of one kind.
pub(crate) fn shape(text: &str) -> String {
    let mut shape = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '0'..='9' => {
                while rest.next_if(char::is_ascii_digit).is_some() {}
                shape.push('0');
            }
            '"' | '`' => {
                shape.push('"');
                // A quote within the quoted part has a backslash.
                while let Some(quoted) = rest.next() {
                    match quoted {
                        '\\' => _ = rest.next(),
                        quoted if quoted == c => break,
                        _ => {}
                    }
                }
            }
            c => shape.push(c),
        }
        if shape.len() > 200 {
            break;
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_one_kind_are_seen_as_one() {
        assert_eq!(
            Seen::refused("line 12: \"a\\\"b\" is no number"),
            Seen::refused("line 3: \"\" is no number")
        );
        assert_ne!(Seen::refused("line 1: too long"), Seen::refused("line 1: too short"));
        assert_ne!(Seen::accepted(1), Seen::accepted(2));
    }
}

//! What marks resources as those of a set-up.

use anyhow::{Result, ensure};
use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};

/// The key whose value is the name of the set-up. What does not carry it is never touched.
pub(crate) const SETUP: &str = "peerpod-setup";
/// The key that says which part of the set-up a resource is.
const PART: &str = "peerpod-part";

/// The name of a set-up; everything it makes carries it as a tag.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// When it is none: small letters, digits and `-`, at most 40 characters.
    pub fn new(name: &str) -> Result<Self> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !name.is_empty() && name.len() <= 40 && name.chars().all(valid),
            "the name of a set-up is {name:?}; use up to 40 small letters, digits and '-'"
        );
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Everything of this set-up.
    pub(crate) fn filter(&self) -> Filter {
        filter(&format!("tag:{SETUP}"), &[&self.0])
    }

    /// This part of the set-up.
    pub(crate) fn filters(&self, part: &str) -> Vec<Filter> {
        vec![self.filter(), filter(&format!("tag:{PART}"), &[part])]
    }

    /// The tags of a part, with a readable name.
    pub(crate) fn tags(&self, part: &str) -> Vec<(String, String)> {
        let pairs = [(SETUP, self.0.as_str()), (PART, part), ("Name", &format!("{}-{part}", self.0))];
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// The tags of a part, as they go with a request that makes it: nothing is ever there without them.
    pub(crate) fn spec(&self, kind: ResourceType, part: &str) -> TagSpecification {
        let tags = self.tags(part).into_iter().map(|(key, value)| tag(&key, &value));
        TagSpecification::builder().resource_type(kind).set_tags(Some(tags.collect())).build()
    }
}

/// A tag.
pub(crate) fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// A filter of a question.
pub(crate) fn filter(name: &str, values: &[&str]) -> Filter {
    let values = values.iter().map(|value| (*value).to_owned()).collect();
    Filter::builder().name(name).set_values(Some(values)).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_tags_everywhere_are_refused() {
        assert_eq!(Name::new("ci-1").unwrap().as_str(), "ci-1");
        for wrong in ["", "Ci", "a b", "a*", &"x".repeat(41)] {
            assert!(Name::new(wrong).is_err(), "{wrong}");
        }
    }
}

//! What several calls have in common.

use std::collections::BTreeMap;

/// Tags of a resource.
pub type Tags = BTreeMap<String, String>;

/// Which resources a describing call returns: those with one of the ids, if there are any, that every filter matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Query {
    /// Ids; empty means all. EC2 takes no page size together with ids.
    pub ids: Vec<String>,
    /// Filters, all of which must match.
    pub filters: Vec<Filter>,
}

impl Query {
    /// Asks for these ids.
    pub fn ids<T: Into<String>>(ids: impl IntoIterator<Item = T>) -> Self {
        Self { ids: ids.into_iter().map(Into::into).collect(), filters: Vec::new() }
    }

    /// Asks for what a filter matches.
    pub fn filter<T: Into<String>>(name: impl Into<String>, values: impl IntoIterator<Item = T>) -> Self {
        Self::default().and(name, values)
    }

    /// Asks for what has a tag.
    pub fn tag(key: &str, value: impl Into<String>) -> Self {
        Self::filter(format!("tag:{key}"), [value])
    }

    /// Adds a filter.
    #[must_use]
    pub fn and<T: Into<String>>(
        mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        self.filters.push(Filter { name: name.into(), values: values.into_iter().map(Into::into).collect() });
        self
    }
}

/// One filter of a [`Query`]: any of the values will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The filter's name in EC2, such as `tag:peerpod-token`.
    pub name: String,
    /// Values.
    pub values: Vec<String>,
}

/// A page of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What the page has.
    pub items: Vec<T>,
    /// The mark of the next page, `None` on the last one.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// Makes a page; an empty mark, which EC2 sends on some last pages, is none.
    pub fn new(items: Vec<T>, next: Option<String>) -> Self {
        Self { items, next: next.filter(|mark| !mark.is_empty()) }
    }
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self { items: Vec::new(), next: None }
    }
}

/// A limit of the account.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccountLimit {
    /// The attribute's name in EC2, such as `vpc-max-elastic-ips`.
    pub name: String,
    /// Its values.
    pub values: Vec<String>,
}

impl AccountLimit {
    /// Makes a limit.
    pub fn new(name: impl Into<String>, values: Vec<String>) -> Self {
        Self { name: name.into(), values }
    }
}

//! Who owns what: scopes, units, tokens and ids.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, tags};

/// The id that the cloud gave to an instance; opaque outside its provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(String);

impl InstanceId {
    /// Wraps the cloud's id.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// Returns the id as the cloud writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a set of instances belongs to: a cluster or an experiment.
///
/// The text form is `cluster:<id>` or `experiment:<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scope {
    /// A Kubernetes cluster, by its stable id.
    Cluster(String),
    /// An experiment of the testbed tools, by its name.
    Experiment(String),
}

impl Scope {
    /// Returns the id without the kind.
    pub fn id(&self) -> &str {
        match self {
            Self::Cluster(id) | Self::Experiment(id) => id,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(id) => write!(f, "cluster:{id}"),
            Self::Experiment(id) => write!(f, "experiment:{id}"),
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("cluster", id)) if !id.is_empty() => Ok(Self::Cluster(id.into())),
            Some(("experiment", id)) if !id.is_empty() => Ok(Self::Experiment(id.into())),
            _ => Err(Error::config("scope is neither cluster:<id> nor experiment:<id>").with("scope", text)),
        }
    }
}

/// What an instance serves: a sandbox or a machine of an experiment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Unit {
    /// The sandbox id, or the machine's name in its experiment.
    pub id: String,
    /// A readable name to build the instance's name from, such as the pod's.
    pub name_hint: String,
}

/// Names one attempt to have one instance for one unit: the key of idempotent creation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Token {
    /// The cluster or experiment.
    pub scope: Scope,
    /// The unit's id.
    pub unit: String,
    /// Counts from 1 when the same unit gets another instance.
    pub attempt: u32,
}

impl Token {
    /// Makes a token.
    pub fn new(scope: Scope, unit: impl Into<String>, attempt: u32) -> Self {
        Self { scope, unit: unit.into(), attempt }
    }

    /// Returns a fixed-length form for a tag value: 40 hexadecimal digits of SHA-256 over the full text.
    pub fn tag_value(&self) -> String {
        tags::hash(&self.to_string(), 40)
    }

    /// Returns the cloud's idempotency value: 64 hexadecimal digits over token and placement.
    ///
    /// Clouds refuse or replay a value whose parameters changed, so the placement (zone, subnet, type) is part of it.
    pub fn client_token(&self, placement: &str) -> String {
        tags::hash(&format!("{self}\n{placement}"), 64)
    }
}

/// The text form is `<scope>/<unit>/<attempt>`. A slash in the scope's id is written `%2F`, so that no two tokens share
/// a text, and with it a hash.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = self.scope.to_string().replace('%', "%25").replace('/', "%2F");
        write!(f, "{scope}/{}/{}", self.unit, self.attempt)
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::config("token is not <scope>/<unit>/<attempt>").with("token", text);
        let (rest, attempt) = text.rsplit_once('/').ok_or_else(bad)?;
        let (scope, unit) = rest.split_once('/').ok_or_else(bad)?;
        let scope = scope.replace("%2F", "/").replace("%25", "%");
        Ok(Self::new(scope.parse()?, unit, attempt.parse().map_err(|_| bad())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form() {
        let token = Token::new(Scope::Cluster("c-1".into()), "sand/box", 3);
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        assert!("cluster:x/1".parse::<Token>().is_err());
        assert!("nobody:x/u/1".parse::<Token>().is_err());
    }

    #[test]
    fn no_two_tokens_share_a_text() {
        let one = Token::new(Scope::Cluster("a/b".into()), "c", 1);
        let two = Token::new(Scope::Cluster("a".into()), "b/c", 1);
        let three = Token::new(Scope::Cluster("a%2Fb".into()), "c", 1);
        for token in [&one, &two, &three] {
            assert_eq!(token.to_string().parse::<Token>().unwrap(), *token);
        }
        assert!(one.tag_value() != two.tag_value() && one.tag_value() != three.tag_value());
    }

    #[test]
    fn the_client_token_follows_the_placement() {
        let token = Token::new(Scope::Experiment("e".into()), "m1", 1);
        assert_eq!(token.client_token("zone-a"), token.client_token("zone-a"));
        assert_ne!(token.client_token("zone-a"), token.client_token("zone-b"));
        assert_eq!(token.client_token("zone-a").len(), 64);
    }
}

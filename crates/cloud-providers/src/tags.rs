//! The one encoder of tags, for every cloud.
//!
//! Keys are `peerpod-<word>`, values `[a-z0-9-]{1,63}`: the least that every cloud accepts.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::{CreateRequest, Error, Result};

/// The prefix that only our own keys carry.
pub const PREFIX: &str = "peerpod-";
/// The most characters of a value.
pub const VALUE_MAX: usize = 63;
/// Scope of a resource: cluster or experiment, encoded.
pub const SCOPE: &str = "peerpod-scope";
/// Node or user, encoded.
pub const HOLDER: &str = "peerpod-holder";
/// [`crate::Token::tag_value`].
pub const TOKEN: &str = "peerpod-token";
/// [`CreateRequest::fingerprint`].
pub const REQUEST: &str = "peerpod-request";
/// Sandbox or machine, encoded.
pub const UNIT: &str = "peerpod-unit";
/// Seconds since 1970 at creation.
pub const CREATED: &str = "peerpod-created";

/// The full token as text, on clouds that allow it; for people and for [`crate::Owned::token`].
pub const TOKEN_TEXT: &str = "peerpod-token-text";
/// The node or user as text, on clouds that allow it; for people.
pub const HOLDER_TEXT: &str = "peerpod-holder-text";
/// The unit's name hint as text, on clouds that allow it; for people.
pub const UNIT_TEXT: &str = "peerpod-unit-text";

/// Returns whether `value` needs no encoding.
pub fn is_plain(value: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=VALUE_MAX).contains(&value.len()) && value.chars().all(allowed)
}

/// Returns the first `digits` hexadecimal digits of SHA-256 over `text`.
pub fn hash(text: &str, digits: usize) -> String {
    let mut hex: String = Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    hex.truncate(digits);
    hex
}

/// Encodes any text as a tag value: itself when plain, otherwise `h-` and 40 digits of its hash.
///
/// A plain text that looks like a hash is hashed too, so that two texts never share a value.
pub fn encode_value(text: &str) -> String {
    if is_plain(text) && !text.starts_with("h-") { text.to_owned() } else { format!("h-{}", hash(text, 40)) }
}

/// Returns the tags of everything that is made for `request` at `created_unix` seconds since 1970.
pub fn for_request(request: &CreateRequest, created_unix: u64) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (SCOPE, encode_value(&request.token.scope.to_string())),
        (HOLDER, encode_value(&request.holder)),
        (TOKEN, request.token.tag_value()),
        (REQUEST, request.fingerprint()),
        (UNIT, encode_value(&request.unit.id)),
        (CREATED, created_unix.to_string()),
    ])
}

/// Returns readable copies of what [`for_request`] may have hashed, unencoded, for clouds whose tags take any text.
///
/// Nothing is decided by them, except that [`TOKEN_TEXT`] is believed when its hash equals the value of [`TOKEN`].
pub fn readable_for_request(request: &CreateRequest) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (TOKEN_TEXT, request.token.to_string()),
        (HOLDER_TEXT, request.holder.clone()),
        (UNIT_TEXT, request.unit.name_hint.clone()),
    ])
}

/// Refuses user tags that use our prefix.
///
/// # Errors
///
/// [`crate::ErrorKind::Config`] naming the keys.
pub fn check_user_tags<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let bad: Vec<&str> = keys.into_iter().filter(|k| k.to_ascii_lowercase().starts_with(PREFIX)).collect();
    if bad.is_empty() {
        return Ok(());
    }
    Err(Error::config("tags may not begin with the prefix that the project keeps for itself")
        .with("prefix", PREFIX)
        .with("tags", bad.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_and_long_values_become_a_hash() {
        assert_eq!(encode_value("node-1"), "node-1");
        for text in ["", "Node", "a_b", "ä", "h-0", &"a".repeat(64)] {
            let value = encode_value(text);
            assert!(value.starts_with("h-") && is_plain(&value), "{text} -> {value}");
        }
        assert_ne!(encode_value("Node"), encode_value(&encode_value("Node")));
    }

    #[test]
    fn user_tags_may_not_use_our_prefix() {
        assert!(check_user_tags(["team", "peerpo-x"]).is_ok());
        let text = check_user_tags(["peerpod-scope", "PeerPod-x"]).unwrap_err().to_string();
        assert!(text.contains("peerpod-scope, PeerPod-x"), "{text}");
    }
}

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
/// A plain text that looks like a hash is hashed too, so that two texts never share a value; and so is one with a dash
/// at either end, which Kubernetes labels do not take.
pub fn encode_value(text: &str) -> String {
    let kept = is_plain(text) && !text.starts_with("h-") && !text.starts_with('-') && !text.ends_with('-');
    if kept { text.to_owned() } else { format!("h-{}", hash(text, 40)) }
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

/// Keeps sweeps from deleting what carries it, with any value but `false`. People set it, and nobody else.
pub const PROTECT: &str = "peerpod-protect";

/// Whether the value of [`PROTECT`] asks for protection.
pub fn protects(value: Option<&str>) -> bool {
    value.is_some_and(|value| value != "false")
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
    use proptest::prelude::*;

    use super::*;
    use crate::{Scope, Token, Unit};

    #[test]
    fn foreign_and_long_values_become_a_hash() {
        assert_eq!(encode_value("node-1"), "node-1");
        for text in ["", "Node", "a_b", "ä", "h-0", "-a", "a-", "-", &"a".repeat(64)] {
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

    #[test]
    fn readable_copies_are_the_texts_themselves() {
        let request = request("Node.Example", "cluster", "Web 1");
        let readable = readable_for_request(&request);
        assert_eq!(readable[HOLDER_TEXT], "Node.Example");
        assert_eq!(readable[UNIT_TEXT], "hint of Web 1");
        assert_eq!(readable[TOKEN_TEXT].parse::<Token>().unwrap(), request.token);
    }

    fn request(holder: &str, scope: &str, unit: &str) -> CreateRequest {
        let token = Token::new(Scope::Cluster(scope.into()), unit, 1);
        CreateRequest::new(token, Unit { id: unit.into(), name_hint: format!("hint of {unit}") }, holder)
    }

    /// Name of a cloud, and what it allows as key and as value.
    type Charset = (&'static str, fn(&str) -> bool, fn(&str) -> bool);

    fn charsets() -> [Charset; 6] {
        fn label_char(c: char) -> bool {
            c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_')
        }
        fn edge(c: char) -> bool {
            c.is_ascii_alphanumeric()
        }
        fn aws_char(c: char) -> bool {
            c.is_ascii_alphanumeric() || " +-=._:/@".contains(c)
        }
        fn ibm_char(c: char) -> bool {
            c.is_ascii_alphanumeric() || " _-.:".contains(c)
        }
        [
            (
                "gcp",
                |k| {
                    k.len() <= 63
                        && k.starts_with(|c: char| c.is_ascii_lowercase())
                        && k.chars().all(label_char)
                },
                |v| v.len() <= 63 && v.chars().all(label_char),
            ),
            (
                "aws",
                |k| k.len() <= 128 && !k.starts_with("aws:") && k.chars().all(aws_char),
                |v| v.len() <= 256 && v.chars().all(aws_char),
            ),
            (
                "azure",
                |k| k.len() <= 512 && !k.contains(['<', '>', '%', '&', '\\', '?', '/']),
                |v| v.len() <= 256,
            ),
            // A tag is one text `key:value`.
            (
                "ibmcloud",
                |k| k.len() <= 64 && k.chars().all(ibm_char),
                |v| v.len() <= 63 && v.chars().all(ibm_char),
            ),
            (
                "alibabacloud",
                |k| {
                    k.len() <= 128
                        && !k.starts_with("aliyun")
                        && !k.starts_with("acs:")
                        && !k.contains("http://")
                },
                |v| v.len() <= 128 && !v.contains("http://"),
            ),
            (
                "kubernetes",
                |k| k.len() <= 63 && k.starts_with(edge) && k.ends_with(edge) && k.chars().all(label_char),
                |v| v.len() <= 63 && v.starts_with(edge) && v.ends_with(edge) && v.chars().all(label_char),
            ),
        ]
    }

    proptest! {
        #[test]
        fn every_tag_fits_every_cloud(
            holder in any::<String>(), scope in any::<String>(), unit in any::<String>(), at in any::<u64>(),
        ) {
            let all = for_request(&request(&holder, &scope, &unit), at);
            prop_assert_eq!(all.len(), 6);
            for (cloud, key_ok, value_ok) in charsets() {
                for (key, value) in &all {
                    prop_assert!(key_ok(key) && key.starts_with(PREFIX), "{}: {}", cloud, key);
                    prop_assert!(value_ok(value) && is_plain(value), "{}: {}", cloud, value);
                }
            }
        }

        #[test]
        fn different_texts_have_different_values(a in text(), b in text()) {
            prop_assert_eq!(encode_value(&a) == encode_value(&b), a == b);
            // An encoded value is never mistaken for the text that it stands for.
            if encode_value(&a) != a {
                prop_assert_ne!(encode_value(&encode_value(&a)), encode_value(&a));
            }
        }

        #[test]
        fn a_user_tag_with_our_prefix_is_refused_in_any_case(tail in "[a-zA-Z0-9]{0,8}", upper in any::<bool>()) {
            let key = format!("{}{tail}", if upper { "PEERPOD-" } else { PREFIX });
            prop_assert!(check_user_tags([key.as_str()]).is_err());
        }
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z0-9-]{0,70}", "[A-Za-z._/ ]{0,9}", "h-[0-9a-f]{0,41}", any::<String>()]
    }
}

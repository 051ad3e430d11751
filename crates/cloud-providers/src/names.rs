//! Instance names as the existing programs build them.
//!
//! The name is more than decoration: the TLS server name of a pod VM is the same text, and old records are matched to
//! untagged instances by it. So it follows the existing rule to the letter, odd corners included.

use crate::{Error, Result};

/// What every generated name begins with.
pub const PREFIX: &str = "podvm-";
/// Characters of the sandbox id that a name carries.
const ID_CHARS: usize = 8;
/// Characters of a name without its pod part: prefix, dash and sandbox part.
const FRAME: usize = PREFIX.len() + 1 + ID_CHARS;

/// Returns `text` with only `a-z`, `0-9` and `-` left: lower case first, then one dash for every other character.
///
/// ```
/// assert_eq!(cloud_providers::names::sanitize("My.Pod_1"), "my-pod-1");
/// ```
pub fn sanitize(text: &str) -> String {
    let keep = |c: char| if matches!(c, 'a'..='z' | '0'..='9' | '-') { c } else { '-' };
    text.to_lowercase().chars().map(keep).collect()
}

/// Builds `podvm-<pod>-<first 8 of sandbox id>`, at most `max` characters long; 0 means no limit.
///
/// A name that would be too long loses characters at the end of its pod part. Runs of dashes and dashes at the end
/// stay, as both sides of the TLS connection compute the name on their own.
///
/// # Errors
///
/// [`crate::ErrorKind::Config`] when even a name without pod part has no room.
///
/// ```
/// # use cloud_providers::names::instance_name;
/// assert_eq!(instance_name("nginx", "0a1b2c3d4e5f", 63).unwrap(), "podvm-nginx-0a1b2c3d");
/// ```
pub fn instance_name(pod: &str, sandbox_id: &str, max: usize) -> Result<String> {
    let pod = sanitize(pod);
    let id = sanitize(sandbox_id);
    let mut room = pod.len();
    if max > 0 && FRAME + room > max {
        room = max.checked_sub(FRAME).ok_or_else(|| {
            Error::config("the limit for instance names is too small")
                .with("limit", max)
                .with("at least", FRAME)
        })?;
    }
    // Both parts are ASCII after sanitize, so every index is a character boundary.
    Ok(format!("{PREFIX}{}-{}", &pod[..room], &id[..id.len().min(ID_CHARS)]))
}

/// Whether `name` is one that the existing programs generate for a pod of the name `pod`, whatever the sandbox.
///
/// ```
/// # use cloud_providers::names::is_instance_name;
/// assert!(is_instance_name("podvm-web-0-0a1b2c3d", "web-0"));
/// assert!(!is_instance_name("podvm-web-0a1b2c3d", "web-0"));
/// ```
pub fn is_instance_name(name: &str, pod: &str) -> bool {
    // One provider allows names of 47 characters, all others of 63.
    [63, 47].into_iter().any(|max| {
        let id = name.get(name.len().saturating_sub(ID_CHARS)..).unwrap_or_default();
        let whole = id.len() == ID_CHARS && !id.contains('-');
        whole && instance_name(pod, id, max).is_ok_and(|generated| generated == name)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_limit_without_room_is_an_error() {
        for max in 1..FRAME {
            let text = instance_name("pod", "0123456789", max).unwrap_err().to_string();
            assert!(text.contains(&format!("limit: {max}, at least: 15")), "{text}");
        }
        assert_eq!(instance_name("pod", "0123456789", FRAME).unwrap(), "podvm--01234567");
    }

    #[test]
    fn the_documented_cases_hold() {
        let (pod, id) = ("a".repeat(100), "0123456789abcdef");
        assert_eq!(instance_name(&pod, id, 63).unwrap(), format!("podvm-{}-01234567", "a".repeat(48)));
        assert_eq!(instance_name(&pod, id, 47).unwrap(), format!("podvm-{}-01234567", "a".repeat(32)));
        assert_eq!(instance_name("My.Pod_1", "AB", 63).unwrap(), "podvm-my-pod-1-ab");
        assert_eq!(instance_name("my.app_x", "ABCDEF123456", 63).unwrap(), "podvm-my-app-x-abcdef12");
    }

    proptest! {
        #[test]
        fn a_name_is_plain_and_within_its_limit(pod in any::<String>(), id in any::<String>(), max in 15usize..80) {
            let name = instance_name(&pod, &id, max).unwrap();
            prop_assert!(name.len() <= max);
            prop_assert_eq!(sanitize(&name), name);
        }
    }
}

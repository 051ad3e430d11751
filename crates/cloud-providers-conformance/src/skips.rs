//! What a provider may skip, and why.

use std::collections::BTreeMap;

use crate::{Obstacle, Offer};

/// Allowed skips of one provider: `"<rule>" = "<reason>"` or `"<rule>#<check>" = "<reason>"`, as TOML.
#[derive(Clone, Debug, Default)]
pub(crate) struct Skips(BTreeMap<String, String>);

impl Skips {
    /// Reads the list.
    pub(crate) fn parse(text: &str, rules: &[&str]) -> Offer<Self> {
        let list: BTreeMap<String, String> = toml::from_str(text).map_err(|e| {
            Obstacle::failed(format!("the list of allowed skips is not `\"rule\" = \"reason\"`: {e}"))
        })?;
        for (id, reason) in &list {
            let rule = id.split('#').next().unwrap_or_default();
            if !rules.contains(&rule) {
                return Err(Obstacle::failed(format!(
                    "the list of allowed skips names {rule}, which is no rule"
                )));
            }
            if reason.trim().is_empty() {
                return Err(Obstacle::failed(format!("the list of allowed skips gives no reason for {id}")));
            }
        }
        Ok(Self(list))
    }

    /// Returns the reason for which `id` may be skipped: its own, or that of its whole case.
    pub(crate) fn reason(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }

    /// Returns the ids that were allowed for one of `ran` and did not happen.
    pub(crate) fn stale(&self, ran: &[&str], happened: &[String]) -> Vec<String> {
        let of_a_case_that_ran = |id: &&String| ran.contains(&id.split('#').next().unwrap_or_default());
        self.0.keys().filter(of_a_case_that_ran).filter(|id| !happened.contains(id)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_rules_with_reasons() {
        let rules = ["a/b", "a/c"];
        let skips = Skips::parse("\"a/b\" = \"no b here\"\n\"a/c#d\" = \"no d here\"\n", &rules).unwrap();
        assert_eq!(skips.reason("a/b"), Some("no b here"));
        assert_eq!(skips.reason("a/c"), None);
        assert_eq!(skips.stale(&["a/b", "a/c"], &["a/b".into()]), ["a/c#d"]);
        assert!(skips.stale(&["a/d"], &[]).is_empty(), "what did not run is not judged");
        for bad in ["\"a/x\" = \"y\"", "\"a/b\" = \" \"", "[a]\nb = 1", "nonsense"] {
            assert!(Skips::parse(bad, &rules).is_err(), "{bad}");
        }
    }
}

//! Registry credentials: from image pull secrets to the guest's `auth.json`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use serde_json::json;

/// Key of Secrets of type `kubernetes.io/dockerconfigjson`.
const CONFIG_JSON: &str = ".dockerconfigjson";
/// Key of Secrets of type `kubernetes.io/dockercfg`.
const CONFIG: &str = ".dockercfg";

/// One registry's entry, as people and programs write it. Never shown: it has no `Debug`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Entry {
    fn auth(self) -> Option<String> {
        if let Some(auth) = self.auth.filter(|a| !a.is_empty()) {
            return Some(auth);
        }
        match (self.username, self.password) {
            (None, None) => None,
            (user, password) => {
                let (user, password) = (user.unwrap_or_default(), password.unwrap_or_default());
                let nothing = user.is_empty() && password.is_empty();
                (!nothing).then(|| STANDARD.encode(format!("{user}:{password}")))
            }
        }
    }
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

/// Collects credentials; a later one for the same registry replaces an earlier one.
#[derive(Default)]
pub(super) struct AuthJson(BTreeMap<String, String>);

impl AuthJson {
    /// Adds what a Secret has. One that holds no registry credentials adds nothing.
    ///
    /// # Errors
    ///
    /// When what it holds cannot be read; the text of it is not told.
    pub(super) fn add(&mut self, secret: &Secret) -> Result<()> {
        let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|bytes| bytes.0.as_slice());
        // The parser's own message may quote what it read.
        let quiet = |key: &str| format!("{key} is no JSON of registry credentials");
        let entries = match (data(CONFIG_JSON), data(CONFIG)) {
            (Some(bytes), _) => {
                let read = serde_json::from_slice::<ConfigJson>(bytes).ok().context(quiet(CONFIG_JSON))?;
                read.auths
            }
            (None, Some(bytes)) => serde_json::from_slice(bytes).ok().context(quiet(CONFIG))?,
            (None, None) => BTreeMap::new(),
        };
        self.0.extend(entries.into_iter().filter_map(|(registry, entry)| Some((registry, entry.auth()?))));
        Ok(())
    }

    /// Returns the text, `None` without credentials.
    pub(super) fn text(self) -> Option<String> {
        let auths: serde_json::Map<_, _> =
            self.0.into_iter().map(|(registry, auth)| (registry, json!({ "auth": auth }))).collect();
        (!auths.is_empty()).then(|| json!({ "auths": auths }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(key: &str, text: &str) -> Secret {
        let data = BTreeMap::from([(key.to_owned(), ByteString(text.as_bytes().to_vec()))]);
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn both_forms_are_merged_and_the_later_one_counts() {
        let mut all = AuthJson::default();
        all.add(&secret(CONFIG, r#"{"a.io":{"auth":"QQ=="},"b.io":{"username":"u","password":"p"}}"#))
            .unwrap();
        all.add(&secret(CONFIG_JSON, r#"{"auths":{"a.io":{"auth":"Qg==","email":"x"},"c.io":{}}}"#)).unwrap();
        all.add(&secret("other", "text")).unwrap();
        assert_eq!(
            all.text().unwrap(),
            r#"{"auths":{"a.io":{"auth":"Qg=="},"b.io":{"auth":"dTpw"}}}"#,
            "credentials are computed, and entries without any are left out"
        );
        assert_eq!(AuthJson::default().text(), None);
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_named_and_not_shown() {
        let text = AuthJson::default().add(&secret(CONFIG_JSON, "hunter2")).unwrap_err().to_string();
        assert!(text.contains(CONFIG_JSON) && !text.contains("hunter2"), "{text}");
        let text = AuthJson::default().add(&secret(CONFIG, r#"{"a.io":"hunter2"}"#)).unwrap_err();
        assert!(!format!("{text:#}").contains("hunter2"), "{text:#}");
    }
}

//! What is never written to disk: values of keys that their provider calls secret.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use cloud_providers::{Error, Result};
use serde_json::Value;

use crate::{Event, Progress, ProviderConfig, Reservation};

/// The secret values of a document, by provider.
///
/// They are taken out of what is written, and a later command reads the document again for them. Should one turn up in
/// another place, in an error or in what a provider keeps, it is blanked there.
#[derive(Clone, Default)]
pub struct Secrets {
    by_provider: BTreeMap<String, BTreeMap<String, Value>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.by_provider.iter().map(|(name, keys)| (name, keys.keys()))).finish()
    }
}

impl Secrets {
    /// Notes the secrets of `reservations`. `is_secret` knows the keys of each provider.
    pub fn of(reservations: &[Reservation], is_secret: impl Fn(&ProviderConfig, &str) -> bool) -> Self {
        let mut by_provider = BTreeMap::new();
        for provider in reservations.iter().map(|r| &r.provider) {
            let secret = provider.extra.iter().filter(|(key, _)| is_secret(provider, key));
            let secret: BTreeMap<_, _> = secret.map(|(key, value)| (key.clone(), value.clone())).collect();
            if !secret.is_empty() {
                by_provider.insert(provider.name.clone(), secret);
            }
        }
        Self { by_provider }
    }

    /// Names the keys, by provider.
    pub fn keys(&self) -> BTreeMap<String, Vec<String>> {
        let keys = self.by_provider.iter().map(|(name, keys)| (name.clone(), keys.keys().cloned().collect()));
        keys.collect()
    }

    /// Takes the secrets out of `reservations`.
    pub fn take_out(&self, reservations: &mut [Reservation]) {
        for provider in reservations.iter_mut().map(|r| &mut r.provider) {
            if let Some(secret) = self.by_provider.get(&provider.name) {
                provider.extra.retain(|key, _| !secret.contains_key(key));
            }
        }
    }

    /// Puts what was taken out back into `saved`, from the `document` as it is now.
    ///
    /// # Errors
    ///
    /// When a secret that was there is no longer in the document.
    pub fn put_back(
        omitted: &BTreeMap<String, Vec<String>>,
        saved: &mut [Reservation],
        document: &[Reservation],
        path: &Path,
    ) -> Result<()> {
        let mut missing = Vec::new();
        for provider in saved.iter_mut().map(|r| &mut r.provider) {
            let now = document.iter().map(|r| &r.provider).find(|now| now.name == provider.name);
            for key in omitted.get(&provider.name).into_iter().flatten() {
                match now.and_then(|now| now.extra.get(key)) {
                    Some(value) => _ = provider.extra.insert(key.clone(), value.clone()),
                    None => missing.push(format!("{key} of {}", provider.name)),
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::config("secrets are not kept in the environment, and the document no longer has them")
            .with("missing", missing.join(", "))
            .with("document", path.display())
            .with("mend", "put them back under `provider:`, or name the document that has them with --file"))
    }

    /// Blanks every secret in `text`.
    pub fn blank(&self, text: &str) -> String {
        self.texts().fold(text.to_owned(), |text, secret| text.replace(secret, "[redacted]"))
    }

    /// Blanks every secret in an error: clouds like to quote what they were sent.
    #[must_use]
    pub fn blank_error(&self, error: Error) -> Error {
        self.texts().fold(error, Error::redact)
    }

    /// Returns `progress` with every secret blanked in what it is told.
    pub fn over(&self, progress: Arc<dyn Progress>) -> Arc<dyn Progress> {
        if self.by_provider.is_empty() {
            return progress;
        }
        Arc::new(Blanked { progress, secrets: self.clone() })
    }

    /// Blanks every secret in all texts of `value`.
    pub fn blank_all(&self, value: &mut Value) {
        if self.by_provider.is_empty() {
            return;
        }
        match value {
            Value::String(text) => *text = self.blank(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.blank_all(item)),
            Value::Object(map) => map.values_mut().for_each(|value| self.blank_all(value)),
            _ => {}
        }
    }

    /// Returns every text of a secret that is long enough to be told from other words.
    fn texts(&self) -> impl Iterator<Item = &str> {
        fn leaves<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
            match value {
                Value::String(text) if text.len() >= 4 => into.push(text),
                Value::Array(items) => items.iter().for_each(|item| leaves(item, into)),
                Value::Object(map) => map.values().for_each(|value| leaves(value, into)),
                _ => {}
            }
        }
        let mut texts = Vec::new();
        self.by_provider.values().flat_map(BTreeMap::values).for_each(|value| leaves(value, &mut texts));
        texts.into_iter()
    }
}

#[derive(Debug)]
struct Blanked {
    progress: Arc<dyn Progress>,
    secrets: Secrets,
}

impl Progress for Blanked {
    fn tell(&self, machine: &str, event: &Event) {
        let event = match event {
            Event::Failed { error } => Event::Failed { error: self.secrets.blank(error) },
            Event::Note { text } => Event::Note { text: self.secrets.blank(text) },
            other => other.clone(),
        };
        self.progress.tell(machine, &event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Vec<Reservation> {
        let provider =
            ProviderConfig::new("rack").with("password", "canary-7").with("room", "b12").with("pin", 1234);
        vec![Reservation::new("x", provider)]
    }

    #[test]
    fn secrets_are_taken_out_and_come_back_from_the_document() {
        let secrets = Secrets::of(&document(), |_, key| ["password", "pin"].contains(&key));
        let mut saved = document();
        secrets.take_out(&mut saved);
        assert_eq!(saved[0].provider.extra.keys().collect::<Vec<_>>(), ["room"]);
        let omitted = secrets.keys();
        Secrets::put_back(&omitted, &mut saved, &document(), Path::new("r.yaml")).unwrap();
        assert_eq!(saved, document());
        let text = Secrets::put_back(&omitted, &mut saved, &[], Path::new("r.yaml")).unwrap_err().to_string();
        assert!(text.contains("password of rack, pin of rack") && text.contains("r.yaml"), "{text}");
        assert!(!text.contains("canary-7"));
    }

    #[test]
    fn a_secret_that_turns_up_elsewhere_is_blanked() {
        let secrets = Secrets::of(&document(), |_, key| key == "password");
        let mut value = serde_json::json!({"a": ["x canary-7 y"], "b": {"c": "canary-7"}});
        secrets.blank_all(&mut value);
        assert_eq!(value, serde_json::json!({"a": ["x [redacted] y"], "b": {"c": "[redacted]"}}));
        assert!(!format!("{secrets:?}").contains("canary-7"));
    }
}

//! What a machine is told at its first start: who may log in, and by which key it is known.
//!
//! The text is a cloud-config, which cloud-init on any cloud's image understands, and so does our own first program of
//! machines. The machine's host key is made beforehand and travels in it: so the first connection is already checked.

use std::fmt;

use cloud_providers::secrecy::{ExposeSecret, SecretString};
use cloud_providers::{Error, ErrorKind, Result, UserData, cloud_config};
use serde::{Deserialize, Deserializer};
use ssh_key::{
    LineEnding, PrivateKey, PublicKey,
    private::{Ed25519Keypair, KeypairData},
};

/// The account of whoever may become anybody.
pub const ROOT: &str = "root";

/// An SSH host key. `Debug` shows its public half only.
pub struct HostKey {
    private: SecretString,
    public: String,
}

impl HostKey {
    /// Makes a key of the kind Ed25519.
    ///
    /// # Errors
    ///
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self> {
        let failed = |e: ssh_key::Error| Error::internal("cannot make a host key").with_source(e);
        let seed: [u8; 32] = rand::random();
        let pair = Ed25519Keypair::from_seed(&seed);
        let key = PrivateKey::new(KeypairData::Ed25519(pair), "").map_err(failed)?;
        let private = key.to_openssh(LineEnding::LF).map_err(failed)?;
        let public = key.public_key().to_openssh().map_err(failed)?;
        Ok(Self { private: SecretString::from(private.as_str()), public: public.trim().to_owned() })
    }

    /// Returns the public half as `<type> <base64>`.
    pub fn public(&self) -> &str {
        &self.public
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.public)
    }
}

/// What a machine is told.
#[derive(Debug)]
#[non_exhaustive]
pub struct MachineData<'a> {
    /// Its host name.
    pub hostname: &'a str,
    /// The account to log in as; it may become root without a password.
    pub user: &'a str,
    /// Public keys that may log in, in the form of `authorized_keys`.
    pub authorized_keys: Vec<&'a str>,
    /// The key that the machine proves itself with.
    pub host_key: &'a HostKey,
}

impl<'a> MachineData<'a> {
    /// Describes a machine with one key.
    pub fn new(hostname: &'a str, user: &'a str, authorized_key: &'a str, host_key: &'a HostKey) -> Self {
        Self { hostname, user, authorized_keys: vec![authorized_key], host_key }
    }

    /// Writes the cloud-config.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming everything that is no host name, no account or no public key.
    pub fn to_user_data(&self) -> Result<UserData> {
        let mut problems = Vec::new();
        if !is_hostname(self.hostname) {
            problems.push(format!("{:?} is no host name", self.hostname));
        }
        if !is_account(self.user) {
            problems.push(format!(
                "{:?} is no account: write 1 to 32 of a-z, 0-9, _ and -, beginning with a letter or _",
                self.user
            ));
        }
        let keys: Vec<&str> = self.authorized_keys.iter().map(|k| k.trim()).collect();
        if keys.is_empty() {
            problems.push("there is no public key that may log in".into());
        }
        for key in &keys {
            if let Err(error) = PublicKey::from_openssh(key) {
                problems.push(format!("{key:?} is no public key of SSH: {error}"));
            }
        }
        match Error::all(ErrorKind::Config, problems) {
            Some(error) => Err(error),
            None => Ok(UserData::new(self.text(&keys))),
        }
    }

    fn text(&self, keys: &[&str]) -> String {
        let q = cloud_config::quoted;
        let root = self.user == ROOT;
        let mut text = format!("{}\n\nhostname: {}\n", cloud_config::HEADER, q(self.hostname));
        // A password that an image came with is nobody's business any more.
        text.push_str("ssh_pwauth: false\n");
        text.push_str(&format!("disable_root: {}\n", !root));
        text.push_str(&format!("users:\n- name: {}\n", q(self.user)));
        if root {
            // A locked account is refused by a server that does without PAM.
            text.push_str("  lock_passwd: false\n");
        } else {
            text.push_str(
                "  sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n  shell: \"/bin/bash\"\n  lock_passwd: true\n",
            );
        }
        text.push_str("  ssh_authorized_keys:\n");
        for key in keys {
            text.push_str(&format!("  - {}\n", q(key)));
        }
        let private = self.host_key.private.expose_secret();
        text.push_str("ssh_deletekeys: true\nssh_genkeytypes: []\nssh_keys:\n");
        text.push_str(&format!("  ed25519_private: {}\n", q(private)));
        text.push_str(&format!("  ed25519_public: {}\n", q(&self.host_key.public)));
        text
    }
}

/// The part of a cloud-config that our own first program of machines follows. Other keys are passed over, as
/// cloud-init has many.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct CloudInit {
    pub(crate) hostname: Option<String>,
    pub(crate) users: Vec<User>,
    pub(crate) ssh_keys: SshKeys,
    pub(crate) write_files: Vec<File>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) sudo: Option<String>,
    pub(crate) shell: Option<String>,
    pub(crate) ssh_authorized_keys: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct SshKeys {
    #[serde(deserialize_with = "secret")]
    pub(crate) ed25519_private: Option<SecretString>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}

#[derive(Deserialize)]
pub(crate) struct File {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) content: String,
    pub(crate) permissions: Option<String>,
}

impl CloudInit {
    /// Reads a cloud-config.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] with the line, without quoting the text, which holds a key.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let document: Option<Self> = serde_yaml::from_str(text).map_err(|e| {
            let line = e.location().map_or(0, |l| l.line());
            Error::config("the user data are no cloud-config").with("line", line)
        })?;
        Ok(document.unwrap_or_default())
    }
}

/// Whether `name` can be an account on any system.
pub(crate) fn is_account(name: &str) -> bool {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let rest = |c: char| first(c) || c.is_ascii_digit() || c == '-';
    name.len() <= 32 && name.starts_with(first) && name.chars().all(rest)
}

fn is_hostname(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn read(data: &UserData) -> Value {
        serde_yaml::from_str(std::str::from_utf8(data.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_text_carries_account_keys_and_host_key() {
        let (host, user) = (HostKey::generate().unwrap(), HostKey::generate().unwrap());
        let key = format!("{} me@home", user.public());
        let data = MachineData::new("web-1", "ada", &key, &host).to_user_data().unwrap();
        let value = read(&data);
        assert_eq!(value["hostname"], "web-1");
        assert_eq!(value["ssh_pwauth"], false);
        assert_eq!(value["disable_root"], true);
        assert_eq!(value["users"][0]["name"], "ada");
        assert_eq!(value["users"][0]["ssh_authorized_keys"][0], key.as_str());
        assert_eq!(value["ssh_keys"]["ed25519_public"], host.public());
        let private = value["ssh_keys"]["ed25519_private"].as_str().unwrap();
        let again = PrivateKey::from_openssh(private).unwrap();
        assert_eq!(again.public_key().to_openssh().unwrap().trim(), host.public());
        assert!(data.as_bytes().starts_with(b"#cloud-config\n"));
    }

    #[test]
    fn root_is_not_shut_out_where_it_is_the_account() {
        let (host, user) = (HostKey::generate().unwrap(), HostKey::generate().unwrap());
        let value = read(&MachineData::new("a", ROOT, user.public(), &host).to_user_data().unwrap());
        assert_eq!(value["disable_root"], false);
        assert!(value["users"][0].get("sudo").is_none());
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let host = HostKey::generate().unwrap();
        let error = MachineData::new("no_host", "No User", "no key", &host).to_user_data().unwrap_err();
        let text = error.to_string();
        for part in ["no_host", "No User", "no key"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn no_private_key_is_shown() {
        let host = HostKey::generate().unwrap();
        let data = MachineData::new("a", ROOT, host.public(), &host);
        assert!(!format!("{host:?}{data:?}").contains("PRIVATE"));
        assert!(host.private.expose_secret().contains("PRIVATE"));
        let broken = CloudInit::parse("ssh_keys: {ed25519_private: canary\n").err().unwrap();
        assert!(!format!("{broken:?}").contains("canary"));
    }

    proptest! {
        #[test]
        fn comments_of_keys_survive_every_reader(comment in "[^\\r\\n\\x00]{0,40}") {
            let host = HostKey::generate().unwrap();
            let key = format!("{} {comment}", host.public());
            let Ok(data) = MachineData::new("a", "root", &key, &host).to_user_data() else {
                return Err(TestCaseError::reject("no public key"));
            };
            let value = read(&data);
            prop_assert_eq!(value["users"][0]["ssh_authorized_keys"][0].as_str().unwrap(), key.trim());
        }
    }
}

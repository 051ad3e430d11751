//! What callers ask for.

use std::{fmt, net::IpAddr, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Capabilities, Error, ErrorKind, Result, Token, Unit, tags};

/// Asks for one machine. Serves pod VMs and testbed machines alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CreateRequest {
    /// Names scope, unit and attempt.
    pub token: Token,
    /// The node or the user that holds the instance.
    pub holder: String,
    /// The sandbox or machine.
    pub unit: Unit,
    /// Handed to the machine unread.
    pub user_data: UserData,
    /// Size, image, disks.
    pub spec: InstanceSpec,
    /// Networks wanted, in order; empty means the provider's default network.
    pub networks: Vec<NetworkRequest>,
    /// Ports that must be reachable.
    pub ports: Vec<PortRequest>,
    /// What the machine is for.
    pub role: Role,
}

impl CreateRequest {
    /// Asks for a guest with the provider's defaults.
    pub fn new(token: Token, unit: Unit, holder: impl Into<String>) -> Self {
        Self {
            token,
            holder: holder.into(),
            unit,
            user_data: UserData::default(),
            spec: InstanceSpec::default(),
            networks: Vec::new(),
            ports: Vec::new(),
            role: Role::Guest,
        }
    }

    /// Sets the user data.
    #[must_use]
    pub fn with_user_data(mut self, user_data: impl Into<Vec<u8>>) -> Self {
        self.user_data = UserData::new(user_data);
        self
    }

    /// Sets the instance spec.
    #[must_use]
    pub fn with_spec(mut self, spec: InstanceSpec) -> Self {
        self.spec = spec;
        self
    }

    /// Returns a digest of the whole request.
    ///
    /// The same token with another fingerprint is a conflict (rule `create/other-request-is-conflict`). What a request
    /// does not ask for takes no part: an instance made before an update is still found when a later version knows
    /// more fields.
    pub fn fingerprint(&self) -> String {
        let mut value = serde_json::to_value(self).expect("requests are plain data with text keys");
        drop_defaults(&mut value);
        // Maps of serde_json are sorted, so the text does not depend on the order of fields.
        tags::hash(&value.to_string(), 40)
    }

    /// Refuses what the provider's capabilities rule out, naming every problem at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for what it cannot do, [`ErrorKind::Config`] for what is over a limit.
    pub fn check(&self, can: &Capabilities) -> Result<()> {
        let spec = &self.spec;
        let mut refused = Vec::new();
        if spec.gpus > 0 && !can.gpus {
            refused.push(format!("{} GPUs", spec.gpus));
        }
        if !spec.volumes.is_empty() && !can.volumes {
            refused.push(format!("{} data volumes", spec.volumes.len()));
        }
        if spec.root_disk_gib.is_some() && !can.root_disk_size {
            refused.push("a root disk size".into());
        }
        if spec.image.is_some() && !can.images {
            refused.push("an image per request".into());
        }
        if self.networks.len() > 1 && !can.multi_nic {
            refused.push(format!("{} network interfaces", self.networks.len()));
        }
        if self.role == Role::Plain && !can.plain_machines {
            refused.push("plain machines".into());
        }
        if !self.ports.is_empty() && !can.ports {
            refused.push(format!("{} ports to be opened", self.ports.len()));
        }
        match &spec.confidential {
            Confidential::Yes if can.confidential.is_empty() => refused.push("confidential machines".into()),
            Confidential::Type(t) if !can.confidential.contains(t) => {
                refused.push(format!("confidential type {t}"))
            }
            _ => {}
        }
        if let Some(arch) = spec.architecture
            && !can.architectures.is_empty()
            && !can.architectures.contains(&arch)
        {
            refused.push(format!("architecture {arch}"));
        }
        if !refused.is_empty() {
            return Err(Error::unsupported(format!("the provider cannot give {}", refused.join(", "))));
        }
        match can.user_data_limit {
            Some(limit) if self.user_data.len() > limit => Err(Error::config("user data is too large")
                .with("bytes", self.user_data.len())
                .with("limit", limit)
                .with("reduce", "image pull secrets or init-data")),
            _ => Ok(()),
        }
    }
}

/// Removes fields that ask for nothing: null, false, 0, and what is empty.
fn drop_defaults(value: &mut serde_json::Value) {
    use serde_json::Value;
    if let Value::Object(map) = value {
        map.values_mut().for_each(drop_defaults);
        map.retain(|_, v| match v {
            Value::Null => false,
            Value::Bool(flag) => *flag,
            Value::Number(n) => n.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(map) => !map.is_empty(),
        });
    } else if let Value::Array(items) = value {
        // Items keep their places, also when they ask for nothing.
        items.iter_mut().for_each(drop_defaults);
    }
}

/// What a machine is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// Runs the guest programs of a pod VM.
    #[default]
    Guest,
    /// A machine one logs in to.
    Plain,
}

/// The machine wanted. Zero and `None` mean that the caller does not mind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct InstanceSpec {
    /// The cloud's own type name; has priority over the sizes.
    pub instance_type: Option<String>,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Number of GPUs.
    pub gpus: u32,
    /// GPU model, compared without regard to case.
    pub gpu_model: Option<String>,
    /// Processor architecture.
    pub architecture: Option<Architecture>,
    /// Image id or name, as the provider understands it.
    pub image: Option<String>,
    /// Whether memory must be protected from the host.
    pub confidential: Confidential,
    /// Size of the root disk in GiB.
    pub root_disk_gib: Option<u32>,
    /// Existing volumes to attach, in this order.
    pub volumes: Vec<VolumeRequest>,
}

/// Whether a machine must be confidential. What cannot be met is an error, never a downgrade.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Confidential {
    /// The provider's configuration decides.
    #[default]
    Default,
    /// Not confidential.
    No,
    /// Confidential, of any type.
    Yes,
    /// Confidential, of this type.
    Type(ConfidentialType),
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($(#[$vdoc:meta])* $variant:ident => $word:literal $(| $alias:literal)*),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Returns the fixed word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text.to_ascii_lowercase().as_str() {
                    $($word $(| $alias)* => Ok(Self::$variant),)+
                    _ => Err(Error::new(ErrorKind::Config, concat!("unknown ", $what))
                        .with("given", text)
                        .with("known", [$($word),+].join(" "))),
                }
            }
        }
    };
}

words!(
    /// A technology that protects a machine's memory.
    ConfidentialType, "confidential type", {
        /// AMD SEV-SNP.
        SevSnp => "sev-snp" | "snp",
        /// AMD SEV.
        Sev => "sev",
        /// Intel TDX.
        Tdx => "tdx",
        /// IBM Secure Execution for Linux.
        SecureExecution => "s390-pv" | "se",
        /// Arm CCA.
        Cca => "cca",
    }
);

words!(
    /// A processor architecture.
    Architecture, "architecture", {
        /// 64-bit x86.
        X86_64 => "x86_64" | "amd64",
        /// 64-bit Arm.
        Aarch64 => "aarch64" | "arm64",
        /// IBM Z.
        S390x => "s390x",
        /// IBM Power, little endian.
        Ppc64le => "ppc64le",
    }
);

/// An existing volume to attach. It belongs to the user and stays when the instance goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VolumeRequest {
    /// The cloud's id, or a path, as the provider understands it.
    pub disk_id: String,
    /// Serial number the guest finds it by, where the provider can set one.
    pub serial: Option<String>,
}

impl VolumeRequest {
    /// Names a volume.
    pub fn new(disk_id: impl Into<String>) -> Self {
        Self { disk_id: disk_id.into(), serial: None }
    }
}

/// A network interface wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkRequest {
    /// Network or subnet by the provider's naming; `None` for its default.
    pub network: Option<String>,
    /// A fixed address.
    pub address: Option<IpAddr>,
    /// An address reachable from the internet.
    pub public: bool,
}

/// A port to be reachable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// Port number.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// Opaque bytes for the machine. They hold keys, so nothing prints them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UserData(Vec<u8>);

impl UserData {
    /// Wraps the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns their number.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} bytes)", self.0.len())
    }
}

impl Serialize for UserData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for UserData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scope;

    fn request() -> CreateRequest {
        let token = Token::new(Scope::Cluster("c".into()), "s", 1);
        CreateRequest::new(token, Unit { id: "s".into(), name_hint: "web".into() }, "node-1")
    }

    #[test]
    fn a_request_crosses_a_process_boundary() {
        let request = request().with_user_data("secret \u{1}");
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<CreateRequest>(&json).unwrap(), request);
        assert!(!format!("{request:?}").contains("secret"));
    }

    #[test]
    fn another_request_has_another_fingerprint() {
        let mut other = request();
        other.spec.vcpus = 2;
        assert_ne!(request().fingerprint(), other.fingerprint());
        assert_eq!(request().fingerprint(), request().fingerprint());
    }

    #[test]
    fn a_fingerprint_outlives_fields_that_nobody_sets() {
        let request = request().with_user_data("x");
        let mut older = serde_json::to_value(&request).unwrap();
        // A version that knew neither volumes nor networks nor GPUs.
        older["spec"].as_object_mut().unwrap().retain(|k, _| k != "volumes" && k != "gpus");
        older.as_object_mut().unwrap().remove("networks");
        let mut newer = serde_json::to_value(&request).unwrap();
        drop_defaults(&mut older);
        drop_defaults(&mut newer);
        assert_eq!(older, newer);
        let mut two_nics = request.clone();
        two_nics.networks = vec![NetworkRequest::default(); 2];
        assert_ne!(two_nics.fingerprint(), request.fingerprint());
    }

    #[test]
    fn everything_unsupported_is_named_at_once() {
        let mut wanted = request();
        wanted.spec.gpus = 1;
        wanted.spec.confidential = Confidential::Yes;
        wanted.spec.volumes.push(VolumeRequest::new("v"));
        let text = wanted.check(&Capabilities::default()).unwrap_err().to_string();
        for part in ["1 GPUs", "confidential machines", "1 data volumes"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn user_data_is_checked_at_its_limit() {
        let can = Capabilities { user_data_limit: Some(3), ..Capabilities::default() };
        for (bytes, ok) in [("ab", true), ("abc", true), ("abcd", false)] {
            assert_eq!(request().with_user_data(bytes).check(&can).is_ok(), ok, "{bytes}");
        }
    }
}

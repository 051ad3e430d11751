//! What the daemon hands over for a sandbox, and what it can ask back: plain data that crosses a socket.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// How long the guest may take to be reached, unless said otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Where containerd's CSI driver leaves what it knows of directly assigned volumes.
pub const DIRECT_VOLUMES: &str = "/run/kata-containers/shared/direct-volumes";

/// Everything the gateway needs to serve one sandbox. It never has to ask back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProxySpec {
    /// Id of the sandbox.
    pub sandbox_id: String,
    /// Path of the agent socket the shim connects to.
    pub socket: PathBuf,
    /// Addresses of the forwarder in the guest, as `host:port`, tried in turn.
    pub targets: Vec<String>,
    /// Mutual TLS to the guest; plain TCP without.
    pub tls: Option<TlsSpec>,
    /// Cloud volumes attached to the instance. Without any, no container is told of cloud volumes.
    #[serde(default)]
    pub volumes: Vec<VolumeEntry>,
    /// Directory with the descriptions of directly assigned volumes.
    #[serde(default = "direct_volumes")]
    pub direct_volumes: PathBuf,
    /// How long the guest may take to be reached for the first time.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Duration,
    /// The place in a trace that the registration belongs to, as a `traceparent`, for the log.
    #[serde(default)]
    pub trace: Option<String>,
}

impl ProxySpec {
    /// Describes a sandbox that is reached over plain TCP and has no volumes.
    pub fn new(
        sandbox_id: impl Into<String>,
        socket: impl Into<PathBuf>,
        targets: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            sandbox_id: sandbox_id.into(),
            socket: socket.into(),
            targets: targets.into_iter().collect(),
            tls: None,
            volumes: Vec::new(),
            direct_volumes: direct_volumes(),
            connect_timeout: connect_timeout(),
            trace: None,
        }
    }

    /// Whether both describe the same; by which call they came is no part of it.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let without = |spec: &Self| Self { trace: None, ..spec.clone() };
        without(self) == without(other)
    }

    /// Sets the place in a trace that the registration belongs to.
    #[must_use]
    pub fn with_trace(mut self, traceparent: Option<String>) -> Self {
        self.trace = traceparent;
        self
    }

    /// Sets the TLS identities.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsSpec) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the cloud volumes of the instance.
    #[must_use]
    pub fn with_volumes(mut self, volumes: Vec<VolumeEntry>) -> Self {
        self.volumes = volumes;
        self
    }

    /// Sets how long the guest may take to be reached for the first time; 5 minutes else.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the directory with the descriptions of directly assigned volumes; [`DIRECT_VOLUMES`] else.
    #[must_use]
    pub fn with_direct_volumes(mut self, directory: impl Into<PathBuf>) -> Self {
        self.direct_volumes = directory.into();
        self
    }
}

fn direct_volumes() -> PathBuf {
    DIRECT_VOLUMES.into()
}

fn connect_timeout() -> Duration {
    CONNECT_TIMEOUT
}

/// The identities of a mutual TLS connection, as PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TlsSpec {
    /// CA that vouches for the guest.
    pub ca_pem: String,
    /// Certificate shown to the guest.
    pub cert_pem: String,
    /// Key of that certificate.
    pub key_pem: SecretPem,
    /// Name the guest's certificate must carry.
    pub server_name: String,
    /// Oldest version: `VersionTLS12`, `VersionTLS13`, or empty for the default.
    #[serde(default)]
    pub min_version: String,
    /// Cipher suites of TLS 1.2 by their IANA names; all safe ones when empty.
    #[serde(default)]
    pub cipher_suites: Vec<String>,
}

impl TlsSpec {
    /// Describes TLS with the default versions and cipher suites.
    pub fn new(
        ca_pem: impl Into<String>,
        cert_pem: impl Into<String>,
        key_pem: impl Into<SecretPem>,
        server_name: impl Into<String>,
    ) -> Self {
        Self {
            ca_pem: ca_pem.into(),
            cert_pem: cert_pem.into(),
            key_pem: key_pem.into(),
            server_name: server_name.into(),
            min_version: String::new(),
            cipher_suites: Vec::new(),
        }
    }

    /// Sets the oldest version and the cipher suites, as the options name them.
    #[must_use]
    pub fn with_profile(mut self, min_version: impl Into<String>, cipher_suites: Vec<String>) -> Self {
        self.min_version = min_version.into();
        self.cipher_suites = cipher_suites;
        self
    }
}

/// A private key as PEM. Its memory is wiped when it is dropped, and its `Debug` prints nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct SecretPem(Zeroizing<String>);

impl SecretPem {
    /// The key itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretPem {
    fn from(pem: String) -> Self {
        Self(pem.into())
    }
}

impl From<&str> for SecretPem {
    fn from(pem: &str) -> Self {
        Self::from(pem.to_owned())
    }
}

impl From<SecretPem> for String {
    fn from(secret: SecretPem) -> Self {
        secret.expose().to_owned()
    }
}

impl fmt::Debug for SecretPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretPem(..)")
    }
}

/// A cloud volume attached to the instance, in the order it was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VolumeEntry {
    /// Position among the volumes: its name is `vol-<index>`, its LUN the index.
    pub index: u32,
    /// Source of the mount on the node that stands for this volume.
    pub source: String,
    /// Filesystem, for example `ext4`.
    pub fs_type: String,
    /// Id of the disk as the cloud knows it.
    pub disk_id: String,
    /// Kind of encryption; empty for none.
    #[serde(default)]
    pub encrypt_type: String,
    /// Id of the key for an encrypted volume.
    #[serde(default)]
    pub key_id: String,
}

impl VolumeEntry {
    /// Describes a volume without encryption.
    pub fn new(
        index: u32,
        source: impl Into<String>,
        fs_type: impl Into<String>,
        disk_id: impl Into<String>,
    ) -> Self {
        Self {
            index,
            source: source.into(),
            fs_type: fs_type.into(),
            disk_id: disk_id.into(),
            ..Self::default()
        }
    }

    /// Sets the encryption and the id of its key.
    #[must_use]
    pub fn with_encryption(mut self, encrypt_type: impl Into<String>, key_id: impl Into<String>) -> Self {
        self.encrypt_type = encrypt_type.into();
        self.key_id = key_id.into();
        self
    }
}

/// How a guest was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReadyInfo {
    /// When the connection stood, TLS included.
    pub connected_at: SystemTime,
    /// Time from the registration until then.
    pub waited: Duration,
    /// Attempts it took.
    pub attempts: u64,
    /// The address that answered.
    pub target: String,
}

/// What the gateway knows of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProxyStatus {
    /// Id of the sandbox.
    pub sandbox_id: String,
    /// Path of its agent socket.
    pub socket: PathBuf,
    /// State of the connection to the guest.
    pub state: ProxyState,
    /// When the sandbox was registered.
    pub registered_at: SystemTime,
    /// Connections of shims that are open now.
    pub fronts: usize,
    /// Level agreed with the forwarder; 0 for an existing one, nothing before it has answered.
    pub peer_level: Option<u32>,
}

/// State of the connection to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProxyState {
    /// The guest is dialled.
    Connecting {
        /// Attempts since there was no connection.
        attempts: u64,
        /// Why the last attempt failed.
        error: Option<String>,
        /// Whether there was a connection before.
        reconnect: bool,
    },
    /// The guest is connected.
    Connected {
        /// The address that answered.
        target: String,
        /// Connections made so far, this one included.
        connections: u64,
    },
    /// The guest cannot be reached, and is dialled no more.
    Failed {
        /// Why.
        error: String,
    },
    /// The sandbox is being ended.
    Closed,
}

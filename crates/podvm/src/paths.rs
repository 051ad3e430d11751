//! Where the programs of a pod VM keep and find their files.

use std::path::{Path, PathBuf};

/// Folder of everything that user data and init-data bring.
pub const PEERPOD_DIR: &str = "/run/peerpod";
/// Configuration of the forwarder.
pub const APF_CONFIG: &str = "/run/peerpod/apf.json";
/// Registry credentials, read by the confidential data hub.
pub const AUTH_JSON: &str = "/run/peerpod/auth.json";
/// Configuration of the attestation agent; its unit starts when the file appears.
pub const AA_CONFIG: &str = "/run/peerpod/aa.toml";
/// Configuration of the confidential data hub.
pub const CDH_CONFIG: &str = "/run/peerpod/cdh.toml";
/// Policy of the agent.
pub const POLICY: &str = "/run/peerpod/policy.rego";
/// Init-data as it came: base64 of gzip of TOML.
pub const INITDATA: &str = "/run/peerpod/initdata";
/// Hash of the init-data in lower-case hex, without a newline.
pub const INITDATA_DIGEST: &str = "/run/peerpod/initdata.digest";
/// Its presence asks the image for an encrypted scratch disk.
pub const SCRATCH_MARKER: &str = "/run/peerpod/scratch-space.marker";
/// User data as a file: put there by the image, by SFTP or by a bind mount.
pub const USER_DATA_FILE: &str = "/media/cidata/user-data";
/// Socket of the Kata agent.
pub const AGENT_SOCKET: &str = "/run/kata-containers/agent.sock";
/// Socket of an agent that `podvm-init` starts. CreateSandbox makes the Kata agent empty `/run/kata-containers`, and a
/// forwarder that is started again after that would find no socket there.
pub const INIT_AGENT_SOCKET: &str = "/run/peerpod/agent.sock";
/// Network namespace of the pod.
pub const POD_NETNS: &str = "/run/netns/podns";
/// Socket of the confidential data hub.
pub const CDH_SOCKET: &str = "/run/confidential-containers/cdh.sock";
/// Folder under which cloud volumes are mounted.
pub const CLOUD_VOLUMES_DIR: &str = "/run/cloud-volumes";

/// A view of the file system from a root: `/` in a pod VM, a temporary folder in tests.
///
/// ```
/// use podvm::paths::{Paths, APF_CONFIG};
///
/// assert_eq!(Paths::host().at(APF_CONFIG).to_str(), Some("/run/peerpod/apf.json"));
/// assert_eq!(Paths::new("/tmp/x").at(APF_CONFIG).to_str(), Some("/tmp/x/run/peerpod/apf.json"));
/// ```
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Starts every path at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Uses the file system of this machine.
    pub fn host() -> Self {
        Self::new("/")
    }

    /// Places an absolute path under the root.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

//! Where the API server is, and how to get at it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use cloud_providers::EnvSource;
use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use peerpod_api::names;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// Where Kubernetes puts a pod's own credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A stream of changes tells something at least this often; silence for longer is a dead connection.
const READ_LIMIT: Duration = Duration::from_secs(150);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A way to the API server, and the namespace that this program works in.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// Namespace of the Lease, of the configuration and of the daemons' Leases.
    pub namespace: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Connection {
    /// Finds the API server where the existing controller finds it: `-kubeconfig`, the variable `KUBECONFIG`, what a pod
    /// has, and `~/.kube/config`. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// When there is none, or a file does not make sense; it is named.
    pub async fn find(kubeconfig: Option<String>, env: &dyn EnvSource) -> Result<Self> {
        let in_pod = env.variable("KUBERNETES_SERVICE_HOST");
        let named = kubeconfig.or_else(|| env.variable("KUBECONFIG"));
        let home =
            || env.variable("HOME").map(|home| Path::new(&home).join(".kube/config")).filter(|p| p.exists());
        let credentials = Path::new(SERVICE_ACCOUNT);
        let mut config = match (named, in_pod) {
            (Some(paths), _) => {
                of_files(paths.split(':').filter(|p| !p.is_empty()).map(PathBuf::from)).await?
            }
            (None, Some(host)) => {
                let port = env.variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
                of_pod(&host, &port, credentials)?
            }
            (None, None) => match home() {
                Some(path) => of_files([path]).await?,
                None => bail!(
                    "there is no API server: give -kubeconfig or KUBECONFIG, or run in a pod with a service account"
                ),
            },
        };
        // Every question here has limits and repeats of its own.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT_LIMIT);
        config.read_timeout = Some(READ_LIMIT);
        let client = Client::try_from(config).context("set up the client of the API server")?;
        Ok(Self { client, namespace: namespace(env, &credentials.join("namespace")) })
    }
}

/// The namespace of the configuration, as the existing controller is told it, or the pod's own.
///
/// The file of the service account ends in a line break with some, and not with others.
fn namespace(env: &dyn EnvSource, file: &Path) -> String {
    env.variable("PEERPODS_NAMESPACE")
        .or_else(|| env.variable("POD_NAMESPACE"))
        .or_else(|| fs::read_to_string(file).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| names::DEFAULT_NAMESPACE.to_owned())
}

/// Leaves out the line that the reader of the file quotes: it may be the one with the token.
fn unquoted(error: KubeconfigError) -> Error {
    match error {
        KubeconfigError::Parse(error) => {
            anyhow!("it is no kubeconfig{}", peerpod_api::place_in(&error.to_string()))
        }
        other => other.into(),
    }
}

async fn of_files(paths: impl IntoIterator<Item = PathBuf>) -> Result<Config> {
    let mut all = Kubeconfig::default();
    let mut first = None;
    for path in paths {
        let read = Kubeconfig::read_from(&path).map_err(unquoted);
        let read = read.with_context(|| format!("read {}", path.display()))?;
        all = all.merge(read).with_context(|| format!("merge {}", path.display()))?;
        first.get_or_insert(path);
    }
    let first = first.context("KUBECONFIG names no file")?;
    Config::from_custom_kubeconfig(all, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("make sense of {}", first.display()))
}

fn of_pod(host: &str, port: &str, credentials: &Path) -> Result<Config> {
    // An address of IPv6 is in brackets.
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let url = format!("https://{host}:{port}");
    let url = url.parse().with_context(|| {
        format!("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT give no address: {url}")
    })?;
    let file = |name: &str| credentials.join(name);
    let text =
        |name: &str| fs::read_to_string(file(name)).with_context(|| format!("read {}", file(name).display()));
    text("token").context("the pod has no token (automountServiceAccountToken)")?;
    let mut config = Config::new(url);
    config.root_cert =
        Some(certificates(&text("ca.crt")?).with_context(|| file("ca.crt").display().to_string())?);
    config.root_cert_file = Some(file("ca.crt"));
    // Read again by the client before it runs out.
    let token_file = Some(file("token").display().to_string());
    config.auth_info = AuthInfo { token_file, ..AuthInfo::default() };
    Ok(config)
}

fn certificates(pem: &str) -> Result<Vec<Vec<u8>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read: Vec<Vec<u8>> = read.context("it is no PEM")?.into_iter().map(|c| c.to_vec()).collect();
    if read.is_empty() {
        bail!("it holds no certificate");
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;

    use super::*;

    #[test]
    fn the_namespace_is_the_one_told_or_the_pods_own_without_its_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("namespace");
        let of = |env: &[(&str, &str)]| namespace(&MapEnv::new(env.iter().copied()), &file);
        assert_eq!(of(&[]), names::DEFAULT_NAMESPACE);
        fs::write(&file, "peer-pods\n").unwrap();
        assert_eq!(of(&[]), "peer-pods");
        assert_eq!(of(&[("POD_NAMESPACE", "own"), ("PEERPODS_NAMESPACE", "told ")]), "told");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_connection_is_told_with_the_thing_to_mend() {
        let dir = tempfile::tempdir().unwrap();
        let find = async |flag: Option<String>| {
            format!("{:#}", Connection::find(flag, &MapEnv::new([("X", "y")])).await.err().unwrap())
        };
        assert!(find(None).await.contains("-kubeconfig"));
        let path = dir.path().join("config");
        let text = path.display().to_string();
        assert!(find(Some(text.clone())).await.contains(&text), "missing");
        fs::write(&path, "not: [a, kubeconfig").unwrap();
        assert!(find(Some(text.clone())).await.contains(&text), "broken");
        let error = |host: &str| format!("{:#}", of_pod(host, "1", dir.path()).err().unwrap());
        assert!(error("::1").contains("automountServiceAccountToken"));
        fs::write(dir.path().join("token"), "t").unwrap();
        fs::write(dir.path().join("ca.crt"), "nothing").unwrap();
        assert!(error("::1").contains("holds no certificate"));
    }
}

//! Where the API server is, and how to get at it.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use cloud_providers::EnvSource;
use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use peerpod_api::names;

/// Where Kubernetes puts a pod's own credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API server is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Files of people and programs, the first one first.
    Kubeconfig(Vec<PathBuf>),
    /// What Kubernetes gives to a pod.
    Pod {
        /// Host of the API server.
        host: String,
        /// Port of the API server.
        port: String,
        /// Folder of the credentials.
        credentials: PathBuf,
    },
}

impl Source {
    /// Finds out where an API server is told; `None` where there is no cluster.
    ///
    /// A `-kubeconfig` comes first. The variable `KUBECONFIG` counts only where Kubernetes runs the daemon, that is with
    /// `NODE_NAME`: what a person has in the shell is not meant for a daemon. Last comes what a pod has; one without a
    /// token has no cluster, unless `NODE_NAME` says that it should.
    pub fn find(kubeconfig: Option<String>, env: &dyn EnvSource) -> Option<Self> {
        Self::find_with(kubeconfig, env, SERVICE_ACCOUNT.into())
    }

    fn find_with(kubeconfig: Option<String>, env: &dyn EnvSource, credentials: PathBuf) -> Option<Self> {
        let of_env = || env.variable("NODE_NAME").and_then(|_| env.variable("KUBECONFIG"));
        let paths =
            |text: String| text.split(':').filter(|p| !p.is_empty()).map(PathBuf::from).collect::<Vec<_>>();
        if let Some(paths) = kubeconfig.map(|path| vec![path.into()]).or_else(|| of_env().map(paths))
            && !paths.is_empty()
        {
            return Some(Self::Kubeconfig(paths));
        }
        let host = env.variable("KUBERNETES_SERVICE_HOST")?;
        if env.variable("NODE_NAME").is_none() && !credentials.join("token").exists() {
            return None;
        }
        let port = env.variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
        Some(Self::Pod { host, port, credentials })
    }

    /// Makes a client. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or does not make sense; it is named.
    pub async fn client(&self) -> Result<Client> {
        let mut config = match self {
            Self::Kubeconfig(paths) => {
                let mut all = Kubeconfig::default();
                for path in paths {
                    let read = Kubeconfig::read_from(path).map_err(unquoted);
                    let read = read.with_context(|| format!("read {}", path.display()))?;
                    all = all.merge(read).with_context(|| format!("merge {}", path.display()))?;
                }
                // Only what the file says: a proxy for the cloud is none for the cluster.
                let proxy = |config: &Kubeconfig| {
                    config.clusters.iter().any(|c| c.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some()))
                };
                if proxy(&all) {
                    bail!("{}: proxy-url is not supported", paths[0].display());
                }
                let options = KubeConfigOptions::default();
                let mut config = Config::from_custom_kubeconfig(all, &options)
                    .await
                    .with_context(|| format!("make sense of {}", paths[0].display()))?;
                config.proxy_url = None;
                config
            }
            Self::Pod { host, port, credentials } => {
                // An address of IPv6 is in brackets.
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                let url = format!("https://{host}:{port}");
                let url = url.parse().with_context(|| {
                    format!("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT give no address: {url}")
                })?;
                let file = |name: &str| credentials.join(name);
                let text = |name: &str| {
                    fs::read_to_string(file(name)).with_context(|| format!("read {}", file(name).display()))
                };
                text("token").context("the pod has no token (automountServiceAccountToken)")?;
                text("ca.crt")?;
                let mut config = Config::new(url);
                config.root_cert_file = Some(file("ca.crt"));
                config.root_cert = Some(
                    certificates(&text("ca.crt")?).with_context(|| file("ca.crt").display().to_string())?,
                );
                let token = Some(file("token").display().to_string());
                config.auth_info = AuthInfo { token_file: token, ..AuthInfo::default() };
                config
            }
        };
        // Every question here has limits and repeats of its own.
        config.default_retry = false;
        Client::try_from(config).context("set up the client of the API server")
    }

    /// Returns the namespace of this daemon's own objects.
    ///
    /// The file of the service account ends in a line break with some, and not with others.
    pub fn namespace(&self, env: &dyn EnvSource) -> String {
        let file = match self {
            Self::Kubeconfig(_) => None,
            Self::Pod { credentials, .. } => fs::read_to_string(credentials.join("namespace")).ok(),
        };
        env.variable("POD_NAMESPACE")
            .or(file)
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| names::DEFAULT_NAMESPACE.to_owned())
    }
}

fn certificates(pem: &str) -> Result<Vec<Vec<u8>>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read: Vec<Vec<u8>> = read.context("it is no PEM")?.into_iter().map(|c| c.to_vec()).collect();
    if read.is_empty() {
        bail!("it holds no certificate");
    }
    Ok(read)
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

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;

    use super::*;

    fn find(flag: Option<&str>, env: &[(&str, &str)]) -> Option<Source> {
        Source::find(flag.map(str::to_owned), &MapEnv::new(env.iter().copied()))
    }

    #[test]
    fn a_cluster_is_found_where_somebody_meant_it() {
        let file = |path: &str| Some(Source::Kubeconfig(vec![path.into()]));
        assert_eq!(find(None, &[]), None);
        assert_eq!(find(None, &[("KUBECONFIG", "/home/me/.kube/config")]), None, "a person's shell");
        assert_eq!(find(None, &[("NODE_NAME", "n"), ("KUBECONFIG", "/a")]), file("/a"));
        assert_eq!(find(Some("/b"), &[("NODE_NAME", "n"), ("KUBECONFIG", "/a")]), file("/b"));
        assert_eq!(
            find(None, &[("NODE_NAME", "n"), ("KUBECONFIG", "/a:/c")]),
            Some(Source::Kubeconfig(vec!["/a".into(), "/c".into()]))
        );
        let dir = tempfile::tempdir().unwrap();
        let pod = |env: &[(&str, &str)]| {
            Source::find_with(None, &MapEnv::new(env.iter().copied()), dir.path().to_owned())
        };
        let host = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        assert_eq!(pod(&[host]), None, "a pod that was given no token");
        assert!(matches!(pod(&[host, ("NODE_NAME", "n")]), Some(Source::Pod { port, .. }) if port == "443"));
        fs::write(dir.path().join("token"), "t").unwrap();
        assert!(matches!(pod(&[host]), Some(Source::Pod { .. })));
    }

    #[test]
    fn the_namespace_is_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("namespace"), "peer-pods\n").unwrap();
        let source = Source::Pod { host: "h".into(), port: "1".into(), credentials: dir.path().into() };
        assert_eq!(source.namespace(&MapEnv::default()), "peer-pods");
        assert_eq!(source.namespace(&MapEnv::new([("POD_NAMESPACE", "other ")])), "other");
        let none = Source::Kubeconfig(Vec::new());
        assert_eq!(none.namespace(&MapEnv::default()), names::DEFAULT_NAMESPACE);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let error = async |source: &Source| format!("{:#}", source.client().await.err().unwrap());
        let file = Source::Kubeconfig(vec![path.clone()]);
        assert!(error(&file).await.contains(path.to_str().unwrap()));
        fs::write(&path, "not: [a, kubeconfig").unwrap();
        assert!(error(&file).await.contains(path.to_str().unwrap()));
        let pod = Source::Pod { host: "::1".into(), port: "1".into(), credentials: dir.path().into() };
        assert!(error(&pod).await.contains("token"));
        fs::write(dir.path().join("token"), "t").unwrap();
        fs::write(dir.path().join("ca.crt"), "nothing").unwrap();
        assert!(error(&pod).await.contains("holds no certificate"));
    }
}

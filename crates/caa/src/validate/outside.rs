//! What is beside the daemon: the gateway, the cluster, the provider.

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    Capabilities, CheckOutcome, Cloud, Error, ErrorKind, Finding, OpContext, Provider, layers,
};
use peerpod_api::names;
use peerpod_gateway::RemoteGateway;
use peerpod_net::PodNetwork;

use super::{checks, settings::Options};
use crate::{
    config::DaemonConfig,
    daemon,
    identity::Identity,
    kubernetes::{
        api::{Api, ApiError},
        client::KubeApi,
        connect::Source,
    },
    user_data::{AUTH_LIMIT, GuestFiles},
};

/// How long a gateway on this node may take.
const GATEWAY_LIMIT: Duration = Duration::from_secs(2);
/// How long the API server may take over one question.
const CLUSTER_LIMIT: Duration = Duration::from_secs(10);
/// How long making and freeing the provider may take.
const PROVIDER_LIMIT: Duration = Duration::from_secs(60);

const GATEWAY: &str = "-gateway-socket or GATEWAY_SOCKET";
const NODE_NAME: &str = "-node-name or NODE_NAME";
const KUBECONFIG: &str = "-kubeconfig or KUBECONFIG";
/// A name that no pod has, to ask for a record that is not there.
const NOBODY: &str = "peerpod-validate";

/// Asks the gateway for its version.
pub(super) async fn gateway(config: &DaemonConfig) -> Option<Finding> {
    let path = config.gateway_socket.as_ref()?;
    let remote =
        RemoteGateway::new(path).with_name("cloud-api-adaptor validate").with_reconnect_time(GATEWAY_LIMIT);
    Some(match remote.describe().await {
        Ok(about) if !about.serves_shims => Finding::warning(
            checks::GATEWAY,
            format!(
                "the gateway {} at {} cannot serve shims: the end of a daemon breaks their connections",
                about.version,
                path.display()
            ),
        )
        .with_option(GATEWAY)
        .with_remedy("update the gateway"),
        Ok(about) => Finding::ok(
            checks::GATEWAY,
            format!(
                "version {} answers at {} and speaks level {}",
                about.version,
                path.display(),
                about.level
            ),
        ),
        Err(error) => Finding::failed(checks::GATEWAY, error.to_string())
            .with_option(GATEWAY)
            .with_remedy("start peerpod-gateway with this -control-socket, or leave the option out"),
    })
}

/// Reads what says where the API server is; with `live` asks it.
pub(super) async fn cluster(config: &DaemonConfig, live: bool) -> Vec<Finding> {
    let Some(source) = &config.kubernetes else { return Vec::new() };
    let option = match source {
        Source::Kubeconfig(_) => KUBECONFIG,
        Source::Pod { .. } => "KUBERNETES_SERVICE_HOST",
    };
    let failed = |detail: String, option: &str, remedy: &str| {
        Finding::failed(checks::CLUSTER, detail).with_option(option).with_remedy(remedy)
    };
    let client = match source.client().await {
        Ok(client) => client,
        Err(error) => {
            return vec![failed(format!("{error:#}"), option, "mend the file, or name another one")];
        }
    };
    if !live {
        return vec![Finding::ok(checks::CLUSTER, "the files that say where it is make sense")];
    }
    let api = KubeApi::new(client);
    let node = match tokio::time::timeout(CLUSTER_LIMIT, api.node(&config.node_name)).await {
        Ok(node) => node,
        Err(_) => Err(ApiError::Unavailable(format!("no answer within {CLUSTER_LIMIT:?}"))),
    };
    let mut findings = vec![match node {
        Ok(Some(_)) => {
            Finding::ok(checks::CLUSTER, format!("the API server knows node {}", config.node_name))
        }
        Ok(None) => failed(
            format!("the cluster has no node {}", config.node_name),
            NODE_NAME,
            "give the name that `kubectl get nodes` shows",
        ),
        Err(error @ ApiError::Unavailable(_)) => {
            return vec![failed(error.to_string(), option, "look at the API server and the way to it")];
        }
        Err(error) => failed(error.to_string(), NODE_NAME, RIGHTS),
    }];
    let record = tokio::time::timeout(CLUSTER_LIMIT, api.record(&config.namespace, NOBODY));
    findings.push(match record.await {
        Ok(Ok(_)) => Finding::ok(checks::CLUSTER, "records of pod VMs can be kept"),
        Ok(Err(error @ ApiError::NoSuchKind)) => {
            failed(error.to_string(), option, "peerpod-ctrl crd | kubectl apply -f -")
        }
        Ok(Err(error)) => failed(format!("records of pod VMs: {error}"), option, RIGHTS),
        Err(_) => Finding::not_checked(checks::CLUSTER, "records of pod VMs: no answer came in time"),
    });
    if config.cluster_id.is_none() {
        let id = tokio::time::timeout(CLUSTER_LIMIT, api.namespace_uid(names::CLUSTER_ID_NAMESPACE)).await;
        if let Ok(Err(error)) = id {
            findings.push(
                Finding::warning(checks::CLUSTER, format!("the cluster's id: {error}"))
                    .with_option("-cluster-id or CLUSTER_ID")
                    .with_remedy("let the service account get the namespace kube-system, or set it"),
            );
        }
    }
    findings
}

const RIGHTS: &str = "give the service account the daemon's ClusterRole";

/// Makes the provider and asks it. Returns it when it could be made.
pub(super) async fn provider(
    config: &DaemonConfig,
    cloud: &mut dyn Cloud,
    name: &str,
    options: Options,
) -> (Vec<Finding>, Option<Arc<dyn Provider>>) {
    let made = tokio::time::timeout(PROVIDER_LIMIT, cloud.new_provider()).await;
    let late = |_| Error::new(ErrorKind::Transient, "the provider was not ready in time");
    let provider = match made.map_err(late).and_then(|made| made) {
        Ok(provider) => provider,
        Err(error) => return (vec![options.completed(Finding::of_error(checks::PROVIDER, &error))], None),
    };
    let can = provider.capabilities();
    let mut findings = able(config, &can, name);
    findings.push(guest(config, &can, name));
    if !can.verify_config {
        findings
            .push(Finding::not_checked(checks::PROVIDER, "this provider cannot verify its configuration"));
        return (findings, Some(provider));
    }
    let layered = layers::standard(name, provider.clone(), &config.layers, Arc::new(layers::NoObserver));
    let ctx = OpContext::new().with_timeout(daemon::VERIFY_LIMIT);
    match layered.verify_config(&ctx).await {
        Ok(report) => findings.extend(report.findings.into_iter().map(|finding| options.completed(finding))),
        Err(error) => findings.push(options.completed(Finding::of_error(checks::PROVIDER, &error))),
    }
    (findings, Some(provider))
}

/// Frees what a provider holds that nobody uses any more.
pub(super) async fn free(provider: Arc<dyn Provider>) {
    // What it holds goes with the process as well.
    let _ = tokio::time::timeout(PROVIDER_LIMIT, provider.teardown()).await;
}

/// What the options ask of a provider that it does not have.
fn able(config: &DaemonConfig, can: &Capabilities, name: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(problem) = daemon::clear_calls(config, can, name) {
        findings.push(
            Finding::failed(checks::PROVIDER, problem)
                .with_option("-disable-tls")
                .with_remedy("leave out -disable-tls"),
        );
    }
    if config.external_network && !can.multi_nic {
        findings.push(
            Finding::failed(
                checks::PROVIDER,
                format!(
                    "-ext-network-via-podvm needs a second interface, which instances of {name} do not have"
                ),
            )
            .with_option("-ext-network-via-podvm or EXTERNAL_NETWORK_VIA_PODVM")
            .with_remedy("leave it out"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(checks::PROVIDER, format!("{name} can do what the options ask")));
    }
    findings
}

/// The user data of a pod with the longest name.
fn guest(config: &DaemonConfig, can: &Capabilities, provider: &str) -> Finding {
    let name = "p".repeat(63);
    let data = || -> anyhow::Result<usize> {
        let identity = match config.disable_tls {
            true => None,
            false => Some(Identity::generate(&name, &config.custom_tls)?),
        };
        let files = GuestFiles {
            network: &PodNetwork::default(),
            pod_name: &name,
            pod_namespace: &name,
            identity: identity.as_ref(),
            tls_min_version: &config.tls_min_version,
            tls_cipher_suites: &config.tls_cipher_suites,
            auth_json: None,
            init_data: config.init_data.as_ref().map(secrecy::ExposeSecret::expose_secret),
            scratch_space: config.scratch_space,
        };
        Ok(files.user_data()?.0.len())
    };
    match (data(), can.user_data_limit) {
        (Err(error), _) => {
            Finding::failed(checks::GUEST, format!("the user data cannot be written: {error:#}"))
        }
        (Ok(bytes), None) => Finding::ok(
            checks::GUEST,
            format!("a pod has {bytes} bytes of user data, for which {provider} names no limit"),
        ),
        (Ok(bytes), Some(limit)) if bytes > limit => Finding::failed(
            checks::GUEST,
            format!("a pod has {bytes} bytes of user data, and {provider} takes {limit}"),
        )
        .with_option("-initdata or INITDATA")
        .with_remedy(format!("make it {} bytes shorter", bytes - limit)),
        (Ok(bytes), Some(limit)) => Finding::new(
            checks::GUEST,
            CheckOutcome::Ok,
            format!(
                "a pod has {bytes} bytes of user data, and {provider} takes {limit}; image pull secrets may have {}",
                limit.saturating_sub(bytes).min(AUTH_LIMIT)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use cloud_providers::{MapEnv, Settings};

    use super::*;

    fn config(args: &[(&str, &str)]) -> DaemonConfig {
        let env = MapEnv::new(args.iter().copied());
        let mut settings = Settings::new(crate::config::OPTIONS);
        settings.load_env(&env);
        DaemonConfig::check(&settings.parse().unwrap(), &env).0
    }

    #[test]
    fn user_data_is_compared_with_what_the_provider_takes() {
        let mut can = Capabilities::default();
        let init = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = ''\n";
        let finding = |can: &Capabilities| guest(&config(&[("INITDATA", init)]), can, "small");
        assert_eq!(finding(&can).outcome, CheckOutcome::Ok);
        can.user_data_limit = Some(256);
        let found = finding(&can);
        assert_eq!(found.outcome, CheckOutcome::Failed, "{found}");
        assert!(
            found.detail.contains("small takes 256") && found.to_string().contains("INITDATA"),
            "{found}"
        );
        // As many bytes as there are, and one less.
        let words = found.detail.split(' ');
        let bytes: usize = words.filter_map(|word| word.parse().ok()).next().unwrap();
        for (limit, outcome) in [(bytes + 64, CheckOutcome::Ok), (bytes - 64, CheckOutcome::Failed)] {
            can.user_data_limit = Some(limit);
            assert_eq!(finding(&can).outcome, outcome, "{limit} for {bytes}");
        }
    }

    #[test]
    fn what_a_provider_cannot_do_is_told_of_the_option_that_asks_for_it() {
        let mut can = Capabilities::default();
        let asked = config(&[("EXTERNAL_NETWORK_VIA_PODVM", "true")]);
        let found = able(&asked, &can, "plain");
        assert!(found.len() == 1 && found[0].to_string().contains("-ext-network-via-podvm"), "{found:?}");
        can.multi_nic = true;
        assert_eq!(able(&asked, &can, "rich")[0].outcome, CheckOutcome::Ok);
    }
}

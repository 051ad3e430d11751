//! Secrets of options, of profiles and of the API server come out of the controller by no way.

use std::{
    process::Command,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use cloud_providers::{OptionKind, OptionSpec, layers::LayerSettings, registered};
use cloud_providers_bundle as _;
use peerpod_ctrl::{
    cluster::ClusterError,
    metrics::Metrics,
    profiles::{ConfigSource, Profiles, Variables},
    providers::Providers as _,
};
use test_support::Canaries;

fn value(spec: &OptionSpec, canary: &str) -> String {
    match spec.kind {
        OptionKind::Map => format!("k={canary}"),
        _ => canary.to_owned(),
    }
}

/// A configuration that does not work, and what is told of it.
#[derive(Default)]
struct Config {
    variables: Variables,
    told: Mutex<Vec<String>>,
}

#[async_trait]
impl ConfigSource for Config {
    async fn read(&self, _: Option<&str>) -> Result<Option<Variables>, ClusterError> {
        Ok(Some(self.variables.clone()))
    }

    async fn changed(&self) {
        std::future::pending().await
    }

    async fn report(&self, _: Option<&str>, message: &str) {
        self.told.lock().unwrap().push(message.to_owned());
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_option_of_a_profile_is_told_whether_it_works_or_not() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut seen = 0;
    for provider in registered() {
        let specs = (provider.new)().settings().specs();
        let mut canaries = Canaries::new();
        let mut variables = Variables::from([("CLOUD_PROVIDER".to_owned(), provider.name.to_owned())]);
        for spec in specs.iter().filter(|spec| spec.secret) {
            let canary = canaries.plant(spec.flag);
            variables.extend(spec.env.map(|key| (key.to_owned(), value(spec, &canary))));
        }
        if canaries.is_empty() {
            continue;
        }
        seen += 1;
        let broken =
            specs.iter().find(|spec| spec.kind != OptionKind::Text && !spec.secret).and_then(|s| s.env);
        for nonsense in [None, broken] {
            let mut variables = variables.clone();
            variables.extend(nonsense.map(|key| (key.to_owned(), "no value of this kind".to_owned())));
            let config = Arc::new(Config { variables, told: Mutex::default() });
            let metrics = Metrics::new();
            let profiles =
                Profiles::new(config.clone(), Vec::new(), LayerSettings::default(), metrics.clone());
            profiles.reload().await;
            let all = profiles.all().await;
            assert_eq!(nonsense.is_some(), all.iter().any(|(_, account)| account.is_err()), "{all:?}");
            let told = config.told.lock().unwrap().clone();
            let text = format!("{all:?} {all:#?} {told:?} {}", metrics.text());
            canaries.assert_not_in(&format!("the account of {}", provider.name), text);
        }
        canaries.assert_not_in("the log", log.0.lock().unwrap().clone());
    }
    assert!(seen > 0 && !log.0.lock().unwrap().is_empty(), "no provider has a secret option");
}

#[test]
fn a_token_for_the_api_server_is_in_no_error() {
    let mut canaries = Canaries::new();
    let token = canaries.plant("the token of the API server");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    for text in [
        // No API server, a file that is none, and one whose end is missing.
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"nonsense://\"}}}}]\n\
             users: [{{name: u, user: {{token: \"{token}\"}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        ),
        format!("users: [{{name: u, user: {{token: [\"{token}\"]}}}}]"),
        format!("users: [{{name: u, user: {{token: \"{token}"),
    ] {
        std::fs::write(&file, text).unwrap();
        let out = Command::new(env!("CARGO_BIN_EXE_peerpod-ctrl"))
            .args(["drain", "-dry-run", "-timeout", "2s", "-log-level", "trace", "-kubeconfig"])
            .arg(&file)
            .env_clear()
            .output()
            .unwrap();
        assert!(!out.status.success());
        canaries.assert_not_in("the error", [out.stdout, out.stderr].concat());
    }
}

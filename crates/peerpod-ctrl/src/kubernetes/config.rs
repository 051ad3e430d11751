//! The ConfigMap and the Secret of each profile.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Event, EventSource, ObjectReference, Secret},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Resource,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use peerpod_api::names;
use serde::de::DeserializeOwned;
use tokio::{sync::Notify, task::JoinSet};

use super::{Connection, asked, maybe};
use crate::{
    cluster::ClusterError,
    profiles::{ConfigSource, Variables},
};

/// How long a quiet stream of changes may last before the server ends it, in seconds.
const WATCH_SECONDS: u32 = 120;

/// The configuration in Kubernetes: `peer-pods-cm` with `peer-pods-secret`, and the same names with `-<profile>`.
#[derive(Debug)]
pub struct KubeConfig {
    connection: Connection,
    changed: Arc<Notify>,
    /// Ends with this value.
    _watchers: JoinSet<()>,
}

impl KubeConfig {
    /// Watches the objects of the default profile and of `named`.
    pub fn new(connection: &Connection, named: &[String]) -> Self {
        let changed = Arc::new(Notify::new());
        let mut watchers = JoinSet::new();
        for profile in std::iter::once(None).chain(named.iter().map(|n| Some(n.as_str()))) {
            let (map, secret) = object_names(profile);
            let (client, namespace) = (connection.client.clone(), &connection.namespace);
            watchers.spawn(watch(
                Api::<ConfigMap>::namespaced(client.clone(), namespace),
                map,
                changed.clone(),
            ));
            watchers.spawn(watch(Api::<Secret>::namespaced(client, namespace), secret, changed.clone()));
        }
        Self { connection: connection.clone(), changed, _watchers: watchers }
    }
}

/// The ConfigMap and the Secret of a profile.
fn object_names(profile: Option<&str>) -> (String, String) {
    match profile {
        None => (names::CONFIG_MAP.to_owned(), names::SECRET.to_owned()),
        Some(name) => (format!("{}-{name}", names::CONFIG_MAP), format!("{}-{name}", names::SECRET)),
    }
}

/// Tells `changed` whenever the object of this name changes, for ever.
async fn watch<K>(api: Api<K>, name: String, changed: Arc<Notify>)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    // One name: a role that is limited to names allows this and nothing more.
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    let mut stream = watcher(api, config).default_backoff().boxed();
    while let Some(event) = stream.next().await {
        match event {
            Ok(_) => changed.notify_one(),
            // Read every minute all the same.
            Err(error) => {
                tracing::debug!(name, error = super::chain(&error), "the configuration cannot be watched")
            }
        }
    }
}

#[async_trait]
impl ConfigSource for KubeConfig {
    async fn read(&self, profile: Option<&str>) -> Result<Option<Variables>, ClusterError> {
        let (map, secret) = object_names(profile);
        let (client, namespace) = (&self.connection.client, &self.connection.namespace);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let map = maybe(asked(maps.get(&map)).await)?;
        let secret = maybe(asked(secrets.get(&secret)).await)?;
        Ok(variables(map, secret))
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }

    async fn report(&self, profile: Option<&str>, message: &str) {
        let (map, _) = object_names(profile);
        let namespace = self.connection.namespace.clone();
        let now = Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{map}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("ConfigMap".into()),
                name: Some(map),
                namespace: Some(namespace.clone()),
                ..ObjectReference::default()
            },
            type_: Some("Warning".into()),
            reason: Some("ConfigurationBroken".into()),
            message: Some(super::cluster::cut(message).to_owned()),
            source: Some(EventSource { component: Some(names::CONTROLLER.into()), host: None }),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.connection.client.clone(), &namespace);
        if let Err(error) = asked(api.create(&PostParams::default(), &event)).await {
            tracing::debug!(%error, "the Event about the configuration could not be written");
        }
    }
}

/// Puts both together; a key of the Secret comes before the same one of the ConfigMap, as with the existing controller.
fn variables(map: Option<ConfigMap>, secret: Option<Secret>) -> Option<Variables> {
    if map.is_none() && secret.is_none() {
        return None;
    }
    let mut all: Variables = map.and_then(|m| m.data).unwrap_or_default();
    let data: BTreeMap<String, _> = secret.and_then(|s| s.data).unwrap_or_default();
    for (key, bytes) in data {
        match String::from_utf8(bytes.0) {
            // An editor's last line break is no part of a credential.
            Ok(text) => drop(all.insert(key, text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(_) => tracing::warn!(key, "a value of the Secret is no text and is left out"),
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_secrets_value_comes_first_and_loses_its_line_break() {
        let map = ConfigMap {
            data: Some(BTreeMap::from([("A", "1"), ("B", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())))),
            ..ConfigMap::default()
        };
        let data =
            [("B", &b"3\n"[..]), ("C", &b"\xff"[..])].map(|(k, v)| (k.to_owned(), ByteString(v.to_vec())));
        let secret = Secret { data: Some(data.into()), ..Secret::default() };
        let all = variables(Some(map), Some(secret)).unwrap();
        assert_eq!(all.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["A=1", "B=3"]);
        assert_eq!(variables(None, None), None);
    }

    #[test]
    fn a_profile_has_objects_of_its_own() {
        assert_eq!(object_names(None), ("peer-pods-cm".into(), "peer-pods-secret".into()));
        assert_eq!(object_names(Some("eu")), ("peer-pods-cm-eu".into(), "peer-pods-secret-eu".into()));
    }
}

//! Accounts over a configuration in memory.

use cloud_providers::{
    CreateRequest, OpContext, Scope, Token, Unit,
    scripted::{OPTIONS, World},
};

use super::*;

#[derive(Default)]
struct Config {
    profiles: Mutex<BTreeMap<Option<String>, Variables>>,
    broken: std::sync::atomic::AtomicBool,
    told: Mutex<Vec<String>>,
    changed: tokio::sync::Notify,
}

impl Config {
    fn set(&self, profile: Option<&str>, variables: &[(&str, &str)]) {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.profiles.lock().unwrap().insert(profile.map(str::to_owned), variables);
        self.changed.notify_one();
    }
}

#[async_trait]
impl ConfigSource for Config {
    async fn read(&self, profile: Option<&str>) -> Result<Option<Variables>, ClusterError> {
        if self.broken.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(ClusterError::Unavailable("the link is down".into()));
        }
        Ok(self.profiles.lock().unwrap().get(&profile.map(str::to_owned)).cloned())
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }

    async fn report(&self, _: Option<&str>, message: &str) {
        self.told.lock().unwrap().push(message.to_owned());
    }
}

fn profiles(config: &Arc<Config>, named: &[&str]) -> Profiles {
    let named = named.iter().map(|n| (*n).to_owned()).collect();
    Profiles::new(config.clone(), named, LayerSettings::default(), Metrics::new())
}

fn world(name: &str) -> World {
    assert!(OPTIONS.iter().any(|o| o.env == Some("SCRIPTED_WORLD")));
    World::named(name)
}

async fn make_one(account: &Account, sandbox: &str) {
    let unit = Unit { id: sandbox.into(), name_hint: "web".into() };
    let request = CreateRequest::new(Token::new(Scope::Cluster("c".into()), sandbox, 1), unit, "node");
    account.provider.create_instance(&OpContext::new(), &request).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn several_profiles_of_one_provider_are_several_accounts() {
    let config = Arc::new(Config::default());
    let (one, two) = (world("profiles-one"), world("profiles-two"));
    config.set(None, &[("CLOUD_PROVIDER", "scripted"), ("SCRIPTED_WORLD", "profiles-one")]);
    config.set(Some("eu"), &[("CLOUD_PROVIDER", "scripted"), ("SCRIPTED_WORLD", "profiles-two")]);
    let profiles = profiles(&config, &["eu"]);
    profiles.reload().await;
    make_one(&profiles.account("scripted", None).await.unwrap(), "s1").await;
    assert!(!one.resources().is_empty() && two.resources().is_empty());
    make_one(&profiles.account("scripted", Some("eu")).await.unwrap(), "s2").await;
    assert!(!two.resources().is_empty());
    let names: Vec<String> = profiles.all().await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["scripted", "scripted/eu"], "both are swept before any record names them");
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_is_used_and_a_broken_one_is_told_and_is_not() {
    let config = Arc::new(Config::default());
    let (old, new) = (world("rotate-old"), world("rotate-new"));
    config.set(None, &[("CLOUD_PROVIDER", "scripted"), ("SCRIPTED_WORLD", "rotate-old")]);
    let profiles = Arc::new(profiles(&config, &[]));
    let stop = CancellationToken::new();
    let mut changes = profiles.changes();
    let following = tokio::spawn({
        let (profiles, stop) = (profiles.clone(), stop.clone());
        async move { profiles.follow(stop).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    changes.mark_unchanged();
    config.set(None, &[("CLOUD_PROVIDER", "scripted"), ("SCRIPTED_LATENCY", "very long")]);
    changes.changed().await.unwrap();
    make_one(&profiles.account("scripted", None).await.unwrap(), "s1").await;
    assert!(!old.resources().is_empty(), "the old one stays in use");
    let told = config.told.lock().unwrap().clone();
    assert!(
        told.len() == 1 && told[0].contains("SCRIPTED_LATENCY") && told[0].contains("stays in use"),
        "{told:?}"
    );
    assert!(profiles.metrics.text().contains("config_broken{account=\"scripted\"} 1"));
    config.set(None, &[("CLOUD_PROVIDER", "scripted"), ("SCRIPTED_WORLD", "rotate-new")]);
    changes.changed().await.unwrap();
    make_one(&profiles.account("scripted", None).await.unwrap(), "s2").await;
    assert!(!new.resources().is_empty());
    assert!(profiles.metrics.text().contains("config_broken{account=\"scripted\"} 0"));
    stop.cancel();
    following.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_changes_nothing() {
    let config = Arc::new(Config::default());
    config.set(None, &[("CLOUD_PROVIDER", "scripted")]);
    let profiles = profiles(&config, &[]);
    assert!(
        matches!(profiles.account("scripted", None).await, Err(NoAccount::Broken(_))),
        "nothing was read yet"
    );
    profiles.reload().await;
    config.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    profiles.reload().await;
    assert!(profiles.account("scripted", None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_a_record_may_not_name_is_refused_with_the_thing_to_mend() {
    let config = Arc::new(Config::default());
    config.set(None, &[]);
    config.set(Some("eu"), &[("CLOUD_PROVIDER", "local")]);
    config.set(Some("secret"), &[("CLOUD_PROVIDER", "scripted")]);
    let profiles = profiles(&config, &["eu"]);
    profiles.reload().await;
    for (provider, profile, part) in [
        ("nowhere", None, "unknown provider"),
        ("", None, "spec.cloudProvider"),
        ("scripted", Some("secret"), "-profiles"),
        ("scripted", Some("eu"), "one of provider local"),
    ] {
        match profiles.account(provider, profile).await {
            Err(NoAccount::Unknown(why)) => assert!(why.contains(part), "{part}: {why}"),
            other => panic!("{provider} {profile:?}: {other:?}"),
        }
    }
    assert!(
        profiles.account("scripted", None).await.is_ok(),
        "one configuration may serve several providers"
    );
}

#[tokio::test(start_paused = true)]
async fn calls_of_each_account_are_counted_with_their_end() {
    let config = Arc::new(Config::default());
    let world = world("profiles-counted");
    config.set(None, &[("CLOUD_PROVIDER", "scripted"), ("SCRIPTED_WORLD", "profiles-counted")]);
    let profiles = profiles(&config, &[]);
    profiles.reload().await;
    let account = profiles.account("scripted", None).await.unwrap();
    make_one(&account, "s1").await;
    // Of the two attempts the first fails for a passing reason.
    let busy = Error::new(ErrorKind::Throttled, "slow down");
    world.script(cloud_providers::scripted::Fault::on("list_resources").before(busy));
    let list = account.provider.list_owned(&OpContext::new(), &Scope::Cluster("c".into())).await.unwrap();
    let id = list.entries[0].instance.as_ref().unwrap().id.clone();
    let ownership = cloud_providers::Ownership::Tagged(Scope::Cluster("c".into()));
    account.provider.delete_instance(&OpContext::new(), &id, &ownership).await.unwrap();
    let text = profiles.metrics.text();
    for part in [
        "peerpod_ctrl_provider_calls_total{account=\"scripted\",operation=\"delete_instance\",outcome=\"ok\"} 1",
        "peerpod_ctrl_provider_calls_total{account=\"scripted\",operation=\"list_owned\",outcome=\"ok\"} 1",
        "peerpod_ctrl_provider_calls_running{account=\"scripted\",operation=\"delete_instance\"} 0",
        "peerpod_ctrl_provider_call_seconds_count{account=\"scripted\",operation=\"delete_instance\"} 1",
        "peerpod_ctrl_provider_repetitions_total{account=\"scripted\",operation=\"list_owned\",kind=\"throttled\"} 1",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

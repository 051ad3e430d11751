//! Names, and what is said to a provider.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use cloud_providers::MapEnv;
use testbed::{
    ErrorKind, Key, ProviderConfig, Result, Testbed,
    find::{self, Origin, Search},
};

use crate::double::{Act, Double};

testbed::register_testbed! {
    name: "my-provider",
    aliases: &["mine", "My-Own"],
    summary: "for the tests",
    keys: KEYS,
    new: |config| Box::pin(make(config)),
}

testbed::register_testbed! {
    name: "claimed",
    aliases: &[],
    summary: "the first of two that answer to a name",
    keys: &[],
    new: |_| Box::pin(std::future::ready(Ok(Double::new(Act::default()) as Arc<dyn Testbed>))),
}

testbed::register_testbed! {
    name: "claims",
    aliases: &["CLAIMED"],
    summary: "the second of two that answer to a name",
    keys: &[],
    new: |_| Box::pin(std::future::ready(Ok(Double::new(Act::default()) as Arc<dyn Testbed>))),
}

const KEYS: &[Key] = &[
    Key::int("any-extra-var", 0, 100, "Seven in the manual").default("3"),
    Key::bool("loud", "Talks"),
    Key::list("tags", "Words"),
    Key::text("token", "What it is let in with").secret(),
];

async fn make(config: &ProviderConfig) -> Result<Arc<dyn Testbed>> {
    // What the provider is given is what the document says, typed.
    assert!((0..=100).contains(&config.int("any-extra-var").expect("it has a default")));
    assert_eq!(config.list("tags").len(), if config.flag("loud") { 2 } else { 0 });
    Ok(Double::new(Act::default()))
}

fn nowhere() -> Search {
    Search::new(Arc::new(MapEnv::default()))
}

fn on_path(folder: &Path) -> Search {
    Search::new(Arc::new(MapEnv::new([("PATH", folder.to_str().unwrap())])))
}

async fn refused(search: &Search, config: ProviderConfig) -> String {
    let error = find::open(search, &config).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    error.to_string()
}

#[tokio::test]
async fn a_name_may_have_hyphens_other_letters_and_aliases() {
    for name in ["my-provider", "MY-Provider", "mine", "my-own"] {
        let found = find::find(&nowhere(), &ProviderConfig::new(name)).await.unwrap();
        assert_eq!((found.name.as_str(), found.origin), ("my-provider", Origin::Linked));
    }
}

#[tokio::test]
async fn a_name_is_a_name_whatever_it_contains() {
    // The first program looked for the text "type" in the name, and broke on this one.
    let text = refused(&nowhere(), ProviderConfig::new("prototype")).await;
    assert!(text.starts_with("unknown provider \"prototype\" (found: "), "{text}");
    for odd in ["", "../my-provider", "a b", "\n"] {
        assert!(refused(&nowhere(), ProviderConfig::new(odd)).await.contains("unknown provider"), "{odd:?}");
    }
}

#[tokio::test]
async fn an_unknown_name_lists_what_was_found_and_where_was_looked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("testbed-provider-shelf");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("testbed-provider-plain"), "").unwrap();
    let search = on_path(folder.path());
    let text = refused(&search, ProviderConfig::new("my-provder")).await;
    for part in [
        "did you mean \"my-provider\"?",
        "my-provider or mine or My-Own (linked in)",
        "scripted (a cloud, linked in)",
        &format!("shelf ({})", file.display()),
        "TESTBED_PROVIDER_PATH (not set)",
        &format!("in PATH ({})", folder.path().display()),
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let text = refused(&search, ProviderConfig::new("plain")).await;
    assert!(text.contains("testbed-provider-plain is not executable: chmod +x"), "{text}");
}

#[tokio::test]
async fn extra_variables_reach_the_provider_typed_and_unknown_ones_are_refused() {
    let config = ProviderConfig::new("my-provider")
        .with("any-extra-var", 7)
        .with("loud", true)
        .with("tags", serde_json::json!(["a", "b"]));
    find::open(&nowhere(), &config).await.unwrap();
    let config = config.with("any-extra-vra", 1).with("token", false);
    let text = refused(&nowhere(), config.with("loud", "canary")).await;
    for part in [
        "3 problems",
        "did you mean \"any-extra-var\"?",
        "\"loud\" must be true or false",
        "\"token\" must be text: put it in quotes",
        "known keys: any-extra-var, loud, tags, token",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test]
async fn secrets_are_taken_out_and_never_shown() {
    let config = ProviderConfig::new("mine").with("token", "canary").with("loud", false);
    let found = find::find(&nowhere(), &config).await.unwrap();
    let clean = found.without_secrets(&config);
    assert_eq!(clean.extra.keys().collect::<Vec<_>>(), ["loud"]);
    assert!(!format!("{config:?} {found:?}").contains("canary"));
}

#[tokio::test]
async fn every_cloud_is_a_testbed_and_its_keys_are_its_flags() {
    let found = find::find(&nowhere(), &ProviderConfig::new("Scripted")).await.unwrap();
    assert_eq!((found.name.as_str(), found.origin.clone()), ("scripted", Origin::Cloud));
    assert!(found.keys.iter().any(|key| key.name == "parallel"), "the adapter's own are among them");
    let text = refused(&nowhere(), ProviderConfig::new("scripted").with("paralel", 3)).await;
    assert!(text.contains("unknown key \"paralel\", did you mean \"parallel\"?"), "{text}");
}

#[tokio::test]
async fn what_is_linked_in_comes_before_an_executable_of_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["testbed-provider-my-provider", "testbed-provider-mine", "testbed-provider-scripted"] {
        let file = folder.path().join(name);
        fs::write(&file, "#!/bin/sh\necho it must not run >&2\nexit 1\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let search = on_path(folder.path());
    for name in ["my-provider", "mine"] {
        let found = find::find(&search, &ProviderConfig::new(name)).await.unwrap();
        assert_eq!(found.origin, Origin::Linked);
    }
    let hidden: Vec<_> = find::known(&search).into_iter().filter(|known| known.hidden).collect();
    let names: Vec<&str> = hidden.iter().map(|known| known.name.as_str()).collect();
    assert_eq!(names, ["mine", "my-provider", "scripted"]);
    assert!(hidden.iter().all(|known| matches!(known.origin, Origin::Executable(_))));
}

#[tokio::test]
async fn two_crates_that_claim_a_name_are_refused() {
    let text = refused(&nowhere(), ProviderConfig::new("claimed")).await;
    assert!(text.contains("two crates") && text.contains("claimed, claims"), "{text}");
    find::open(&nowhere(), &ProviderConfig::new("claims")).await.unwrap();
}

//! The schema that is shipped, and the samples.

#[path = "support/validate.rs"]
mod validate;

use std::{path::Path, sync::Arc};

use cloud_providers::{MapEnv, OptionSpec, Settings};
use cloud_providers_local as _;
use serde_json::Value;
use testbed::{
    Key, document,
    find::{Search, find},
};

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("sampled-region", "Region of the cloud").env("SAMPLED_REGION").required(),
    OptionSpec::text("sampled-secret", "Secret key").env("SAMPLED_SECRET").secret().default("canary"),
    OptionSpec::bool("disable-cvm", "No confidential machines").default("false"),
    OptionSpec::int("root-volume-size", 0, 1000, "Disk in GiB").default("30"),
    OptionSpec::text("odd", "A text that needs quotes: # or :").default("a: b # c"),
];

struct SampledCloud(Settings);

#[cloud_providers::async_trait]
impl cloud_providers::Cloud for SampledCloud {
    fn settings(&mut self) -> &mut Settings {
        &mut self.0
    }

    async fn new_provider(&mut self) -> testbed::Result<Arc<dyn cloud_providers::Provider>> {
        Err(testbed::Error::unsupported("it is only looked at"))
    }
}

cloud_providers::register! {
    name: "sampled",
    summary: "a cloud that is only looked at",
    options: OPTIONS,
    cloud: SampledCloud(Settings::new(OPTIONS)),
}

fn check(text: &str) -> Vec<testbed::Reservation> {
    document::check(text, Path::new("/tmp/demo"), "reservation.yaml")
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn misfit(text: &str) -> Option<String> {
    let schema = document::schema();
    let value: Value = serde_yaml::from_str(text).unwrap();
    validate::misfit(&schema, &schema, &value, "")
}

#[test]
fn the_file_is_what_the_keys_make() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("reservation.schema.json");
    let wanted = format!("{:#}\n", document::schema());
    if std::fs::read_to_string(&path).is_ok_and(|text| text == wanted) {
        return;
    }
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reservation.schema.json");
    std::fs::write(&new, wanted).unwrap();
    panic!("mend it with: cp {} {}", new.display(), path.display());
}

/// Takes the `# ` away from the commented keys of a sample, except in the paragraphs that `drop` names.
fn uncommented(sample: &str, drop: &[&str]) -> String {
    let is_key = |line: &str| {
        let key = line.trim_start().split(':').next().unwrap_or_default();
        line.contains(':')
            && !key.is_empty()
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'-')
    };
    let mut text = String::new();
    for paragraph in sample.split("\n\n") {
        let mut lines = Vec::new();
        let mut inside = false;
        for line in paragraph.lines() {
            let bare = line.strip_prefix("# ");
            inside |= bare.is_some_and(is_key) && bare.is_some_and(|b| !b.starts_with(' '));
            let option =
                line.strip_prefix("  # ").filter(|rest| is_key(rest) && paragraph.contains("\nprovider:"));
            lines.push(match (bare, option) {
                (Some(bare), _) if inside => bare.to_owned(),
                (_, Some(option)) => format!("  {option}"),
                _ => line.to_owned(),
            });
        }
        let first = lines.iter().find(|line| !line.starts_with('#')).cloned().unwrap_or_default();
        if !drop.iter().any(|key| first.starts_with(&format!("{key}:"))) {
            text.push_str(&lines.join("\n"));
            text.push_str("\n\n");
        }
    }
    text
}

#[test]
fn each_sample_is_a_document_with_and_without_its_comments() {
    for provider in ["sampled", "local", "static"] {
        let sample = document::sample(provider).unwrap();
        assert!(check(&sample).iter().all(|r| !r.machines.is_empty()), "{sample}");
        assert_eq!(misfit(&sample), None);
        let styles = ["resources", "topology", "machines"];
        for style in styles {
            let others: Vec<&str> = styles.into_iter().filter(|other| *other != style).collect();
            if provider == "static" && style != "resources" {
                continue;
            }
            let text = uncommented(&sample, &others);
            let reservation = check(&text).remove(0);
            assert!(reservation.hooks.preinstall.len() == 3 && reservation.constraints.is_some(), "{text}");
            assert!(reservation.networks.len() == 1 && reservation.experiment == "my-experiment", "{text}");
            assert_eq!(misfit(&text), None, "{text}");
        }
    }
}

#[test]
fn a_sample_has_every_option_and_no_secret() {
    let sample = document::sample("Sampled").unwrap();
    assert!(sample.contains("type: sampled\n"), "{sample}");
    assert!(sample.contains("\n  region:  # required\n"), "{sample}");
    assert!(sample.contains("# Region of the cloud: text, or the variable SAMPLED_REGION."), "{sample}");
    assert!(sample.contains("  # root-volume-size: 30\n"), "{sample}");
    assert!(
        sample.contains("# Secret key: secret, text, or the variable SAMPLED_SECRET.\n  # secret:\n"),
        "{sample}"
    );
    assert!(!sample.contains("canary"));
    let given = check(&uncommented(&sample, &["topology", "machines"])).remove(0).provider.extra;
    assert_eq!(given["odd"], "a: b # c");
    assert_eq!(given["disable-cvm"], false);
    assert_eq!(given["region"], Value::Null);
}

#[tokio::test]
async fn what_a_sample_says_to_a_provider_is_what_the_provider_knows() -> testbed::Result<()> {
    let env = Arc::new(MapEnv::new([("NOTHING", "")]));
    let search = Search::new(env.clone());
    for provider in ["local", "static"] {
        let sample = document::sample(provider)?;
        for text in [sample.clone(), uncommented(&sample, &["topology", "machines"])] {
            let config = check(&text).remove(0).provider;
            find(&search, &config).await?.check(&config, &*env)?;
        }
    }
    Ok(())
}

#[test]
fn a_sample_of_an_executable_comes_from_its_keys() {
    let keys = [Key::text("rack", "The rack").required(), Key::list("rows", "Rows").default("a,b")];
    let sample = document::sample_of("my-provider", "a rack", &keys);
    assert!(
        sample.contains("\n  rack:  # required\n") && sample.contains("  # rows: [\"a\",\"b\"]\n"),
        "{sample}"
    );
    assert_eq!(check(&sample)[0].provider.kind, "my-provider");
}

#[test]
fn an_unknown_provider_has_no_sample_and_the_known_ones_are_told() {
    let error = document::sample("sampeld").unwrap_err().to_string();
    assert!(error.contains("did you mean \"sampled\"") && error.contains("static"), "{error}");
}

#[test]
fn what_the_reader_refuses_the_schema_does_not_let_pass() {
    let head = "provider: local\n";
    for wrong in [
        "resource: {}\n",
        "resources: {small: {a: -1}}\n",
        "resources: {small: {a: {min: 1}}}\n",
        "resources: {r: {adress: x, alias: a}}\n",
        "machines: {roles: [a]}\n",
        "machines: [{rolles: [a]}]\n",
        "machines: [{roles: [a], number: 10001}]\n",
        "networks: [{cidr: x}]\n",
        "shortage: maybe\n",
        "experiment: My_Test\n",
        "ports: [70000]\n",
        "hooks: {install: x}\n",
        "network_constraints: {constraints: [{source: a}]}\n",
        "flavours: {f: {memory: lots}}\n",
    ] {
        let text = format!("{head}{wrong}");
        assert!(document::check(&text, Path::new("/"), "r.yaml").is_err(), "{text}");
        assert!(misfit(&text).is_some(), "{text}");
    }
    assert!(misfit("resources: {small: {a: 1}}\n").is_some(), "a provider is needed");
    assert!(misfit("provider: {typ: local}\nresources: {small: {a: 1}}\n").is_some());
}

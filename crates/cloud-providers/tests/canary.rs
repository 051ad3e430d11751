//! A secret goes in by every way there is and comes out by none.

use std::ffi::OsString;

use cloud_providers::{
    Cloud, CreateRequest, EnvSource, MapEnv, Mapping, OptionKind, OptionSpec, Scope, Settings, Token, Unit,
    clap, mapping_schema, options_table, scripted::ScriptedCloud, secrecy::ExposeSecret,
};

const CANARY: &str = "canary-7f3a";

const SPECS: &[OptionSpec] = &[
    OptionSpec::text("x-key", "A key").env("X_KEY").secret(),
    OptionSpec::int("x-pin", 0, 9, "A number that must not be told").env("X_PIN").secret(),
    OptionSpec::new("x-keys", OptionKind::Map, "Keys by name").env("X_KEYS").secret(),
    OptionSpec::new("x-wait", OptionKind::Duration, "A secret time").env("X_WAIT").secret(),
    OptionSpec::bool("x-on", "A secret choice").env("X_ON").secret(),
    OptionSpec::new("x-word", OptionKind::Word(&["a", "b"]), "A secret word").env("X_WORD").secret(),
    OptionSpec::text("x-default", "A secret with a default").secret().default(CANARY),
    OptionSpec::text("x-zone", "Not secret, and missing").required(),
];

fn clean(what: &str, text: &str) {
    assert!(!text.contains(CANARY), "{what} shows the secret: {text}");
}

#[test]
fn no_output_shows_a_secret() {
    let env = MapEnv::new(["X_KEY", "X_PIN", "X_KEYS", "X_WAIT", "X_ON", "X_WORD"].map(|k| (k, CANARY)));
    clean("the environment's debug form", &format!("{env:?}"));

    let mut settings = Settings::new(SPECS);
    settings.load_env(&env);
    clean("the settings' debug form", &format!("{settings:?}"));
    let (values, problems) = settings.parse_all();
    assert_eq!(problems.len(), 6, "five secrets do not parse and the zone is missing: {problems:?}");
    clean("the problems", &problems.join("\n"));
    clean("the error", &format!("{:?}", settings.parse().unwrap_err()));
    clean("the values' debug form", &format!("{values:?} {:?}", values.shown()));
    assert!(values.shown().contains(&("x-key", "[redacted]".to_owned())));
    let secret = values.secret("x-key").unwrap();
    clean("the secret's own debug form", &format!("{secret:?}"));
    assert_eq!(secret.expose_secret(), CANARY);

    clean("help", &settings.add_flags(clap::Command::new("x")).render_long_help().to_string());
    clean("the table", &options_table(SPECS));
    clean("the schema", &mapping_schema("x", SPECS).to_string());
}

#[test]
fn typed_secrets_are_not_shown_either() {
    for args in [
        ["-x-key", CANARY, "-x-pin", CANARY].as_slice(),
        &["-x-key=a", CANARY],
        &["-x-keys", CANARY, "-x-keys", CANARY],
        &["-x-word", CANARY],
    ] {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        let mut settings = Settings::new(SPECS);
        let parsed = settings.parse_cmd(clap::Command::new("x"), &args);
        clean("the settings", &format!("{settings:?}"));
        let error = match parsed {
            Ok(_) => settings.parse().unwrap_err(),
            Err(error) => error,
        };
        clean("the error", &format!("{error:?} {error}"));
    }
}

#[test]
fn a_mapping_does_not_show_its_values() {
    let json = serde_json::json!({ "key": CANARY, "keys": { "a": CANARY } });
    let mapping = Mapping::new("x", json.as_object().unwrap(), SPECS).unwrap();
    clean("the mapping", &format!("{mapping:?} {}", mapping.describe(&SPECS[0])));
    let bad = serde_json::json!({ "keys": [CANARY], "key": [CANARY] });
    clean("its error", &format!("{:?}", Mapping::new("x", bad.as_object().unwrap(), SPECS).unwrap_err()));
}

#[tokio::test]
async fn neither_cloud_nor_provider_nor_request_show_secrets() {
    let mut cloud = ScriptedCloud::default();
    cloud.load_env(&MapEnv::new([("SCRIPTED_KEY", CANARY)])).unwrap();
    let provider = cloud.new_provider().await.unwrap();
    clean("cloud and provider", &format!("{cloud:?} {provider:?}"));
    let token = Token::new(Scope::Cluster("c".into()), "s", 1);
    let unit = Unit { id: "s".into(), name_hint: "n".into() };
    let request = CreateRequest::new(token, unit, "h").with_user_data(CANARY);
    clean("the request", &format!("{request:?} {}", request.fingerprint()));
}

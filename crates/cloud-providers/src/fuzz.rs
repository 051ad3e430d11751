//! Hostile init-data, cloud-configs and options.

use std::ffi::OsString;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fuzz_support::{Seen, Target, fixture, fixtures};
use secrecy::ExposeSecret as _;

use crate::{
    Mapping, OptionKind, OptionSpec, Settings,
    cloud_config::CloudConfig,
    format_go_duration, go_flags,
    initdata::{self, InitData, MAX_BYTES},
};

#[test]
fn init_data() {
    let golden = (0..4).flat_map(|case| ["in", "out"].map(|end| format!("go-golden/initdata/{case}.{end}")));
    let bomb = initdata::encode(&vec![b'#'; MAX_BYTES + 1]);
    let nested = format!("algorithm='sha256'\nversion='0.1.0'\nx = {}{}", "[".repeat(5000), "]".repeat(5000));
    let dotted = format!("algorithm='sha256'\nversion='0.1.0'\n{}a=1", "a.".repeat(5000));
    Target::new("init-data")
        .seeds(golden.map(|path| (path.clone(), fixture(&path))))
        .seed("default", initdata::DEFAULT_TOML)
        .case("bomb", bomb)
        .case("nested", nested)
        .case("dotted", dotted)
        .words(&[
            "algorithm",
            "sha512",
            "version",
            "\"0.1.0\"",
            "[data]",
            "\"aa.toml\" = ",
            "'''",
            "[[data]]",
            "data.",
            "../",
        ])
        .lines()
        .packed(
            |input| initdata::decode(std::str::from_utf8(input).ok()?).ok(),
            |inner| initdata::encode(inner).into_bytes(),
        )
        .packed(|input| STANDARD.decode(input).ok(), |inner| STANDARD.encode(inner).into_bytes())
        .memory(10 * MAX_BYTES as u64, 2048)
        .run(|input| {
            let Ok(text) = std::str::from_utf8(input) else { return Seen::skipped() };
            match InitData::accept(text) {
                Ok(data) => {
                    let encoded = data.encode();
                    assert_eq!(InitData::accept(&encoded).expect("the encoded form is accepted"), data);
                    assert_eq!(InitData::decode(&encoded).expect("and decoded"), data);
                    assert_eq!(InitData::parse(data.toml()).unwrap(), data, "the text as it came");
                    assert_eq!(data.digest(), data.algorithm().digest(data.toml().as_bytes()));
                    assert!(data.files().iter().all(|(name, _)| initdata::ALLOWED.contains(name)));
                    assert!(data.files().iter().any(|(name, _)| *name == initdata::AA));
                    Seen::accepted((
                        data.algorithm(),
                        data.has_aa(),
                        data.files().len(),
                        data.ignored().len().min(3),
                    ))
                }
                Err(error) => {
                    let report = error.report();
                    assert!(report.contains("init-data"), "{report}");
                    assert!(report.len() < 2048 + 2 * input.len(), "an error of {} bytes", report.len());
                    Seen::refused(&report)
                }
            }
        });
}

#[test]
fn cloud_config() {
    // Each alias is ten of the one before: a reader that makes them all has no memory left.
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    laughs.push_str("write_files: *a9\n");
    let texts = format!(
        "write_files:\n- path: &p {}\n  content: *p\n{}",
        "x".repeat(30_000),
        "- {path: *p, content: *p}\n".repeat(1000)
    );
    Target::new("cloud-config")
        .seeds(fixtures("go-golden/cloud-config"))
        .case("laughs", laughs)
        .case("aliases of a long text", texts)
        .case("nested", format!("write_files: {}{}", "[".repeat(20_000), "]".repeat(20_000)))
        .case("nested maps", "{a: ".repeat(20_000))
        .seed("merge", "write_files:\n- &f\n  path: /a\n  content: x\n- <<: *f\n  path: /b\n")
        .words(&[
            "write_files:",
            "- path: ",
            "  content: |\n",
            "  content: |2-\n",
            ">+\n",
            "&a ",
            "*a",
            "<<: *a",
            "!!binary ",
            "!!str ",
            "? ",
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "{",
            "}",
            "[",
            "]",
            "\t",
            "'",
            "\"\\x",
            "~",
            "/run/peerpod/apf.json",
        ])
        .lines()
        .memory(24 << 20, 1024)
        .run(|input| {
            let Ok(text) = std::str::from_utf8(input) else { return Seen::skipped() };
            match CloudConfig::parse(text) {
                Ok(config) => {
                    let files = config.write_files.len();
                    match config.to_text() {
                        Ok(written) => {
                            let again = CloudConfig::parse(&written).expect("what is written is read");
                            assert_eq!(again, config, "{written}");
                            assert_eq!(again.to_text().unwrap(), written);
                            assert_eq!(config.size().unwrap(), written.len());
                        }
                        Err(error) => {
                            let text = error.to_string();
                            assert!(text.contains("empty path") || text.contains("two files"), "{text}");
                        }
                    }
                    let empty = config.write_files.iter().filter(|file| file.content.is_empty()).count();
                    Seen::accepted((files.min(6), empty.min(3)))
                }
                Err(error) => {
                    let text = error.report();
                    assert!(
                        text.contains("user data") && text.contains("line") && text.len() < 2048,
                        "{text}"
                    );
                    Seen::refused(&text)
                }
            }
        });
}

const SPECS: &[OptionSpec] = &[
    OptionSpec::text("x-region", "region").env("X_REGION").required(),
    OptionSpec::text("key", "key").env("X_KEY").secret(),
    OptionSpec::bool("disable-cvm", "no confidential VM").default("true"),
    OptionSpec::int("size", -5, 64, "size").default("30"),
    OptionSpec::new("timeout", OptionKind::Duration, "limit").env("TIMEOUT").default("5m0s"),
    OptionSpec::new("groups", OptionKind::List, "groups").env("GROUPS"),
    OptionSpec::new("tags", OptionKind::Map, "tags").env("TAGS"),
    OptionSpec::new("mode", OptionKind::Word(&["fast", "slow"]), "mode"),
    OptionSpec::new("ratio", OptionKind::Float, "ratio"),
];

/// Stands for a secret. Flags of their own lines are arguments; see [`arguments`].
const CANARY: &str = "cAnArY";

/// Each line is one argument.
fn arguments(input: &[u8]) -> Vec<OsString> {
    use std::os::unix::ffi::OsStringExt as _;
    let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.contains(&0));
    lines.map(|line| OsString::from_vec(line.to_vec())).collect()
}

#[test]
fn options() {
    let given = "-x-region\neu\n--size=7\n-disable-cvm=false\n-timeout\n1h15m30.918s\n-groups=a,b\n-tags\nk=v, l=w\n-mode\nslow\n-ratio=.5";
    let joined = format!(
        "-x-region=eu\n-key\n{CANARY}\n-groups\na\n-groups\nb\n-tags=k=v\n-tags=k=w\n-size\n3\n-size\n4"
    );
    Target::new("options")
        .seed("given", given)
        .seed("joined", joined)
        .seed("slips", "-x-regoin\neu\nstray\n-disable-cvm=maybe\n-disable-cvm\nfalse\n-timeout")
        .seed("help", "-help")
        .case("empty arguments", "\n".repeat(31_000))
        .words(&[
            "-", "--", "=", "\n", "-size", "-timeout", "-tags", "-groups", "-key", "-ratio", "true", "1.5h",
            "300ms", "µs", "+", ",", "k=v", "-h", "--help", CANARY,
        ])
        .lines()
        // An argument may be empty, and each one that is wrong is told: a byte of the input stands for an argument.
        .memory(8 << 20, 1024)
        .run(|input| {
            let arguments = arguments(input);
            let given = go_flags(SPECS, &arguments);
            let mut settings = Settings::new(SPECS);
            let parsed = settings.parse_cmd(clap::Command::new("x"), &arguments);
            if let Err(error) = &parsed {
                // What clap itself refuses would be a flag that one side knows and the other does not.
                assert!(error.report().contains("Usage"), "{}", error.report());
                return Seen::refused("help");
            }
            let (values, problems) = settings.parse_all();
            for problem in &problems {
                let flag = problem.contains('-') || problem.contains("argument");
                assert!(flag && problem.len() < 1024 + 8 * input.len(), "{problem} names nothing");
            }
            if let Err(error) = &given {
                assert!(
                    problems.iter().any(|problem| error.to_string().contains(problem)),
                    "{error}: {problems:?}"
                );
            }
            // What follows a secret flag is the secret: it is in nothing that people see.
            let secret = values.secret("key");
            if let Some(secret) = secret.as_ref().filter(|secret| secret.expose_secret().contains(CANARY)) {
                let elsewhere =
                    arguments.iter().filter(|argument| argument.to_string_lossy().contains(CANARY)).count();
                let shown = format!("{settings:?} {values:?} {:?}", values.shown());
                assert!(elsewhere > 1 || !shown.contains(CANARY), "{shown} {}", secret.expose_secret());
            }
            // A value that was read has one text, which gives the same value again.
            let duration = format_go_duration(values.duration("timeout"));
            assert_eq!(crate::parse_go_duration(&duration), Ok(values.duration("timeout")));
            assert!((-5..=64).contains(&values.int("size")));
            assert!(values.float("ratio").is_finite());
            let list = values.list("groups");
            assert_eq!(crate::parse_list(&list.join(",")), list);
            let pairs = values.map("tags");
            let joined: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
            assert_eq!(crate::parse_map(&joined.join(",")).as_ref(), Ok(&pairs));
            Seen::accepted((
                problems.len().min(4),
                list.len().min(3),
                pairs.len().min(3),
                values.bool("disable-cvm"),
            ))
            .and(
                problems
                    .first()
                    .map(|problem| problem.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>()),
            )
        });
}

#[test]
fn mappings() {
    Target::new("mappings")
        .seed("typed", r#"{"type":"x","region":"eu","disable-cvm":false,"size":7,"timeout":"5m","groups":["a",1],"tags":{"k":"v"},"ratio":0.5}"#)
        .seed("full", r#"{"x-region":7,"region":"b","size":"x","mode":null,"key":"k","tags":"a=b","groups":"a,b"}"#)
        .words(&["x-region", "disable-cvm", "ratio", "mode", ","])
        .json()
        .run(|input| {
            let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(input) else { return Seen::skipped() };
            let mapping = match Mapping::new("x", &object, SPECS) {
                Ok(mapping) => mapping,
                Err(error) => {
                    let text = error.to_string();
                    assert!(object.keys().any(|key| text.contains(&format!("{key:?}"))), "{text} names no key");
                    return Seen::refused(&text);
                }
            };
            let mut settings = Settings::new(SPECS);
            settings.load_env(&mapping);
            let (values, problems) = settings.parse_all();
            assert!(problems.iter().all(|problem| problem.contains("-") || problem.contains("key ")), "{problems:?}");
            Seen::accepted((problems.len().min(4), values.list("groups").len().min(3), values.map("tags").len().min(3)))
        });
}

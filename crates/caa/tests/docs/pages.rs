//! Blocks of pages, and files that pages include, are read by the real reader: variables and command lines by the options of
//! the programs, manifests as the objects of Kubernetes, alerts by the lists of metrics.
//!
//! Documents of testbeds are read by the tests of `testbed`, which knows them.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use cloud_providers::{MapEnv, Settings, lookup};
// The page of aws has command lines, too; its options are here without the SDK.
use cloud_providers_aws as _;
use k8s_openapi::api::{apps::v1::DaemonSet, node::v1::RuntimeClass};
use serde_json::{Value, json};

/// A fenced block of a page.
struct Block {
    place: String,
    language: String,
    text: String,
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// Every block of the pages that are about the node and the cluster.
fn blocks() -> Vec<Block> {
    let mut open = vec![docs()];
    let mut pages = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !["testbed", "examples"].iter().any(|name| path.ends_with(name)) {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.iter().flat_map(|page| blocks_of(page)).collect()
}

fn blocks_of(page: &Path) -> Vec<Block> {
    let (mut found, mut inside): (Vec<Block>, _) = (Vec::new(), None);
    for (number, line) in fs::read_to_string(page).unwrap().lines().enumerate() {
        let bare = line.trim_start();
        match (inside, bare.strip_prefix("```")) {
            (None, Some(language)) => {
                inside = Some(line.len() - bare.len());
                let place = format!("{}:{}", page.display(), number + 1);
                found.push(Block { place, language: language.to_owned(), text: String::new() });
            }
            (Some(_), Some(_)) => inside = None,
            (Some(indent), None) => {
                let block = found.last_mut().unwrap();
                block.text += line.get(indent..).unwrap_or(bare);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    for block in &mut found {
        if let Some(file) = block.text.trim().strip_prefix("{{#include ") {
            let file = page.parent().unwrap().join(file.trim_end_matches("}}").split(':').next().unwrap());
            block.text = fs::read_to_string(file).unwrap();
        }
    }
    found
}

/// What is wrong with variables as a file of the daemon's environment has them.
fn wrong_variables(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let Some((_, provider)) = pairs.iter().find(|(key, _)| key == "CLOUD_PROVIDER") else {
        return vec!["no CLOUD_PROVIDER".to_owned()];
    };
    let provider = match lookup(provider) {
        Ok(provider) => provider,
        Err(error) => return vec![error.report()],
    };
    let known: BTreeSet<&str> =
        caa::config::OPTIONS.iter().chain(provider.options).filter_map(|option| option.env).collect();
    let unknown = pairs.iter().filter(|(key, _)| key != "CLOUD_PROVIDER" && !known.contains(key.as_str()));
    let mut wrong: Vec<String> = unknown.map(|(key, _)| format!("no option reads {key}")).collect();
    let env = MapEnv::new(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    for options in [caa::config::OPTIONS, provider.options] {
        let mut settings = Settings::new(options);
        settings.load_env(&env);
        wrong.extend(settings.parse_all().1);
    }
    wrong
}

/// What is wrong with a command line of the daemon or the gateway.
fn wrong_command(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let program = Path::new(words[0]).file_name()?.to_str()?;
    let args = &words[1..];
    match program {
        "peerpod-gateway" => {
            peerpod_gateway::cli::command().try_get_matches_from(&words).err().map(|error| error.to_string())
        }
        "cloud-api-adaptor" => {
            let name = if args[0].contains("CLOUD_PROVIDER") { "libvirt" } else { args[0] };
            let provider = match lookup(name) {
                Ok(provider) => provider,
                Err(error) => return Some(error.report()),
            };
            let validates = args.get(1) == Some(&"validate");
            let args: Vec<OsString> =
                args[if validates { 2 } else { 1 }..].iter().map(OsString::from).collect();
            let mut command = Settings::new(caa::config::OPTIONS).add_flags(clap::Command::new("caa"));
            if validates {
                command = Settings::new(caa::validate::OPTIONS).add_flags(command);
            }
            let (mut cloud, mut daemon) = ((provider.new)(), Settings::new(caa::config::OPTIONS));
            let matches = match cloud.parse_cmd(command, &args) {
                Ok(matches) => matches,
                Err(error) => return Some(error.report()),
            };
            daemon.take(&matches);
            // Mistakes of the line are told with the provider's other problems, such as what a variable may give yet.
            let of_the_line = |problem: &String| problem.contains("flag") || problem.contains("argument");
            let problems = cloud.settings().parse_all().1.into_iter().filter(of_the_line);
            daemon.parse_all().1.into_iter().chain(problems).next()
        }
        _ => None,
    }
}

#[test]
fn variables_of_the_pages_are_those_of_the_options() {
    let mut count = 0;
    for block in blocks().into_iter().filter(|block| block.language == "ini") {
        if block.text.lines().any(|line| line.starts_with('[')) {
            continue;
        }
        assert_eq!(wrong_variables(&block.text), [""; 0], "{}", block.place);
        count += 1;
    }
    assert!(count >= 2, "{count} blocks of variables");
    // What would be found.
    for (wrong, text) in [
        ("LIBVIRT_URL", "CLOUD_PROVIDER=libvirt\nLIBVIRT_URL=qemu:///system"),
        ("PEERPODS_LIMIT_PER_NODE", "CLOUD_PROVIDER=libvirt\nPEERPODS_LIMIT_PER_NODE=many"),
        ("libvrt", "CLOUD_PROVIDER=libvrt"),
    ] {
        assert!(wrong_variables(text).iter().any(|found| found.contains(wrong)), "{wrong}");
    }
}

#[test]
fn command_lines_of_the_pages_are_read_by_their_programs() {
    let mut count = 0;
    for block in blocks().into_iter().filter(|b| ["ini", "sh", "text"].contains(&b.language.as_str())) {
        for line in block.text.lines() {
            let line = line.split(" #").next().unwrap().trim();
            let started = ["ExecStart=", "ExecStartPre="].iter().find_map(|key| line.strip_prefix(key));
            let line = started.unwrap_or(line).trim_end_matches('&');
            let ours = ["cloud-api-adaptor ", "peerpod-gateway "].iter().any(|program| {
                line.starts_with(program) || line.starts_with('/') && line.contains(&format!("/{program}"))
            });
            // Forms that stand for many, such as `<provider>`, are no command lines.
            if !ours || line.contains(['<', '…', '[', '\\']) {
                continue;
            }
            assert_eq!(wrong_command(line), None, "{}: {line}", block.place);
            count += 1;
        }
    }
    assert!(count >= 8, "{count} command lines");
    assert!(wrong_command("/usr/bin/cloud-api-adaptor libvirt -gatway-socket /x").is_some());
    assert!(wrong_command("peerpod-gateway --control-sock").is_some());
}

/// Reads a document as an object of Kubernetes. What the type does not know is lost on the way, and seen so.
fn round_trip(document: &Value) -> Result<Value, String> {
    let read = |error: serde_json::Error| error.to_string();
    match (document["apiVersion"].as_str(), document["kind"].as_str()) {
        (Some("node.k8s.io/v1"), Some("RuntimeClass")) => {
            serde_json::from_value::<RuntimeClass>(document.clone())
                .and_then(serde_json::to_value)
                .map_err(read)
        }
        (Some("apps/v1"), Some("DaemonSet")) => {
            serde_json::from_value::<DaemonSet>(document.clone()).and_then(serde_json::to_value).map_err(read)
        }
        other => Err(format!("no type is known here for {other:?}: add it to the test")),
    }
}

/// A part of a DaemonSet with what every one has.
fn completed(document: &Value) -> Value {
    let mut whole = document.clone();
    whole["apiVersion"] = json!("apps/v1");
    whole["kind"] = json!("DaemonSet");
    whole["metadata"] = json!({});
    whole["spec"]["selector"] = json!({});
    whole["spec"]["template"] = json!({});
    whole
}

#[test]
fn manifests_of_the_pages_are_objects_of_kubernetes_and_alerts_ask_for_metrics_that_exist() {
    let metrics = fs::read_to_string(docs().join("metrics.md")).unwrap();
    let (mut objects, mut alerts) = (0, 0);
    for block in blocks().into_iter().filter(|block| block.language == "yaml") {
        let documents: Vec<Value> = serde_yaml::from_multiple(&block.text).unwrap();
        for document in documents {
            if let Some(rules) = document.as_array() {
                for rule in rules {
                    assert_eq!(
                        unknown_metrics(rule["expr"].as_str().unwrap(), &metrics),
                        [""; 0],
                        "{}",
                        block.place
                    );
                    alerts += 1;
                }
                continue;
            }
            let fragment = block.text.starts_with("# The daemon's DaemonSet\n");
            let document = if fragment { completed(&document) } else { document };
            let read = round_trip(&document).unwrap_or_else(|error| panic!("{}: {error}", block.place));
            assert_eq!(read, document, "{}: what differs is no field of the object", block.place);
            objects += 1;
        }
    }
    assert!(objects >= 2 && alerts >= 8, "{objects} objects, {alerts} alerts");
    // What would be found.
    let wrong = json!({"spec": {"updateStrategy": {"rolingUpdate": {"maxSurge": 1}}}});
    assert_ne!(round_trip(&completed(&wrong)).unwrap(), completed(&wrong));
    assert_eq!(unknown_metrics("rate(peerpod_no_such_total[1m]) > 0", &metrics), ["peerpod_no_such_total"]);
}

/// The names of metrics in an expression that no list of the book has.
fn unknown_metrics(expression: &str, page: &str) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = expression.split(|c| !word(c)).filter(|name| name.starts_with("peerpod_"));
    let listed = |name: &str| {
        let plain = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        [Some(name), plain].into_iter().flatten().any(|name| page.contains(&format!("\n| `{name}` |")))
    };
    names.filter(|name| !listed(name)).map(str::to_owned).collect()
}

//! Secrets of options, of the API server and of a collector go into the programs, and come out by no way.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use cloud_providers::{OptionKind, OptionSpec, registered};
use cloud_providers_bundle as _;
use test_support::{Canaries, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// Every secret option, found by its declaration: a new one takes part by itself.
fn secrets(provider: &cloud_providers::Registration) -> Vec<&'static OptionSpec> {
    let mut cloud = (provider.new)();
    let of_provider: &'static [OptionSpec] = cloud.settings().specs();
    caa::config::OPTIONS.iter().chain(of_provider).filter(|spec| spec.secret).collect()
}

fn value(spec: &OptionSpec, canary: &str) -> String {
    match spec.kind {
        OptionKind::Map => format!("k={canary}"),
        _ => canary.to_owned(),
    }
}

fn adaptor(args: &[String], env: &[(String, String)]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloud-api-adaptor"));
    let command = command.args(args).env_clear().env("LOG_LEVEL", "trace").envs(env.iter().cloned());
    let out = command.output().unwrap();
    [out.stdout, out.stderr].concat()
}

#[test]
fn no_secret_option_of_any_provider_is_in_any_output() {
    let mut seen = 0;
    for provider in registered() {
        let (mut canaries, mut env, mut flags) = (Canaries::new(), Vec::new(), Vec::new());
        for spec in secrets(provider) {
            let canary = canaries.plant(spec.flag);
            flags.push(format!("-{}={}", spec.flag, value(spec, &canary)));
            env.extend(spec.env.map(|key| (key.to_owned(), value(spec, &canary))));
            seen += 1;
        }
        let name = || provider.name.to_owned();
        let with = |args: &[&str]| -> Vec<String> {
            [name()].into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect()
        };
        let typed = |args: &[&str]| [with(args), flags.clone()].concat();
        let nothing: &[(String, String)] = &[];
        for (what, out) in [
            ("the help", adaptor(&with(&["-help"]), &env)),
            ("the findings", adaptor(&with(&["validate"]), &env)),
            ("the findings as JSON", adaptor(&with(&["validate", "-json"]), &env)),
            ("the problems", adaptor(&with(&["-proxy-timeout=x", "-metrics-address=x"]), &env)),
            ("the findings of flags", adaptor(&typed(&["validate"]), nothing)),
            ("the problems of flags", adaptor(&typed(&["-no-such-flag"]), nothing)),
        ] {
            assert!(!out.is_empty(), "{what} of {} is empty", provider.name);
            canaries.assert_not_in(&format!("{what} of {}", provider.name), &out);
        }
    }
    assert!(seen > 0, "no option is secret");
}

#[test]
fn a_kubeconfig_that_cannot_be_read_is_not_quoted() {
    let mut canaries = Canaries::new();
    let token = canaries.plant("the token of the API server");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (text, part) in [
        (format!("users: [{{name: u, user: {{token: [\"{token}\"]}}}}]"), "it is no kubeconfig at line 1"),
        (format!("users: [{{name: u, user: {{token: \"{token}"), "it is no kubeconfig at line 1"),
        (format!("{token}: {{"), "it is no kubeconfig"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let args = ["local", "-data-dir", &path("d"), "-socket", &path("s"), "-pods-dir", &path("p")];
        let more = ["-state-dir", &path("state"), "-kubeconfig", file.to_str().unwrap()];
        let args: Vec<String> = args.iter().chain(&more).map(|arg| (*arg).to_owned()).collect();
        let said = adaptor(&args, &[("NODE_NAME".into(), "n".into()), ("PROBE_PORT".into(), "0".into())]);
        canaries.assert_not_in("the error", &said);
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains(part) && said.contains("kubeconfig"), "{part} is missing in {said}");
    }
}

#[test]
fn a_token_for_the_api_server_or_the_collector_is_not_logged_at_any_level() {
    let mut canaries = Canaries::new();
    let (token, header) =
        (canaries.plant("the token of the API server"), canaries.plant("the collector's header"));
    // An API server that knows nobody.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    thread::spawn(move || {
        for stream in server.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).unwrap_or(0);
            heard.lock().unwrap().extend_from_slice(&bytes[..read]);
            let body = "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"status\":\"Failure\",\"reason\":\"Unauthorized\",\"code\":401}";
            let _ = write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\n\
         users: [{{name: u, user: {{token: \"{token}\"}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    std::fs::write(&file, text).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_cloud-api-adaptor"))
        .args(["local", "-data-dir", &path("data"), "-socket", &path("h.sock"), "-pods-dir", &path("pods")])
        .args(["-state-dir", &path("state"), "-kubeconfig", file.to_str().unwrap(), "-log-level", "trace"])
        .env_clear()
        .envs([
            ("NODE_NAME", "n"),
            ("PROBE_PORT", "0"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
        ])
        .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization={header}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let came = wait_for("the token to come to the API server", SOON, || {
        String::from_utf8_lossy(&asked.lock().unwrap()).contains(&token).then_some(())
    });
    // It may ask again for ever, or give up.
    let _ = daemon.kill();
    let out = daemon.wait_with_output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    came.unwrap_or_else(|error| panic!("{error:#}: {}", String::from_utf8_lossy(&text)));
    assert!(text.len() > 200, "{}", String::from_utf8_lossy(&text));
    canaries.assert_not_in("the log", text);
}

//! Exit codes and messages.

use std::{os::unix::net::UnixListener, path::Path, process::Command};

use nix::sys::signal::Signal;
use serde_json::Value;
use test_support::{Netns, ProcessGuard};

use crate::node::{Node, SOON, command};

fn run(args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloud-api-adaptor"));
    let out = command.args(args).env_clear().envs(env.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn version_and_help_exit_with_0() {
    let (code, out, _) = run(&["version"], &[]);
    assert_eq!(code, 0);
    assert_eq!(out.lines().count(), 3);
    assert!(out.starts_with(concat!("cloud-api-adaptor version ", env!("CARGO_PKG_VERSION"))), "{out}");
    for args in [&["help"][..], &["local", "-help"], &["local", "--help"]] {
        let (code, out, _) = run(args, &[]);
        assert_eq!(code, 0, "{args:?}");
        assert!(out.contains("local"), "{out}");
    }
}

#[test]
fn wrong_command_lines_exit_with_1_and_name_the_thing() {
    for (args, part) in [
        (&[][..], "Usage:"),
        (&["-socket", "/x"], "provider comes first"),
        (&["nowhere"], "unknown provider \"nowhere\" (known: "),
        (&["nowhere"], "Usage:"),
        (&["local", "-no-such-flag"], "unknown flag -no-such-flag"),
        (&["local", "-tls-skip-verify"], "-tls-skip-verify or TLS_SKIP_VERIFY is refused"),
        (&["local", "-tunnel-type=gre"], "expected one of vxlan"),
        (
            &[
                "local",
                "-tls-min-version=VersionTLS13",
                "-tls-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            ],
            "cipher",
        ),
    ] {
        let (code, _, err) = run(args, &[]);
        assert_eq!(code, 1, "{args:?}: {err}");
        assert!(err.contains(part), "{part:?} is missing in {err}");
    }
}

#[test]
fn all_bad_options_are_reported_together() {
    let env =
        [("PROXY_TIMEOUT", "5"), ("LOCAL_SUBNET", "10.0.0.0/33"), ("INITDATA", "%%%"), ("PROBE_PORT", "x")];
    let args =
        ["local", "-vxlan-port", "0", "-ca-cert-file", "/nonexistent", "-disable-tls=maybe", "-no-such-flag"];
    let (code, _, err) = run(&args, &env);
    assert_eq!(code, 1);
    for part in [
        "PROXY_TIMEOUT",
        "LOCAL_SUBNET",
        "INITDATA",
        "PROBE_PORT",
        "-vxlan-port",
        "/nonexistent",
        "-disable-tls=maybe",
        "-no-such-flag",
    ] {
        assert!(err.contains(part), "{part} is missing in {err}");
    }
}

#[test]
fn a_socket_in_use_ends_the_start_and_a_stale_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let netns = Netns::unique("caa-sock").unwrap();
    let path = dir.path().join("hypervisor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let out = command(&netns, dir.path(), "local", &[]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(err.contains("in use by another process") && err.contains("hypervisor.sock"), "{err}");
    drop(listener);
    let mut daemon = ProcessGuard::spawn(
        "daemon",
        &mut command(&netns, dir.path(), "local", &[]),
        &dir.path().join("log"),
    )
    .unwrap();
    daemon.wait_for_output("serving Kata shims", SOON).unwrap();
    assert!(daemon.terminate(SOON).unwrap().success());
    assert!(!path.exists(), "the socket goes with its daemon");
}

#[test]
fn a_reader_of_the_banner_that_left_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let netns = Netns::unique("caa-pipe").unwrap();
    let _listener = UnixListener::bind(dir.path().join("hypervisor.sock")).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // What ends this daemon is the socket in use, which is found after the banner.
    let out = command(&netns, dir.path(), "local", &[]).stdout(writer).output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert!(err.contains("in use by another process"), "{err}");
}

#[test]
fn a_configuration_that_the_provider_finds_wrong_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let netns = Netns::unique("caa-verify").unwrap();
    let out = command(&netns, dir.path(), "local", &["-cloud-config-verify", "-guest-dir=/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(err.contains("-cloud-config-verify") && err.contains("/nonexistent"), "{err}");
    assert!(!dir.path().join("hypervisor.sock").exists(), "nothing is served");
}

/// Runs `validate -json` with the arguments of a daemon whose files are in `dir`.
fn validate(netns: &Netns, dir: &Path, more: &[&str], env: &[(&str, &str)]) -> (Option<i32>, Value) {
    let serve = command(netns, dir, "local", more);
    let mut validate = Command::new(serve.get_program());
    validate.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(env.iter().copied());
    for arg in serve.get_args() {
        validate.arg(arg);
        if arg == "local" {
            validate.args(["validate", "-json"]);
        }
    }
    let out = validate.output().unwrap();
    let report = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    (out.status.code(), report)
}

/// A namespace of its own with a default route, as nodes have one.
fn routed(prefix: &str) -> Netns {
    let netns = Netns::unique(prefix).unwrap();
    netns.bridge("up0", "192.0.2.2/24").unwrap();
    netns.default_route(std::net::Ipv4Addr::new(192, 0, 2, 1).into()).unwrap();
    netns
}

/// The checks of a report that ended so.
fn ended(report: &Value, outcome: &str) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings.filter(|f| f["outcome"] == outcome).map(|f| f["check"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn validating_reports_every_problem_of_the_settings_and_asks_no_cloud_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let netns = routed("caa-settings");
    let env = [("LOCAL_SUBNET", "10.0.0.0/33"), ("CLOUD_RETRY_CAP", "soon")];
    let (code, report) = validate(&netns, dir.path(), &["-live", "-vxlan-port=0", "-no-such-flag"], &env);
    assert_eq!((code, &report["ok"], &report["live"]), (Some(1), &false.into(), &true.into()));
    assert_eq!(ended(&report, "failed"), ["settings"; 4], "{report:#}");
    let options: Vec<&str> =
        report["findings"].as_array().unwrap().iter().filter_map(|f| f["option"].as_str()).collect();
    for option in [
        "-vxlan-port or VXLAN_PORT",
        "-subnet or LOCAL_SUBNET",
        "-no-such-flag",
        "-cloud-retry-cap or CLOUD_RETRY_CAP",
    ] {
        assert!(options.contains(&option), "{option} is missing in {options:?}");
    }
    assert_eq!(ended(&report, "not-checked"), ["tunnel", "provider"], "{report:#}");
}

#[test]
fn validating_settings_that_work_exits_with_0_and_asks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let netns = routed("caa-works");
    // Programs of the guest are looked for by the provider, not by the settings.
    let (code, report) = validate(&netns, dir.path(), &["-guest-dir=/nonexistent"], &[("PAUSE_IMAGE", "x")]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(ended(&report, "warning"), ["settings"]);
    assert!(ended(&report, "failed").is_empty() && ended(&report, "not-checked").is_empty(), "{report:#}");
    let mut left = std::fs::read_dir(dir.path()).unwrap();
    assert!(left.next().is_none(), "nothing is made on the node");
    let (code, out, _) = run(&["local", "validate", "-help"], &[]);
    assert!(code == 0 && out.contains("--live") && out.contains("validate [-live]"), "{out}");
}

#[test]
fn validating_without_a_known_provider_exits_with_2() {
    for (args, part) in [
        (&["validate"][..], "<provider> validate"),
        (&["nowhere", "validate"], "unknown provider \"nowhere\""),
    ] {
        let (code, out, err) = run(args, &[]);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains(part) && err.contains("Usage:"), "{err}");
    }
}

#[test]
fn validating_live_reports_what_the_provider_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let netns = routed("caa-live");
    let (code, report) = validate(&netns, dir.path(), &["-live"], &[]);
    assert_eq!(code, Some(0), "{report:#}");
    let checks = ended(&report, "ok");
    for check in ["settings", "tunnel", "node-rights", "rights", "programs", "network", "probe", "guest"] {
        assert!(checks.iter().any(|c| c == check), "{check} is missing in {checks:?}");
    }
    let (code, report) = validate(&netns, dir.path(), &["-live", "-guest-dir=/nonexistent"], &[]);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(ended(&report, "failed"), ["programs"], "{report:#}");
    assert!(!dir.path().join("hypervisor.sock").exists(), "nothing is served");
}

#[test]
fn a_start_with_verification_ends_for_what_validating_finds_and_serves_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let netns = routed("caa-start");
    let other = std::net::Ipv4Addr::LOCALHOST;
    let in_use = netns.run(|| Ok(std::net::UdpSocket::bind((other, 4789))?)).unwrap();
    let out = command(&netns, dir.path(), "local", &["-cloud-config-verify"]).output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    for part in [
        "-cloud-config-verify",
        "failed       ports: UDP port 4789 is in use by process",
        "set -vxlan-port or VXLAN_PORT",
    ] {
        assert!(err.contains(part), "{part} is missing in {err}");
    }
    drop(in_use);
    let log = dir.path().join("log");
    let mut serve = command(&netns, dir.path(), "local", &["-cloud-config-verify"]);
    let mut daemon = ProcessGuard::spawn("daemon", &mut serve, &log).unwrap();
    daemon.wait_for_output("serving Kata shims", SOON).unwrap();
    // One that runs is no reason to fail: neither its journal nor its socket.
    let (code, report) = validate(&netns, dir.path(), &["-live"], &[]);
    assert_eq!(code, Some(0), "{report:#}");
    let held = report["findings"].as_array().unwrap().iter().find(|f| f["check"] == "state-dir").unwrap();
    assert!(held["detail"].as_str().unwrap().contains("is held by a running daemon (process"), "{held}");
    assert_eq!(ended(&report, "not-checked"), ["journal"], "{report:#}");
    assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.last_lines(30));
}

#[tokio::test]
async fn a_second_signal_ends_at_once_with_1() {
    let mut node = Node::start(1, &[]).await.unwrap();
    let (shim, _) = node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    // A deletion that does not end: the provider waits for the record's lock.
    let held = node.hold_locks().unwrap();
    shim.stop_vm().await.unwrap();
    node.daemon.signal(Signal::SIGTERM).unwrap();
    node.daemon.wait_for_output("a second one ends at once", SOON).unwrap();
    node.daemon.signal(Signal::SIGINT).unwrap();
    let status = node.daemon.wait_exit(SOON).unwrap();
    drop(held);
    assert_eq!(status.code(), Some(1), "{}", node.logs());
}

#[test]
fn caactl_tells_an_unreachable_daemon_from_a_refusal() {
    let out = Command::new(env!("CARGO_BIN_EXE_caactl"))
        .args(["--socket", "/nonexistent/x.sock", "list"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nonexistent/x.sock"));
}

#[tokio::test]
async fn caactl_takes_a_sandbox_through_its_life() {
    let node = Node::start(1, &[]).await.unwrap();
    let socket = node.socket();
    let ctl = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_caactl"))
            .arg("--socket")
            .arg(&socket)
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(if out.status.success() { &out.stdout } else { &out.stderr })
            .trim()
            .to_owned();
        (out.status.code().unwrap(), text)
    };
    let netns = node.pods[0].netns.path();
    let (code, path) = ctl(&["create", "s1", "--pod", "web", "--netns", netns.to_str().unwrap()]);
    assert_eq!((code, path.ends_with("pods/s1/agent.ttrpc")), (0, true), "{path}");
    assert_eq!(ctl(&["create", "s1", "--pod", "web", "--netns", "/x"]).0, 1);
    assert_eq!(ctl(&["info", "web"]).0, 1);
    let (code, text) = ctl(&["start", "s1", "--timeout", "60"]);
    assert_eq!(code, 0, "{text}\n{}", node.logs());
    let (_, id) = ctl(&["info", "web", "default", "--wait"]);
    let (_, list) = ctl(&["list"]);
    assert!(list.contains(&id) && list.contains("default/web") && list.contains("ready"), "{list}");
    assert_eq!(ctl(&["stop", "s1"]).0, 0);
    assert_eq!(ctl(&["stop", "s1"]).0, 0, "stopping twice is fine");
    node.wait_empty().unwrap();
}

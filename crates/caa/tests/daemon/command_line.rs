//! Exit codes and messages.

use std::{os::unix::net::UnixListener, process::Command};

use nix::sys::signal::Signal;
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

//! Signs of life for those who watch the daemon: the service manager, the start-up probe, the metrics.

use std::{io::Write as _, os::unix::net::UnixDatagram};

use nix::sys::signal::Signal;
use test_support::{Netns, ProcessGuard, wait_for};

use crate::node::{Node, SOON, command};

#[test]
fn the_service_manager_is_told_of_begin_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let netns = Netns::unique("caa-notify").unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut command = command(&netns, dir.path(), "local", &[]);
    let mut daemon =
        ProcessGuard::spawn("daemon", command.env("NOTIFY_SOCKET", &path), &dir.path().join("log")).unwrap();
    let mut buffer = [0; 256];
    let mut next = || {
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    assert!(dir.path().join("hypervisor.sock").exists(), "ready means that shims are served");
    daemon.signal(Signal::SIGTERM).unwrap();
    assert_eq!(next(), "STOPPING=1");
    assert!(daemon.wait_exit(SOON).unwrap().success());
}

#[test]
fn the_probe_and_the_metrics_answer_where_kubernetes_runs_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let netns = Netns::unique("caa-probe").unwrap();
    let mut command = command(&netns, dir.path(), "local", &[]);
    command.env("NODE_NAME", "node-1").env("PROBE_PORT", "8123");
    let mut daemon = ProcessGuard::spawn("daemon", &mut command, &dir.path().join("log")).unwrap();
    let status = |path: &str| {
        let url = format!("http://127.0.0.1:8123{path}");
        netns.exec("curl", &["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &url]).ok()
    };
    wait_for("the probe to succeed", SOON, || (status("/startup")? == "200").then_some(())).unwrap();
    assert_eq!(status("/elsewhere").unwrap(), "404");
    let metrics = netns.exec("curl", &["-s", "-m", "5", "http://127.0.0.1:8123/metrics"]).unwrap();
    assert!(metrics.contains("peerpod_sandboxes{provider=\"local\"} 0"), "{metrics}");
    // The socket's path leads nowhere: whoever probes must see it.
    std::fs::rename(dir.path().join("hypervisor.sock"), dir.path().join("away")).unwrap();
    assert_eq!(status("/startup").unwrap(), "500");
    assert!(daemon.terminate(SOON).unwrap().success());
}

#[test]
fn a_port_that_another_program_has_ends_the_start() {
    for (args, variable, key) in
        [(&[][..], "8123", "PROBE_PORT"), (&["-metrics-address=127.0.0.1:8123"], "8124", "-metrics-address")]
    {
        let dir = tempfile::tempdir().unwrap();
        let netns = Netns::unique("caa-port").unwrap();
        let _other = netns.run(|| Ok(std::net::TcpListener::bind("127.0.0.1:8123")?)).unwrap();
        let mut command = command(&netns, dir.path(), "local", args);
        let out = command.env("NODE_NAME", "node-1").env("PROBE_PORT", variable).output().unwrap();
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{err}");
        assert!(err.contains(key) && err.contains("127.0.0.1:8123"), "{err}");
        assert!(!dir.path().join("hypervisor.sock").exists(), "the socket is not left behind");
    }
}

#[test]
fn a_client_with_half_a_request_does_not_keep_the_daemon_from_ending() {
    let dir = tempfile::tempdir().unwrap();
    let netns = Netns::unique("caa-half").unwrap();
    let mut command = command(&netns, dir.path(), "local", &["-metrics-address=127.0.0.1:9201"]);
    let mut daemon = ProcessGuard::spawn("daemon", &mut command, &dir.path().join("log")).unwrap();
    daemon.wait_for_output("serving Kata shims", SOON).unwrap();
    let client = netns.run(|| {
        let mut client = std::net::TcpStream::connect("127.0.0.1:9201")?;
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost")?;
        Ok(client)
    });
    daemon.signal(Signal::SIGTERM).unwrap();
    assert!(daemon.wait_exit(SOON).unwrap().success());
    drop(client.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_sandbox_instance_and_each_phase() {
    let node = Node::start(1, &["-log-format=json", "-metrics-address=127.0.0.1:9201"]).await.unwrap();
    let (shim, _) = node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    shim.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
    let lines: Vec<serde_json::Value> =
        node.daemon.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for phase in ["create", "tunnel", "connect"] {
        let line =
            lines.iter().find(|line| line["phase"] == phase).unwrap_or_else(|| panic!("{phase}: {lines:?}"));
        assert_eq!(line["sandbox_id"], "sandbox-1");
        assert!(line["elapsed_ms"].as_f64().unwrap() > 0.0);
    }
    assert!(lines.iter().any(|line| line["instance_id"].as_str().is_some_and(|id| id.starts_with("local-"))));
    let metrics = node.netns.exec("curl", &["-s", "http://127.0.0.1:9201/metrics"]).unwrap();
    for phase in ["inspect", "prepare", "create_vm", "create", "tunnel", "connect", "start_vm"] {
        let line = format!("peerpod_start_phase_seconds_count{{phase=\"{phase}\",provider=\"local\"}} 1");
        let other = format!("peerpod_start_phase_seconds_count{{provider=\"local\",phase=\"{phase}\"}} 1");
        assert!(metrics.contains(&line) || metrics.contains(&other), "{phase}: {metrics}");
    }
}

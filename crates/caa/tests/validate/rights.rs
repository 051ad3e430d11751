//! `validate` without root says what it could not look at, and fails for nothing that only root can do.

use std::{fs, os::unix::fs::PermissionsExt as _, os::unix::process::CommandExt as _, process::Command};

use serde_json::Value;

/// The user nobody.
const NOBODY: u32 = 65534;

#[test]
fn without_root_it_says_what_is_not_known_and_why() {
    let dir = tempfile::tempdir().unwrap();
    // The folder that the program was built in may be closed to others.
    let program = dir.path().join("cloud-api-adaptor");
    if fs::hard_link(env!("CARGO_BIN_EXE_cloud-api-adaptor"), &program).is_err() {
        fs::copy(env!("CARGO_BIN_EXE_cloud-api-adaptor"), &program).unwrap();
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let netns = test_support::Netns::unique("caa-nobody").unwrap();
    netns.bridge("up0", "192.0.2.2/24").unwrap();
    netns.default_route(std::net::Ipv4Addr::new(192, 0, 2, 1).into()).unwrap();
    let out = netns
        .run(|| {
            let mut command = Command::new(&program);
            command.env_clear().uid(NOBODY).gid(NOBODY).args(["local", "validate", "-json", "-cluster-id=x"]);
            command.arg(format!("-state-dir={}/state", closed.display()));
            command.arg(format!("-socket={}/hypervisor.sock", dir.path().display()));
            command.arg(format!("-pods-dir={}/pods", dir.path().display()));
            Ok(command.output()?)
        })
        .unwrap();
    let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    assert_eq!(out.status.code(), Some(0), "{report:#}");
    let findings = report["findings"].as_array().unwrap();
    let unknown: Vec<(&str, &str)> = findings
        .iter()
        .filter(|finding| finding["outcome"] == "not-checked")
        .map(|finding| (finding["check"].as_str().unwrap(), finding["remedy"].as_str().unwrap()))
        .collect();
    let checks: Vec<&str> = unknown.iter().map(|(check, _)| *check).collect();
    assert_eq!(checks, ["socket", "pods-dir", "state-dir", "node-rights", "tunnel"], "{report:#}");
    assert!(unknown.iter().all(|(_, remedy)| remedy.contains("run it as root")), "{report:#}");
    let raised =
        findings.iter().filter(|finding| finding["outcome"] == "failed" || finding["outcome"] == "warning");
    assert_eq!(raised.count(), 0, "{report:#}");
}

//! Credentials that the tasks find in the environment, which they hand to programs, come out by no way.

use std::process::Command;

use test_support::Canaries;

/// Where clouds, registries and clusters look for credentials.
const VARIABLES: [&str; 7] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CARGO_REGISTRY_TOKEN",
    "GITHUB_TOKEN",
    "KUBECONFIG",
    "OTEL_EXPORTER_OTLP_HEADERS",
];

#[test]
fn no_task_shows_what_it_finds_in_the_environment() {
    let mut canaries = Canaries::new();
    let variables: Vec<(&str, String)> =
        VARIABLES.iter().map(|name| (*name, canaries.plant(*name))).collect();
    let mut said = Vec::new();
    for (args, code) in [
        (&["--help"][..], 0),
        (&["test", "--help"], 0),
        (&["test", "--list"], 0),
        (&["test", "--stage", "no-such-stage"], 1),
        // What it would make in an account, without making it.
        (&["e2e", "--provider", "aws"], 2),
        (&["release", "status"], 0),
        (&["docs", "--package", "no-such-package"], 1),
        (&["no-such-task"], 2),
    ] {
        let mut task = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let output = task.args(args).envs(variables.iter().cloned()).output().unwrap();
        let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(!text.is_empty(), "{args:?}");
        said.push(text);
    }
    canaries.assert_not_in("what the tasks say", said.join("\n"));
}

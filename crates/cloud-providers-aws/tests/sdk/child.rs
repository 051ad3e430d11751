//! A process of its own for a test: the SDK takes its chain of credentials from the environment of the process, and no test
//! may change that of the process that all tests share.

use std::process::Stdio;
use std::time::Duration;

use cloud_providers::{EnvSource, ProcessEnv};
use cloud_providers_aws::client::{Access, Connect, Query, SdkConnect};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Set in the environment of such a process, and nowhere else.
const ROLE: &str = "CLOUD_PROVIDERS_AWS_TEST_CHILD";
/// The profile that the process is to use.
pub(crate) const PROFILE: &str = "CLOUD_PROVIDERS_AWS_TEST_PROFILE";
/// What its answers begin with, between the words of the test harness.
const MARK: &str = "the child says: ";
const LIMIT: Duration = Duration::from_secs(60);

/// A process that runs the same test, finds that it is the child, and makes calls when it is told to.
pub(crate) struct Child {
    // Ended with the value.
    _process: tokio::process::Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts the process for the test of this name, with these variables and no others, and an empty home.
    pub(crate) fn start(test: &str, home: &std::path::Path, variables: &[(&str, String)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env_clear().env(ROLE, "1").env("HOME", home);
        command.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { _process: process, stdin, stdout: BufReader::new(stdout).lines() }
    }

    /// Makes one call to EC2 and returns what became of it: `ok`, or kind and text of the error.
    pub(crate) async fn call(&mut self) -> String {
        self.stdin.write_all(b"call\n").await.unwrap();
        loop {
            let line = timeout(LIMIT, self.stdout.next_line()).await.expect("the child answers").unwrap();
            let line = line.expect("the child lives");
            if let Some((_, answer)) = line.split_once(MARK) {
                return answer.to_owned();
            }
        }
    }
}

/// Plays the child when this process is one, and returns whether it was.
///
/// Each test that starts a child begins with this.
pub(crate) async fn was_child() -> bool {
    let env = ProcessEnv;
    if env.variable(ROLE).is_none() {
        return false;
    }
    let mut access = Access::default();
    access.region = env.variable("AWS_REGION");
    access.profile = env.variable(PROFILE);
    access.call_timeout = LIMIT / 2;
    let connect = SdkConnect::new();
    let mut ec2 = None;
    loop {
        let mut command = String::new();
        let read = tokio::task::spawn_blocking(move || {
            std::io::stdin().read_line(&mut command).map(|n| (n, command))
        });
        let (bytes, command) = read.await.unwrap().unwrap();
        if bytes == 0 {
            return true;
        }
        assert_eq!(command, "call\n");
        if ec2.is_none() {
            match connect.connect(&access).await {
                Ok(client) => ec2 = Some(client),
                Err(error) => println!("\n{MARK}{} {}", error.kind(), error.report().replace('\n', " ")),
            }
        }
        let Some(ec2) = &ec2 else { continue };
        match ec2.describe_addresses(&Query::default()).await {
            Ok(_) => println!("\n{MARK}ok"),
            Err(error) => println!("\n{MARK}{} {}", error.kind(), error.report().replace('\n', " ")),
        }
    }
}

//! Requests by the program `curl`: an observer that shares no code with the clients under test.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{ETCD, PORT, START_LIMIT, host};
use crate::wait_for;

/// What the server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The code of HTTP.
    pub status: u16,
    /// The object; text where the server gave none.
    pub body: Value,
}

impl Answer {
    /// Returns the object.
    ///
    /// # Errors
    ///
    /// Carries what the server complained about.
    pub fn ok(self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            let message = self.body["message"].as_str().map_or_else(|| self.body.to_string(), str::to_owned);
            bail!("the API server answered {}: {message}", self.status);
        }
        Ok(self.body)
    }
}

/// What an account asked for, as the API server wrote it down.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Request {
    /// The verb of roles.
    pub verb: String,
    /// The API group; empty for that of pods.
    pub group: String,
    /// The resource, with its subresource after a slash.
    pub resource: String,
    /// The namespace; empty for none or all.
    pub namespace: String,
    /// Whether a role allowed it.
    pub allowed: bool,
}

pub(super) fn request_of(line: &str, user: &str) -> Option<Request> {
    let event: Value = serde_json::from_str(line).ok()?;
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let resource = text("/objectRef/resource");
    if text("/user/username") != user || resource.is_empty() {
        return None;
    }
    let subresource = text("/objectRef/subresource");
    Some(Request {
        verb: text("/verb"),
        group: text("/objectRef/apiGroup"),
        resource: if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") },
        namespace: text("/objectRef/namespace"),
        allowed: event["annotations"]["authorization.k8s.io/decision"] == "allow",
    })
}

/// Asks the API server of a [`RealCluster`](super::RealCluster), also while parts of it are killed.
#[derive(Clone, Debug)]
pub struct ClusterClient {
    pub(super) netns: Option<PathBuf>,
    pub(super) address: IpAddr,
    pub(super) token: String,
    pub(super) ca: PathBuf,
}

impl ClusterClient {
    /// Returns where the API is served.
    pub fn url(&self) -> String {
        format!("https://{}", host(self.address, PORT))
    }

    /// Returns the certificate of who signed the server's.
    pub fn ca_file(&self) -> PathBuf {
        self.ca.clone()
    }

    /// Returns the token of who may do everything.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Returns a command that reaches the API: in the network namespace, where it serves in one.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let Some(netns) = &self.netns else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns.display())).arg("--").arg(program);
        command
    }

    /// Makes the service account when there is none, and returns a token of it.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn token_of(&self, namespace: &str, account: &str) -> Result<String> {
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        if self.get(&format!("{accounts}/{account}"))?.is_none() {
            self.create(&accounts, &serde_json::json!({"metadata": {"name": account}}))?;
        }
        let wanted = serde_json::json!({"spec": {"expirationSeconds": 86400}});
        let answer = self.create(&format!("{accounts}/{account}/token"), &wanted)?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        Ok(token.context("the server gave no token")?.to_owned())
    }

    /// Makes a custom resource definition, or replaces the one of that name, and waits until its kind is served.
    ///
    /// # Errors
    ///
    /// When the server refuses it, or does not accept its names.
    pub fn define(&self, definition: &Value) -> Result<()> {
        let all = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = text("/metadata/name");
        let one = format!("{all}/{name}");
        let mut definition = definition.clone();
        let made = match self.get(&one)? {
            None => self.create(all, &definition)?,
            Some(old) => {
                definition["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
                self.request("PUT", &one, Some(("application/json", &definition)))?.ok()?
            }
        };
        self.wait_defined(&made)
    }

    fn wait_defined(&self, definition: &Value) -> Result<()> {
        let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = text("/metadata/name");
        let one = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        let (group, plural) = (text("/spec/group").to_owned(), text("/spec/names/plural").to_owned());
        let version = text("/spec/versions/0/name").to_owned();
        wait_for(&format!("{name} to be served"), START_LIMIT, || {
            let made = self.get(&one).ok()??;
            let established = made.pointer("/status/conditions").and_then(Value::as_array)?;
            let established = established.iter().any(|c| c["type"] == "Established" && c["status"] == "True");
            let same = definition["metadata"]["generation"] == made["metadata"]["generation"];
            let listed = self.get(&format!("/apis/{group}/{version}/{plural}")).ok()?.is_some();
            (established && same && listed).then_some(())
        })
    }

    /// Makes the objects of a YAML text, each in the collection of its kind, as who installs something does.
    ///
    /// # Errors
    ///
    /// When the server refuses one, or has no such kind.
    pub fn apply_text(&self, text: &str) -> Result<()> {
        for document in text.split("---\n").filter(|document| document.contains("kind: ")) {
            // Only the server reads it all; these keys stand at the beginning of lines, or one step within metadata.
            let value = |key: &str| document.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            let kind = value("kind: ").context("an object says its kind")?;
            let version = value("apiVersion: ").context("an object says its version")?;
            let metadata = document.lines().skip_while(|line| *line != "metadata:").skip(1);
            let mut metadata = metadata.take_while(|line| line.starts_with(' '));
            let namespace = metadata.find_map(|line| line.strip_prefix("  namespace: "));
            let path = self.collection(version, kind, namespace)?;
            let answer =
                self.send(&self.token, "POST", &path, Some(("application/yaml", document.as_bytes())))?;
            let made = answer.ok().with_context(|| format!("POST {path}"))?;
            if kind == "CustomResourceDefinition" {
                self.wait_defined(&made)?;
            }
        }
        Ok(())
    }

    /// Returns the path of the objects of a kind.
    fn collection(&self, version: &str, kind: &str, namespace: Option<&str>) -> Result<String> {
        let group =
            if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let resources = self.get(&group)?.with_context(|| format!("there is no {group}"))?;
        let mut all = resources["resources"].as_array().into_iter().flatten();
        let plural = all.find(|one| one["kind"] == kind).and_then(|one| one["name"].as_str());
        let plural = plural.with_context(|| format!("there is no kind {kind} in {group}"))?;
        Ok(match namespace {
            Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}"),
            None => format!("{group}/{plural}"),
        })
    }

    /// Sends a request with the token of who may do everything; the body has its media type.
    ///
    /// # Errors
    ///
    /// When there is no answer. An answer that refuses is an [`Answer`].
    pub fn request(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Answer> {
        self.request_as(&self.token, method, path, body)
    }

    /// Sends a request with another token.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub fn request_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer> {
        let text = body.map(|(media, body)| (media, body.to_string()));
        let body = text.as_ref().map(|(media, text)| (*media, text.as_bytes()));
        self.send(token, method, path, body)
    }

    fn send(&self, token: &str, method: &str, path: &str, body: Option<(&str, &[u8])>) -> Result<Answer> {
        let mut command = self.command("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "30", "--request", method]);
        command.arg("--cacert").arg(self.ca_file()).args(["--write-out", "\n%{http_code}"]);
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
        if let Some((media, _)) = body {
            command.args(["--header", &format!("Content-Type: {media}"), "--data-binary", "@-"]);
        }
        command.arg(format!("{}{path}", self.url()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start curl")?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        if let Some((_, body)) = body {
            // curl reads all of it before it says anything.
            stdin.write_all(body)?;
        }
        drop(stdin);
        let out = child.wait_with_output()?;
        ensure!(out.status.success(), "{method} {path}: {}", String::from_utf8_lossy(&out.stderr).trim());
        let text = String::from_utf8_lossy(&out.stdout);
        let (text, status) = text.rsplit_once('\n').context("curl printed no status")?;
        let status = status.parse().with_context(|| format!("curl printed the status {status:?}"))?;
        let body = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        Ok(Answer { status, body })
    }

    /// Returns an object or a list, or nothing when the server has none.
    ///
    /// # Errors
    ///
    /// When the server does not answer or refuses.
    pub fn get(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.request("GET", path, None)?;
        if answer.status == 404 { Ok(None) } else { answer.ok().map(Some) }
    }

    /// Returns the objects of a list.
    ///
    /// # Errors
    ///
    /// When the server does not answer or refuses, or has no such kind.
    pub fn list(&self, path: &str) -> Result<Vec<Value>> {
        let list = self.get(path)?.with_context(|| format!("there is no {path}"))?;
        list["items"].as_array().cloned().with_context(|| format!("{path} is no list"))
    }

    /// Makes an object in the collection `path`.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        let answer = self.request("POST", path, Some(("application/json", object)))?;
        answer.ok().with_context(|| format!("POST {path}"))
    }

    /// Changes an object by a JSON merge patch.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        let answer = self.request("PATCH", path, Some(("application/merge-patch+json", patch)))?;
        answer.ok().with_context(|| format!("PATCH {path}"))
    }

    /// Deletes an object at once, without the time that a node would have; missing is success.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn delete(&self, path: &str) -> Result<()> {
        let answer = self.request("DELETE", &format!("{path}?gracePeriodSeconds=0"), None)?;
        if answer.status == 404 {
            return Ok(());
        }
        answer.ok().with_context(|| format!("DELETE {path}")).map(drop)
    }

    pub(super) fn etcd_is_healthy(&self) -> bool {
        let mut command = self.command("curl");
        command.args(["--silent", "--noproxy", "*", "--max-time", "5"]);
        command.arg(format!("http://{}/health", host(self.address, ETCD.0)));
        command.output().is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("true"))
    }
}

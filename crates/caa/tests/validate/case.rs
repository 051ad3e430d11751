//! One configuration, and what is found in it.

use std::{collections::BTreeMap, ffi::OsString, process::Command};

use cloud_providers::MapEnv;
use serde::Deserialize;
use serde_json::Value;

use crate::place::Place;

/// A file of `cases/`. `{dir}` stands for the folder of the case wherever it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Case {
    /// What is wrong, or why it is right.
    pub(crate) about: String,
    pub(crate) provider: String,
    /// Beside those that every case has: paths in its folder.
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) live: bool,
    /// Files by name: a text, or a certificate.
    pub(crate) files: BTreeMap<String, Content>,
    /// Folders by name, with their modes.
    pub(crate) folders: BTreeMap<String, String>,
    /// File systems of a size, by folder.
    pub(crate) disks: BTreeMap<String, String>,
    /// What listens: `tcp:<address>`, `udp:<address>`, `unix:<path>`.
    pub(crate) listen: Vec<String>,
    /// A file that is locked as a running daemon does it.
    pub(crate) locked: Option<String>,
    /// A tunnel of the node uses this UDP port.
    pub(crate) tunnel_port: Option<u16>,
    /// The node has no default route.
    pub(crate) no_route: bool,
    /// The node has no address of IPv4.
    pub(crate) ipv6_only: bool,
    /// How many files the program may have open.
    pub(crate) open_files: Option<u32>,
    /// Everything that is not ok; a right configuration has nothing.
    pub(crate) expect: Vec<Found>,
}

/// What is in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Content {
    /// This text, with a mode such as `600`.
    Text(String, String),
    /// A certificate beside its key, which is in the file of that name with that mode.
    Certificate(CertificateSpec),
}

/// A certificate that signs itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateSpec {
    pub(crate) key: String,
    #[serde(default = "private")]
    pub(crate) key_mode: String,
    /// Days from now.
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// `client`, `server` or `ca`.
    pub(crate) usage: String,
}

fn private() -> String {
    "600".into()
}

/// A finding.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Found {
    pub(crate) outcome: String,
    pub(crate) check: String,
    /// The whole name; none where there is none.
    pub(crate) option: Option<String>,
    /// What detail and remedy say, among other words.
    pub(crate) words: Vec<String>,
}

impl Found {
    pub(crate) fn at(&self, place: &Place) -> Self {
        Self { words: self.words.iter().map(|word| place.fill(word)).collect(), ..self.clone() }
    }

    /// Whether a finding is this one.
    pub(crate) fn is(&self, finding: &Value) -> bool {
        let part = |key: &str| finding[key].as_str();
        let text = format!("{} ({})", part("detail").unwrap_or_default(), part("remedy").unwrap_or_default());
        part("outcome") == Some(&*self.outcome)
            && part("check") == Some(&*self.check)
            && part("option") == self.option.as_deref()
            && self.words.iter().all(|word| text.contains(&**word))
    }
}

impl Case {
    /// A provider that the program of this build does not have is looked at by the library.
    pub(crate) fn in_process(&self) -> bool {
        self.provider == "aws" && !cloud_providers_bundle::COMPILED_IN.contains(&"aws")
    }

    fn args(&self, place: &Place, json: bool) -> Vec<String> {
        let mut args = vec![self.provider.clone(), "validate".to_owned()];
        args.extend(json.then(|| "-json".to_owned()));
        args.extend(self.live.then(|| "-live".to_owned()));
        let own = ["-socket={dir}/hypervisor.sock", "-pods-dir={dir}/pods", "-state-dir={dir}/state"];
        let more = ["-direct-volumes-dir={dir}/volumes", "-cluster-id=cases"];
        args.extend(own.into_iter().chain(more).map(|arg| place.fill(arg)));
        args.extend(self.args.iter().map(|arg| place.fill(arg)));
        args
    }

    fn env(&self, place: &Place) -> Vec<(String, String)> {
        self.env.iter().map(|(key, value)| (key.clone(), place.fill(value))).collect()
    }

    /// Returns the exit code and the findings.
    pub(crate) fn run_json(&self, place: &Place) -> Result<(u8, Vec<Value>), String> {
        if self.in_process() {
            let report = self.report(place)?;
            let findings = report.findings.iter().map(|f| serde_json::to_value(f).unwrap()).collect();
            return Ok((u8::from(!report.is_ok()), findings));
        }
        let (code, out) = self.run(place, true)?;
        let report: Value = serde_json::from_str(&out).map_err(|error| format!("{error}: {out}"))?;
        let findings = report["findings"].as_array().cloned().ok_or("the report has no findings")?;
        let ok = report["ok"].as_bool() == Some(code == 0);
        let same = report["provider"] == *self.provider && report["live"] == self.live;
        if ok && same { Ok((code, findings)) } else { Err(format!("exit code {code}: {out}")) }
    }

    /// Returns the exit code and the report for people.
    pub(crate) fn run_text(&self, place: &Place) -> Result<(u8, String), String> {
        if self.in_process() {
            let report = self.report(place)?;
            return Ok((u8::from(!report.is_ok()), report.to_string()));
        }
        self.run(place, false)
    }

    fn report(&self, place: &Place) -> Result<cloud_providers::VerifyReport, String> {
        let args: Vec<OsString> = self.args(place, true).into_iter().map(Into::into).collect();
        let env = MapEnv::new(self.env(place));
        let looked = place.netns.run(|| caa::validate::report(&args, &env));
        looked.map_err(|error| format!("{error:#}"))
    }

    fn run(&self, place: &Place, json: bool) -> Result<(u8, String), String> {
        let program = env!("CARGO_BIN_EXE_cloud-api-adaptor");
        let mut command: Command = match self.open_files {
            None => place.netns.command(program),
            Some(most) => {
                let mut command = place.netns.command("prlimit");
                command.arg(format!("--nofile={most}")).arg(program);
                command
            }
        };
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(self.env(place));
        let out = command.args(self.args(place, json)).output().map_err(|error| error.to_string())?;
        let code = out.status.code().and_then(|code| u8::try_from(code).ok());
        let code = code.ok_or_else(|| format!("{out:?}"))?;
        Ok((code, String::from_utf8_lossy(&out.stdout).into_owned()))
    }
}

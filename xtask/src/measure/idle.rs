//! The memory of a daemon that serves a provider and has nothing to do.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cargo_metadata::Metadata;

use crate::bundle::{self, Listed, Set};

/// How long a daemon may take until it serves.
const LIMIT: Duration = Duration::from_secs(30);
/// It has nothing to do once its memory was the same for as many looks.
const SAME: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// How a daemon is started that serves one provider.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Start {
    provider: String,
    args: Vec<String>,
}

/// Reads from the manifest of the provider how a daemon is started without the provider's cloud.
///
/// The inner error says why there is nothing to measure.
pub(super) fn how_to_start(
    metadata: &Metadata,
    providers: &[Listed],
    set: &Set,
) -> Result<Result<Start, String>> {
    let mut chosen = providers.iter().filter(|provider| set.features.contains(&provider.feature));
    let Some(provider) = chosen.next() else { return Ok(Err("there is no provider to serve".to_owned())) };
    if chosen.next().is_some() {
        return Ok(Err("see the providers alone: one is served at a time".to_owned()));
    }
    let package = bundle::package(metadata, &provider.package)?;
    let Some(args) = package.metadata.get("cloud-providers").and_then(|table| table.get("idle")) else {
        let why = format!("the manifest of {} has no `idle`, the options of a start", provider.package);
        return Ok(Err(why));
    };
    let args = serde_json::from_value(args.clone())
        .with_context(|| format!("`idle` in the manifest of {} is a list of options", provider.package))?;
    Ok(Ok(Start { provider: provider.feature.clone(), args }))
}

/// A daemon that is ended with the value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the daemon and returns its memory in KiB once it serves and stays the same.
pub(super) fn measure(folder: &Path, bins: &[String], start: &Start) -> Result<u64, String> {
    let Some(bin) = bins.iter().find(|bin| *bin == "cloud-api-adaptor") else {
        return Err("only cloud-api-adaptor can be started without a cluster".to_owned());
    };
    serve(&folder.join(bin), start).map_err(|error| format!("{error:#}"))
}

fn serve(program: &Path, start: &Start) -> Result<u64> {
    let dir = tempfile::tempdir().context("cannot make a folder")?;
    let place = |name: &str| dir.path().join(name);
    let own = start.args.iter().map(|arg| arg.replace("{dir}", &dir.path().display().to_string()));
    let log = std::fs::File::create(place("log"))?;
    let child = Command::new(program)
        .arg(&start.provider)
        .args(own)
        .arg("-socket")
        .arg(place("hypervisor.sock"))
        .arg("-pods-dir")
        .arg(place("pods"))
        .arg("-state-dir")
        .arg(place("state"))
        .args(["-node-name", "idle"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut daemon = Daemon(child);
    let begin = Instant::now();
    let (mut before, mut same) = (0, 0);
    while begin.elapsed() < LIMIT {
        if let Some(status) = daemon.0.try_wait()? {
            let log = std::fs::read_to_string(place("log")).unwrap_or_default();
            anyhow::bail!("it ended ({status}): {}", log.lines().last().unwrap_or_default());
        }
        if std::os::unix::net::UnixStream::connect(place("hypervisor.sock")).is_ok() {
            let now = resident(daemon.0.id())?;
            same = if now == before { same + 1 } else { 0 };
            before = now;
            if same >= SAME {
                return Ok(now);
            }
        }
        std::thread::sleep(PAUSE);
    }
    anyhow::bail!("it was not idle within {} s", LIMIT.as_secs())
}

fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no memory is told")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;

    #[test]
    fn a_provider_says_in_its_manifest_how_it_is_started_alone() {
        let metadata = Context::from_process().unwrap().metadata().unwrap();
        let providers = bundle::providers(&metadata).unwrap();
        for set in bundle::sets(&providers, true) {
            let start = how_to_start(&metadata, &providers, &set).unwrap();
            match set.name.as_str() {
                "none" => assert!(start.unwrap_err().contains("no provider")),
                "light" | "all" => assert!(start.unwrap_err().contains("alone")),
                "local" => assert_eq!(start.unwrap().provider, "local"),
                "libvirt" => assert!(start.unwrap().args.contains(&"test:///default".to_owned())),
                _ => drop(start),
            }
        }
    }

    #[test]
    fn a_daemon_that_ends_is_told_with_its_last_words() {
        let start = Start { provider: "local".into(), args: vec![] };
        let error = serve(Path::new("/bin/false"), &start).unwrap_err().to_string();
        assert!(error.contains("it ended"), "{error}");
    }
}

//! Finds this machine's user data, writes the files it carries and unpacks the init-data.
//!
//! [`provision`] is what `process-user-data provision-files` runs. It repeats detect, fetch and check until the
//! document is complete or the time is over, so that a half-written file, a disk whose driver loads late or a
//! metadata server that answers 404 for a while only cost time.

mod cloud_config;
mod detect;
mod files;
#[cfg(test)]
mod fuzz;
mod imds;
mod initdata;
mod iso9660;
mod nocloud;
mod wait;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cloud_providers::cloud_config::CloudConfig;
use tracing::{info, warn};

pub use cloud_config::ALLOWED_FILES;
pub use detect::Source;
pub use imds::Endpoints;
pub use initdata::DEFAULT_DIGEST;
pub(crate) use nocloud::is_user_data_disk;
pub use wait::Cancel;

use crate::paths::{self, Paths};

/// Largest user data accepted, before and after decompression. Clouds allow far less; a disk may hold anything.
pub(crate) const MAX_USER_DATA: u64 = 16 << 20;

/// First pause between two attempts; it doubles up to [`Provisioner::longest_pause`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Pause between two looks for the seed disk.
const SEED_LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What [`provision`] works on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Provisioner {
    /// Root of the file system.
    pub paths: Paths,
    /// Folder with `user-data`, looked at before everything else; `/media/cidata` when unset.
    pub user_data_dir: Option<std::path::PathBuf>,
    /// Addresses of the metadata servers.
    pub endpoints: Endpoints,
    /// Bound of the whole run.
    pub timeout: Duration,
    /// Longest pause between two attempts.
    pub longest_pause: Duration,
    /// Ends the run early.
    pub cancel: Cancel,
}

impl Provisioner {
    /// Works on `paths` with the real metadata servers and a bound of 180 seconds.
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            user_data_dir: None,
            endpoints: Endpoints::default(),
            timeout: Duration::from_secs(180),
            longest_pause: Duration::from_secs(2),
            cancel: Cancel::default(),
        }
    }
}

/// What a run did.
#[derive(Debug)]
pub struct Report {
    /// Where the user data came from.
    pub source: Source,
    /// The files written from it.
    pub written: Vec<String>,
    /// Hash of the init-data in use, the built-in one included.
    pub digest: String,
}

/// Writes the files of the user data, then those of the init-data.
///
/// # Errors
///
/// When no complete user data came within the timeout (the last reason is told), when a file cannot be written, or
/// when the init-data is malformed.
pub fn provision(p: &Provisioner) -> Result<Report> {
    let (source, config) = repeat(p, |deadline| attempt(p, deadline))?;
    let mut written = Vec::new();
    if let Some(config) = &config {
        for file in &config.write_files {
            if !ALLOWED_FILES.contains(&file.path.as_str()) {
                warn!(path = file.path, "user data may not write this file, skipped");
                continue;
            }
            files::write(&p.paths, &file.path, &file.content)?;
            written.push(file.path.clone());
        }
    }
    let digest = initdata::unpack(&p.paths)?;
    info!(source = %source, files = written.len(), digest, "user data is in place");
    Ok(Report { source, written, digest })
}

/// Returns the user data as it is, unpacked when it was compressed; nothing where this machine has no source of it.
///
/// # Errors
///
/// When a source gave nothing within the timeout; the last reason is told.
pub fn fetch(p: &Provisioner) -> Result<Option<Vec<u8>>> {
    repeat(p, |deadline| {
        let source = detect::detect(p)?;
        if source == Source::None {
            return Ok(None);
        }
        let bytes =
            source.fetch(p, deadline).and_then(|bytes| cloud_config::plain(&bytes).map(Cow::into_owned));
        bytes.map(Some).with_context(|| format!("user data from {source}"))
    })
}

/// Calls `attempt` until it gives something, within the timeout.
fn repeat<T>(p: &Provisioner, mut attempt: impl FnMut(Instant) -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + p.timeout;
    let mut pause = FIRST_PAUSE.min(p.longest_pause);
    let mut last_told = String::new();
    loop {
        let reason = match attempt(deadline) {
            Ok(found) => return Ok(found),
            Err(reason) => format!("{reason:#}"),
        };
        // The same reason every second would bury the rest of the console.
        if reason != last_told {
            warn!(reason, "user data is not ready, trying again");
            last_told.clone_from(&reason);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no complete user data within {} s: {last_told}", p.timeout.as_secs());
        }
        if p.cancel.wait(pause.min(left)) {
            bail!("cancelled while waiting for user data: {last_told}");
        }
        pause = (pause * 2).min(p.longest_pause);
    }
}

/// Reads the name that a seed disk gives this machine; none without a disk or without a name on it.
///
/// A disk behind a SCSI controller appears some time after its driver is loaded. It is waited for only as long as
/// `patience`, since machines of clouds have none.
///
/// # Errors
///
/// When the disk cannot be read, or names the machine in a way that no host can be named.
pub fn local_hostname(paths: &Paths, patience: Duration) -> Result<Option<String>> {
    let end = Instant::now() + patience;
    let disk = loop {
        match nocloud::find_disk(paths) {
            Some(disk) => break disk,
            None if Instant::now() >= end => return Ok(None),
            None => std::thread::sleep(SEED_LOOK_AGAIN),
        }
    };
    let text = nocloud::read_meta_data(&disk).with_context(|| disk.display().to_string())?;
    let text = String::from_utf8_lossy(&text);
    let Some(name) = text.lines().find_map(|line| line.strip_prefix("local-hostname:")) else {
        return Ok(None);
    };
    let name = name.trim().trim_matches(['"', '\'']);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    ensure!(
        !name.is_empty() && name.len() <= 64 && name.chars().all(plain),
        "local-hostname {name:?} of {} is no host name",
        disk.display()
    );
    Ok(Some(name.to_owned()))
}

/// One round: where is the user data, what does it say, is all of it there?
fn attempt(p: &Provisioner, deadline: Instant) -> Result<(Source, Option<CloudConfig>)> {
    let source = detect::detect(p)?;
    if source == Source::None {
        // Images with cloud-init get their files from it; without them nothing could start.
        let apf = p.paths.at(paths::APF_CONFIG);
        let text = std::fs::read(&apf).with_context(|| {
            format!("no source of user data was found, and {} could not be read", apf.display())
        })?;
        cloud_config::check_apf(&text).with_context(|| apf.display().to_string())?;
        return Ok((source, None));
    }
    let bytes = source.fetch(p, deadline).with_context(|| format!("user data from {source}"))?;
    let config = cloud_config::parse(&bytes).with_context(|| format!("user data from {source}"))?;
    cloud_config::check_complete(&config).with_context(|| format!("user data from {source}"))?;
    Ok((source, Some(config)))
}

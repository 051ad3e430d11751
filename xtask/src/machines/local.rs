//! Instances of the provider `local`: folders with a record each.

use std::any::Any;
use std::ffi::OsString;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::{GuestSystem, Machines};

/// Where the guest's programs are found inside an instance.
const PROGRAMS: &str = "/run/peerpod-local/guest";

/// The provider keeps everything in a folder, so nothing has to run beside the daemon.
#[derive(Debug)]
pub(super) struct Local {
    dir: PathBuf,
    agent: PathBuf,
}

impl Local {
    /// Copies the guest's programs: a build beside us must not change those of running instances.
    pub(super) fn new(dir: &Path, guest: &GuestSystem) -> Result<Self> {
        let GuestSystem::Programs { programs, agent } = guest else {
            bail!("the provider local runs programs, no image");
        };
        let folder = dir.join("guest");
        std::fs::create_dir(&folder)?;
        for program in crate::programs::GUEST {
            std::fs::copy(programs.folder.join(program), folder.join(program))?;
        }
        let agent = agent.clone().unwrap_or_else(|| folder.join("test-agent"));
        Ok(Self { dir: dir.to_owned(), agent })
    }

    fn instance_dir(&self, id: &str) -> PathBuf {
        self.dir.join("local/instances").join(id)
    }

    fn record(&self, id: &str) -> Result<serde_json::Value> {
        let file = self.instance_dir(id).join("instance.json");
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    fn ids(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join("local/instances")).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

impl Machines for Local {
    fn flags(&self) -> Vec<OsString> {
        let folder = |flag: &str, path: PathBuf| [flag.into(), path.into_os_string()];
        [
            folder("-data-dir", self.dir.join("local")),
            folder("-guest-dir", self.dir.join("guest")),
            folder("-agent", self.agent.clone()),
            ["-proxy-timeout".into(), "1m".into()],
        ]
        .concat()
    }

    fn programs(&self) -> &'static str {
        PROGRAMS
    }

    fn mounts_programs(&self) -> bool {
        true
    }

    fn instances(&self) -> Result<Vec<String>> {
        Ok(self.ids())
    }

    fn address(&self, id: &str) -> Result<Ipv4Addr> {
        let record = self.record(id)?;
        let address = record["address"].as_str().context("the provider's record has no address")?;
        Ok(address.parse()?)
    }

    fn running(&self) -> Option<Ipv4Addr> {
        self.ids().iter().find_map(|id| {
            let record = self.record(id).ok()?;
            (record["phase"] == "running").then(|| record["address"].as_str()?.parse().ok())?
        })
    }

    fn logs(&self) -> Vec<PathBuf> {
        self.ids().iter().map(|id| self.instance_dir(id).join("console.log")).collect()
    }

    fn hold_deletions(&self) -> Result<Box<dyn Any>> {
        let hold = |id: String| {
            let path = self.dir.join("local/locks").join(id);
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| anyhow::anyhow!("cannot lock {}: {errno}", path.display()))
        };
        Ok(Box::new(self.ids().into_iter().map(hold).collect::<Result<Vec<_>>>()?))
    }

    fn leftovers(&self) -> Result<Vec<String>> {
        // Its files lie in the folder of the stand-in, where all files are looked at.
        Ok(Vec::new())
    }

    fn end(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn keep(self: Box<Self>) -> Result<()> {
        Ok(())
    }

    fn how_to_look(&self, instance: &str) -> Vec<(&'static str, String)> {
        vec![("console", self.instance_dir(instance).join("console.log").display().to_string())]
    }
}

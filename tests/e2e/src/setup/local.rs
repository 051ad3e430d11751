//! Machines out of namespaces of this host, in a network namespace of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use test_support::Netns;

use super::{Setup, Wanted};

/// The set-up of the provider `local`.
#[derive(Debug)]
pub struct Local {
    netns: Netns,
    data: PathBuf,
}

impl Local {
    /// Makes the network namespace.
    ///
    /// # Errors
    ///
    /// When it cannot be made, most often for lack of rights.
    pub fn new(wanted: &Wanted) -> Result<Self> {
        Ok(Self { netns: Netns::unique("e2e")?, data: wanted.dir.join("local") })
    }

    fn instances(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.data.join("instances")).into_iter().flatten();
        let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| !hidden(path)).collect()
    }
}

impl Setup for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.netns.command(program);
        command.env("LOCAL_DATA_DIR", &self.data);
        command
    }

    fn boots_a_kernel(&self) -> bool {
        false
    }

    fn leftovers(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> =
            self.instances().iter().map(|path| format!("folder {}", path.display())).collect();
        let links = self.netns.ip(&["-oneline", "link", "show", "type", "veth"])?;
        left.extend(links.lines().map(|line| format!("link {line}")));
        let data = self.data.display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        left.extend(mounts.lines().filter(|line| line.contains(&data)).map(|line| format!("mount {line}")));
        Ok(left)
    }

    fn logs(&self) -> Vec<PathBuf> {
        self.instances().iter().map(|path| path.join("console.log")).collect()
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.netns.delete()
    }
}

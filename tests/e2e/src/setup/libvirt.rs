//! Virtual machines of a real libvirtd that runs for the test alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use test_support::Libvirtd;

use super::{Setup, Wanted};

/// The volume that machines are made from: what the provider takes unless it is told another one.
const BASE: &str = "podvm-base.qcow2";

/// The set-up of the provider `libvirt`.
#[derive(Debug)]
pub struct Libvirt {
    libvirtd: Libvirtd,
}

impl Libvirt {
    /// Starts libvirtd and puts the image into its pool.
    ///
    /// # Errors
    ///
    /// When no image is given, or libvirtd does not come up.
    pub fn new(wanted: &Wanted) -> Result<Self> {
        let image = wanted.image.as_deref().context("libvirt boots an image: give --image")?;
        let libvirtd = Libvirtd::start()?;
        libvirtd.add_volume(BASE, image)?;
        Ok(Self { libvirtd })
    }
}

impl Setup for Libvirt {
    fn name(&self) -> &'static str {
        "libvirt"
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.libvirtd.command(program);
        command.env("LIBVIRT_URI", self.libvirtd.uri());
        // A BIOS comes up two seconds earlier than UEFI, and proves as much.
        command.env("LIBVIRT_EFI_FIRMWARE", "").env("LIBVIRT_ROOT_DISK_SIZE", "1");
        command
    }

    fn boots_a_kernel(&self) -> bool {
        true
    }

    fn leftovers(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> =
            self.libvirtd.domains()?.into_iter().map(|name| format!("domain {name}")).collect();
        let volumes = self.libvirtd.volumes()?.into_iter().filter(|name| name != BASE);
        left.extend(volumes.map(|name| format!("volume {name}")));
        let running = self.libvirtd.qemu_processes();
        left.extend(running.iter().map(|process| format!("QEMU {} {}", process.pid, process.command)));
        Ok(left)
    }

    fn logs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.libvirtd.dir().join("log/qemu")).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.libvirtd.shut_down()
    }
}

//! What differs between providers of worker machines.

mod libvirt;
mod local;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

pub use libvirt::Libvirt;
pub use local::Local;

/// A provider of worker machines, and whatever it needs on this machine.
///
/// The folder `tests/setups/<name>` has the reservation. Everything else follows from this trait: a further provider
/// is one more implementation and one more folder.
pub trait Setup: Debug {
    /// Returns the provider's name, which is the folder's too.
    fn name(&self) -> &'static str;

    /// Returns a command that runs where the machines can be reached, with what the provider reads from variables.
    fn command(&self, program: &Path) -> Command;

    /// Whether machines boot the kernel of their image, which has traffic control; others have the one of this host.
    fn boots_a_kernel(&self) -> bool;

    /// Looks for what the experiment left, without asking `testbed`.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at.
    fn leftovers(&self) -> Result<Vec<String>>;

    /// Files with what machines and servers wrote.
    fn logs(&self) -> Vec<PathBuf>;

    /// Removes what the set-up itself made.
    ///
    /// # Errors
    ///
    /// Names what stays.
    fn end(self: Box<Self>) -> Result<()>;
}

/// What a set-up is made from.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// A folder for its files.
    pub dir: PathBuf,
    /// The image of the machines, for providers that boot one.
    pub image: Option<PathBuf>,
}

/// The names of the set-ups.
pub const NAMES: &[&str] = &["local", "libvirt"];

/// Makes the set-up of a provider.
///
/// # Errors
///
/// When something that it needs is missing or does not come up.
pub fn open(name: &str, wanted: &Wanted) -> Result<Box<dyn Setup>> {
    match name {
        "local" => Ok(Box::new(Local::new(wanted)?)),
        "libvirt" => Ok(Box::new(Libvirt::new(wanted)?)),
        other => bail!("there is no set-up {other} (known: {})", NAMES.join(", ")),
    }
}

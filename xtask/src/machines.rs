//! Where the instances of the stand-in node come from: what differs between the providers.

mod aws;
mod libvirt;
mod local;

use std::any::Any;
use std::ffi::OsString;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches};
use test_support::Netns;

use crate::context::Context;
use crate::programs::{self, Guest};
use crate::setup::Need;

/// The providers that the demo and the benchmark know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Provider {
    /// Namespaces on this machine.
    Local,
    /// Virtual machines of a real libvirtd.
    Libvirt,
    /// The emulator of EC2: its instances have everything but a machine.
    Aws,
}

impl Provider {
    /// The flag that chooses one, where an emulated one will do.
    pub(crate) fn arg_with_emulated() -> Arg {
        Self::arg().value_parser(PossibleValuesParser::new(["local", "libvirt", "aws"])).help(
            "Who makes the instances: local (namespaces), libvirt (virtual machines) or aws (an emulator)",
        )
    }

    /// The flag that chooses one whose instances run.
    pub(crate) fn arg() -> Arg {
        Arg::new("provider")
            .long("provider")
            .value_name("NAME")
            .value_parser(PossibleValuesParser::new(["local", "libvirt"]))
            .default_value("local")
            .help("Who makes the instances: local (namespaces) or libvirt (virtual machines)")
    }

    /// Reads the flag.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        match matches.get_one::<String>("provider").map(String::as_str) {
            Some("libvirt") => Self::Libvirt,
            Some("aws") => Self::Aws,
            _ => Self::Local,
        }
    }

    /// The name under which the daemon knows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Libvirt => "libvirt",
            Self::Aws => "aws",
        }
    }

    /// The packages that its instances and they alone depend on, beside the programs of node and guest.
    pub(crate) fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Local => &[],
            Self::Libvirt => &["cloud-providers-libvirt"],
            Self::Aws => &["cloud-providers-aws", "fault-proxy"],
        }
    }

    /// What has to be installed for it.
    pub(crate) fn need(self) -> Need {
        match self {
            Self::Local => Need::Demo,
            Self::Libvirt => Need::Libvirt,
            Self::Aws => Need::Demo,
        }
    }

    /// How long a start may take, from CreateVM to the answer to StartVM, on a slow and busy machine.
    pub(crate) fn start_limit(self) -> Duration {
        match self {
            Self::Local => Duration::from_secs(90),
            // Without hardware for virtualisation the guest's kernel alone takes ten seconds on a quiet machine.
            Self::Libvirt => Duration::from_secs(300),
            Self::Aws => Duration::from_secs(120),
        }
    }

    /// Builds what the instances run.
    ///
    /// # Errors
    ///
    /// When cargo fails or an image cannot be made.
    pub(crate) fn build_guest(self, context: &Context, wanted: &Wanted) -> Result<GuestSystem> {
        match (self, &wanted.image) {
            (Self::Aws, _) => bail!("the emulator of EC2 runs no guest"),
            (Self::Local, None) => {
                let programs = programs::build_guest(context)?;
                Ok(GuestSystem::Programs { programs, agent: wanted.agent.clone() })
            }
            (Self::Local, Some(_)) => bail!("--image is for providers that boot images; local does not"),
            (Self::Libvirt, None) => libvirt::build_image(context, wanted.agent.as_deref()),
            (Self::Libvirt, Some(image)) => {
                ensure!(
                    wanted.agent.is_none(),
                    "--agent is built into the image: give one of --agent and --image"
                );
                Ok(GuestSystem::Image(image.clone()))
            }
        }
    }

    /// Sets up what makes instances, in the namespace of the node and with all files in `dir`.
    ///
    /// # Errors
    ///
    /// When a file cannot be copied or a server does not come up.
    pub(crate) fn set_up(
        self,
        node: &Netns,
        dir: &Path,
        guest: &GuestSystem,
        uri: Option<&str>,
    ) -> Result<Box<dyn Machines>> {
        Ok(match self {
            Self::Local => Box::new(local::Local::new(dir, guest)?),
            Self::Libvirt => Box::new(libvirt::Libvirt::new(node, dir, guest, uri)?),
            Self::Aws => Box::new(aws::Aws::new(node)?),
        })
    }
}

/// What instances shall run, where it is not what is built of this workspace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// The agent.
    pub(crate) agent: Option<PathBuf>,
    /// The whole image, for providers that boot one.
    pub(crate) image: Option<PathBuf>,
}

/// What instances run.
#[derive(Clone, Debug)]
pub(crate) enum GuestSystem {
    /// Programs, beside those of the host.
    Programs {
        /// Ours.
        programs: Guest,
        /// The agent, when it is not ours.
        agent: Option<PathBuf>,
    },
    /// An image with a kernel and everything else.
    Image(PathBuf),
    /// Nothing: the instances are emulated.
    Nothing,
}

impl GuestSystem {
    /// Says in a few words what it is.
    pub(crate) fn summary(&self) -> String {
        match self {
            Self::Programs { programs, .. } => programs.triple.clone(),
            Self::Image(file) => {
                let size = std::fs::metadata(file).map_or(0, |meta| meta.len());
                format!("image of {:.1} MB", size as f64 / 1e6)
            }
            Self::Nothing => "none".to_owned(),
        }
    }
}

/// What makes the instances of one provider, seen from beside the daemon. Nothing here asks the daemon.
pub(crate) trait Machines: Debug + Send + Sync {
    /// The provider's flags for the daemon.
    fn flags(&self) -> Vec<OsString>;

    /// The folder in an instance that has our programs.
    fn programs(&self) -> &'static str;

    /// Whether containers need that folder mounted, since their root does not have it.
    fn mounts_programs(&self) -> bool;

    /// Ids of the instances that there are.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    fn instances(&self) -> Result<Vec<String>>;

    /// The address of an instance.
    ///
    /// # Errors
    ///
    /// When it has none.
    fn address(&self, id: &str) -> Result<Ipv4Addr>;

    /// The address of the one instance that runs, when it has one already. It is asked for many times a second.
    fn running(&self) -> Option<Ipv4Addr>;

    /// Files with what guests and servers wrote.
    fn logs(&self) -> Vec<PathBuf>;

    /// Names what instances left, once none is there.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at.
    fn leftovers(&self) -> Result<Vec<String>>;

    /// Ends what was set up in order, and names what of it stayed.
    ///
    /// # Errors
    ///
    /// When something does not end.
    fn end(&mut self) -> Result<Vec<String>>;

    /// Leaves everything running.
    ///
    /// # Errors
    ///
    /// When it cannot be told to.
    fn keep(self: Box<Self>) -> Result<()>;

    /// Lines that say how to look at an instance: a word and a command each.
    fn how_to_look(&self, instance: &str) -> Vec<(&'static str, String)>;

    /// Keeps the provider from answering any deletion of the instances that there are, until the answer is dropped.
    ///
    /// # Errors
    ///
    /// When this provider cannot be kept from it.
    fn hold_deletions(&self) -> Result<Box<dyn Any>> {
        anyhow::bail!("deletions of this provider cannot be held up")
    }

    /// The calls to the cloud so far, by operation, where somebody counts them.
    fn calls(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// What there is for a second disk, where instances can have one.
    fn disks(&self) -> Option<PathBuf> {
        None
    }
}

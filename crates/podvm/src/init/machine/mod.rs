//! What the init does where nothing is below it but a kernel: it is process 1 of a virtual machine.
//!
//! [`run`] takes over from the kernel and never gives back: whatever happens, a panic included, its last act is to
//! switch the machine off. A kernel whose process 1 ends panics, and what is seen from outside is then a machine that
//! hangs; a machine that is off says at once that it failed, and the last lines of its console say why.

mod login;
mod modules;
mod network;
mod power;
mod root;

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::anyhow;
use tracing::{error, info, warn};

pub use modules::modprobe;
pub(super) use network::Network;

use super::children::Children;
use super::{Options, Step, mounts};
use crate::paths::Paths;
use crate::userdata;

/// Where programs are looked up. The kernel gives process 1 no such list.
const PROGRAMS: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the seed disk may take to appear after its driver was loaded.
const SEED_DISK: Duration = Duration::from_millis(500);

/// Runs the guest as process 1, and switches the machine off when it ends.
pub fn run(options: &Options) -> ! {
    let outcome = catch_unwind(AssertUnwindSafe(|| boot(options)));
    let outcome = outcome.unwrap_or_else(|_| Err((Step::Init, anyhow!("the init panicked, see above"))));
    match outcome {
        Ok(()) => eprintln!("podvm-init: the guest ended as it was asked to, the machine goes off"),
        Err((step, error)) => eprintln!("podvm-init: FAILED at {step}: {error:#}; the machine goes off"),
    }
    power::off()
}

fn boot(options: &Options) -> Result<(), (Step, anyhow::Error)> {
    info!(version = crate::VERSION, kernel = kernel(), "init of a machine is up");
    root::leave_initramfs().map_err(|error| (Step::Root, error))?;
    mounts::mount_missing().map_err(|error| (Step::Mounts, error))?;
    mounts::mount_for_containers().map_err(|error| (Step::Mounts, error))?;
    gather_randomness();
    modules::load_for_devices().map_err(|error| (Step::Modules, error))?;
    set_hostname();
    let mut children = Children::new(Some(PROGRAMS)).map_err(|error| (Step::Init, error))?;
    power::watch_button();
    let network = Network::start(&mut children, options.address_timeout);
    let mut network = network.map_err(|error| (Step::Network, error))?;
    let result = if login::is_wanted() {
        super::ended_with(options, &mut children, |children| login::run(options, children, &mut network))
    } else {
        super::run_with(options, &mut children, Some(network))
    };
    power::end_everything();
    result
}

/// Starts to wait for the kernel's random numbers. Without a device for them the kernel makes some itself, which takes
/// seconds and begins only when somebody waits: the forwarder would be the first.
fn gather_randomness() {
    let wait = || {
        let read = File::open("/dev/random").and_then(|mut file| file.read_exact(&mut [0; 16]));
        if let Err(error) = read {
            warn!(%error, "no random numbers");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("random".to_owned()).spawn(wait) {
        warn!(%error, "nobody waits for random numbers");
    }
}

/// Takes the name of the machine from the seed disk. Machines of clouds have none, and get theirs by DHCP or not at
/// all.
fn set_hostname() {
    match userdata::local_hostname(&Paths::host(), SEED_DISK) {
        Ok(Some(name)) => match nix::unistd::sethostname(&name) {
            Ok(()) => info!(name, "host name is set"),
            Err(error) => warn!(name, %error, "the host name cannot be set"),
        },
        Ok(None) => info!("no disk names this machine"),
        Err(error) => warn!(error = format!("{error:#}"), "the name of this machine cannot be read"),
    }
}

fn kernel() -> String {
    match nix::sys::utsname::uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(error) => {
            error!(%error, "the kernel does not say its release");
            String::new()
        }
    }
}

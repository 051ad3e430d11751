//! The end of a machine: asked for by the power button, and carried out.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcdrain;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tracing::{debug, info, warn};

/// Size of one event of an input device on 64-bit machines: two words of time, type, code, value.
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Asks the init to end when the power button is pressed.
pub(super) fn watch_button() {
    let Ok(devices) = fs::read_dir("/dev/input") else {
        debug!("the machine has no buttons");
        return;
    };
    for device in devices.flatten().map(|entry| entry.path()) {
        let name = device.clone();
        let watch = std::thread::Builder::new().name("button".to_owned()).spawn(move || watch_one(device));
        if let Err(error) = watch {
            warn!(device = %name.display(), %error, "nobody watches this button");
        }
    }
}

fn watch_one(device: PathBuf) {
    let Ok(mut file) = File::open(&device) else { return };
    let mut event = [0; EVENT];
    while file.read_exact(&mut event).is_ok() {
        if is_power_button(&event) {
            info!("the power button was pressed");
            // The init handles it like every other request to stop.
            let _ = kill(Pid::this(), Signal::SIGPWR);
        }
    }
}

fn is_power_button(event: &[u8; EVENT]) -> bool {
    let word = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    let pressed = event[20..] == 1_i32.to_ne_bytes();
    word(16) == EV_KEY && word(18) == KEY_POWER && pressed
}

/// Ends what is left of containers and unmounts the disks, so that nothing written is lost.
pub(super) fn end_everything() {
    // To process 1, -1 means everybody else.
    let everybody = Pid::from_raw(-1);
    let _ = kill(everybody, Signal::SIGKILL);
    while waitpid(everybody, Some(WaitPidFlag::empty())).is_ok() {}
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev().filter(|line| line.starts_with("/dev/")) {
        let Some(folder) = line.split(' ').nth(1) else { continue };
        if let Err(error) = umount2(folder, MntFlags::MNT_DETACH) {
            warn!(folder, %error, "a disk stays mounted");
        }
    }
}

/// Switches the machine off.
pub(super) fn off() -> ! {
    nix::unistd::sync();
    // The console's last line says why: it has to be out before the power is.
    let _ = tcdrain(std::io::stderr());
    loop {
        match reboot(RebootMode::RB_POWER_OFF) {
            Ok(never) => match never {},
            Err(error) => eprintln!("podvm-init: the machine cannot be switched off: {error}"),
        }
        // Without a way to switch off, process 1 must stay: the kernel panics when it ends.
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_press_of_the_power_button_ends_the_machine() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut event = [0; EVENT];
            event[16..18].copy_from_slice(&kind.to_ne_bytes());
            event[18..20].copy_from_slice(&code.to_ne_bytes());
            event[20..].copy_from_slice(&value.to_ne_bytes());
            event
        };
        assert!(is_power_button(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_power_button(&event(EV_KEY, KEY_POWER, 0)), "the release is no second press");
        assert!(!is_power_button(&event(EV_KEY, 30, 1)));
        assert!(!is_power_button(&event(0, 0, 1)));
    }
}

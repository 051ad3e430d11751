//! Brings up the network of a machine: every card is up and asks for an address.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracing::info;

use super::super::children::{Children, Event};
use super::super::{Kept, Step};

/// Cards are found here; a `device` in their folder tells them from interfaces made by programs.
const INTERFACES: &str = "/sys/class/net";
/// What udhcpc runs for each event; part of the image.
const SCRIPT: &str = "/usr/libexec/peerpod/dhcp-event";
/// Where that script tells the addresses.
const LEASES: &str = "/run/podvm-init";
const BUSYBOX: &str = "/bin/busybox";
/// Pause between two looks for an address.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A client of DHCP that ends is started again as often as this.
const RESTARTS: u32 = 10;

/// The cards of the machine, and who keeps their addresses.
pub(in super::super) struct Network {
    first: String,
    clients: Vec<(String, Kept)>,
    within: Duration,
}

impl Network {
    /// Starts to ask for addresses. The first card's must come `within` that time.
    pub(super) fn start(children: &mut Children, within: Duration) -> Result<Self> {
        // Its script writes there before anything else does.
        fs::create_dir_all(LEASES).with_context(|| format!("make {LEASES}"))?;
        let loopback = Command::new(BUSYBOX).args(["ip", "link", "set", "dev", "lo", "up"]).status();
        ensure!(loopback.context("start busybox")?.success(), "the loopback interface does not come up");
        let cards = cards(Path::new(INTERFACES))?;
        let first = cards.first().cloned().context("the machine has no network card with a driver")?;
        let mut clients = Vec::new();
        for card in cards {
            let mut client = Kept::new("dhcp", Step::Network, RESTARTS);
            client.start(children, &mut dhcp(&card)).map_err(|(_, error)| error)?;
            clients.push((card, client));
        }
        Ok(Self { first, clients, within })
    }

    /// Waits for the address of the first card; answers whether the guest goes on.
    pub(in super::super) fn wait(&mut self, children: &mut Children) -> Result<bool, (Step, anyhow::Error)> {
        let told = Path::new(LEASES).join(&self.first);
        let end = Instant::now() + self.within;
        loop {
            if let Ok(address) = fs::read_to_string(&told) {
                info!(card = self.first, address = address.trim(), "the machine has an address");
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = self.within.as_secs();
                let error = anyhow::anyhow!(
                    "no address by DHCP on {} within {seconds} s: is there a server?",
                    self.first
                );
                return Err((Step::Network, error));
            }
            match children.next(Some(LOOK_AGAIN.min(left))) {
                Event::Stop => return Ok(false),
                Event::Ended { pid, how } => {
                    self.ended(pid, &how.to_string())?;
                }
                Event::Timeout => {}
            }
            self.restart_when_due(children)?;
        }
    }

    /// Plans a restart when the child was one of ours; answers whether it was.
    pub(in super::super) fn ended(&mut self, pid: i32, how: &str) -> Result<bool, (Step, anyhow::Error)> {
        match self.clients.iter_mut().find(|(_, client)| client.pid == Some(pid)) {
            Some((_, client)) => client.ended(how).map(|()| true),
            None => Ok(false),
        }
    }

    /// Starts again what is due.
    pub(in super::super) fn restart_when_due(
        &mut self,
        children: &mut Children,
    ) -> Result<(), (Step, anyhow::Error)> {
        for (card, client) in &mut self.clients {
            client.restart_when_due(children, || dhcp(card))?;
        }
        Ok(())
    }

    /// When something is to be started again.
    pub(in super::super) fn due(&self) -> Option<Instant> {
        self.clients.iter().filter_map(|(_, client)| client.start_at).min()
    }
}

/// The cards in the kernel's order, which is that of their slots.
fn cards(folder: &Path) -> Result<Vec<String>> {
    let mut cards: Vec<(u32, String)> = fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| {
            let index: PathBuf = entry.path().join("ifindex");
            let index = fs::read_to_string(index).ok()?.trim().parse().ok()?;
            Some((index, entry.file_name().into_string().ok()?))
        })
        .collect();
    cards.sort();
    Ok(cards.into_iter().map(|(_, name)| name).collect())
}

fn dhcp(card: &str) -> Command {
    let mut command = Command::new(BUSYBOX);
    command.args(["udhcpc", "-f", "-i", card, "-s", SCRIPT]);
    // Ask every second, for ever: a server may come later than the machine. Options beyond the usual ones: classless
    // routes and the size of packets.
    command.args(["-t", "5", "-T", "1", "-A", "1", "-O", "staticroutes", "-O", "mtu"]);
    if let Ok(name) = nix::unistd::gethostname()
        && let Some(name) = name.to_str()
        && name != "(none)"
    {
        command.args(["-x", &format!("hostname:{name}")]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_come_in_the_kernels_order_and_made_interfaces_are_none() {
        let dir = tempfile::tempdir().unwrap();
        for (name, index, device) in [("eth1", "3", true), ("eth0", "10", true), ("lo", "1", false)] {
            let folder = dir.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("ifindex"), format!("{index}\n")).unwrap();
            if device {
                fs::create_dir(folder.join("device")).unwrap();
            }
        }
        assert_eq!(cards(dir.path()).unwrap(), ["eth1", "eth0"]);
        assert!(cards(&dir.path().join("none")).is_err());
    }
}

//! What is particular about machines on this host: their first program, the way to them, and their pool.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use cloud_providers::{Cloud, EnvSource, Error, ErrorKind, OpContext, OptionSpec, Result};
use ipnet::{IpNet, Ipv4Net};
use ssh_key::{Algorithm, PublicKey};
use tokio::{net::TcpStream, time::timeout};

use crate::{Network, Pool, Reservation, adapter::create, machine};

/// The provider's name.
pub(super) const NAME: &str = "local";

/// Free addresses of one experiment.
const BLOCK: u32 = 64;
/// How long a machine's SSH server is waited for to see which way leads to it.
const REACH_LIMIT: Duration = Duration::from_secs(20);
/// Longer than an answer takes on this host.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// Machines on this host.
#[derive(Debug)]
pub(super) struct Local {
    data_dir: PathBuf,
    subnet: Ipv4Net,
    /// Addresses at the end of the subnet that no machine gets.
    reserved: u32,
    /// This program, which is the machines' first one, too.
    program: PathBuf,
    /// Nobody named another first program.
    ours: bool,
}

impl Local {
    /// Fills what the user left open, and reads what is needed here.
    ///
    /// # Errors
    ///
    /// When the file of this program is gone.
    pub(super) fn prepare(cloud: &mut dyn Cloud) -> Result<Self> {
        let program = std::env::current_exe()
            .map_err(|e| Error::internal("cannot tell which program this is").with_source(e))?;
        let (values, _) = cloud.settings().parse_all();
        // A value that is wrong is told by the provider itself.
        let subnet: Ipv4Net = values.text("subnet").parse().unwrap_or_default();
        let ours = values.optional("machine-init").is_none();
        if ours && !program.is_file() {
            return Err(Error::config("the file of this program was removed or replaced while it runs")
                .with("path", program.display())
                .with("mend", "start it again, or name another program with the key machine-init"));
        }
        let reserved = if u32::from(subnet.prefix_len()) > 28 {
            0
        } else {
            (1u32 << (32 - subnet.prefix_len().max(8))) / 4
        };
        let defaults = Defaults { ours, program: program.display().to_string(), reserved };
        cloud.load_env(&defaults)?;
        let (values, _) = cloud.settings().parse_all();
        Ok(Self {
            data_dir: PathBuf::from(values.text("data-dir")),
            subnet: subnet.trunc(),
            reserved: u32::try_from(values.int("reserved-addresses")).unwrap_or_default(),
            program,
            ours,
        })
    }

    /// Refuses a public key that the SSH server of the machines cannot check.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming the kind of key.
    pub(super) fn check_key(&self, reservation: &Reservation) -> Result<()> {
        if !self.ours || machine::host_sshd().is_some() {
            return Ok(());
        }
        let key = reservation.access.public_key.as_deref().unwrap_or_default();
        match PublicKey::from_openssh(key.trim()).map(|key| key.algorithm()) {
            Ok(Algorithm::Ed25519 | Algorithm::Ecdsa { .. }) | Err(_) => Ok(()),
            Ok(other) => Err(Error::config("the machines' SSH server does not know this kind of key")
                .with("kind", other)
                .with(
                    "mend",
                    "use a key of the kind ed25519 or ecdsa, or install an SSH server on this host",
                )),
        }
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + 1)
    }

    /// Returns how to connect where the address cannot be reached from here: the bridge is in the network namespace of
    /// the thread that made the provider.
    ///
    /// # Errors
    ///
    /// When the call ends.
    pub(super) async fn proxy_command(
        &self,
        op: &OpContext,
        address: IpAddr,
        id: &str,
    ) -> Result<Option<String>> {
        let record = self.data_dir.join("instances").join(id).join("instance.json");
        let ways = || async {
            if self.is_direct(address).await {
                return Ok(Some(None));
            }
            // Looked at again, as the server may have come up between the two.
            if machine::connect::works(&record).await && !self.is_direct(address).await {
                return Ok(Some(Some(self.command(&record))));
            }
            Ok(None)
        };
        match op.poll("the SSH server of a machine", Duration::from_millis(20), REACH_LIMIT, ways).await {
            // Whoever waits for SSH says which machine does not answer.
            Err(error) if *error.kind() == ErrorKind::Transient => Ok(None),
            other => other,
        }
    }

    /// Whether a connection takes the bridge, and not the way to somebody else's network of the same addresses.
    async fn is_direct(&self, address: IpAddr) -> bool {
        let connected = timeout(CONNECT_LIMIT, TcpStream::connect(SocketAddr::new(address, 22))).await;
        let Ok(Ok(stream)) = connected else { return false };
        stream.local_addr().is_ok_and(|local| local.ip() == IpAddr::V4(self.gateway()))
    }

    fn command(&self, record: &Path) -> String {
        let quote = |path: &Path| {
            format!("'{}'", path.display().to_string().replace('\'', r"'\''")).replace('%', "%%")
        };
        format!("{} machine connect --record {} --port %p", quote(&self.program), quote(record))
    }

    /// Returns the networks of the document, or the one of the bridge; the first without addresses gets a pool.
    ///
    /// # Errors
    ///
    /// When the pool cannot be noted down.
    pub(super) fn networks(&self, reservation: &Reservation) -> Result<Vec<Network>> {
        let mut networks = create::networks(reservation);
        if networks.is_empty() {
            networks.push(Network { name: NAME.into(), ..Network::default() });
        }
        let own = networks.iter_mut().find(|n| n.pool.is_none() && n.cidr.is_none());
        if let Some(network) = own {
            network.cidr = Some(IpNet::V4(self.subnet));
            network.gateway = Some(self.gateway().into());
            network.pool = self.pool(&reservation.experiment)?;
        }
        Ok(networks)
    }

    fn blocks(&self) -> u32 {
        self.reserved.div_ceil(BLOCK)
    }

    fn block(&self, n: u32) -> Pool {
        let end = u32::from(self.subnet.broadcast()) - 1;
        let first = end + 1 - self.reserved;
        let start = first + n * BLOCK;
        let last = (start + BLOCK - 1).min(end);
        Pool::new(Ipv4Addr::from(start).into(), Ipv4Addr::from(last).into())
    }

    fn pools(&self) -> PathBuf {
        self.data_dir.join("pools")
    }

    /// Returns the experiment's own block of addresses; `None` when all blocks are others'.
    fn pool(&self, experiment: &str) -> Result<Option<Pool>> {
        let dir = self.pools();
        let failed = |e: io::Error| {
            Error::internal("cannot note down whose free addresses are whose")
                .with("path", dir.display())
                .with_source(e)
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        let taken = self.taken().map_err(failed)?;
        if let Some((n, _)) = taken.iter().find(|(n, owner)| owner == experiment && *n < self.blocks()) {
            return Ok(Some(self.block(*n)));
        }
        let used: BTreeSet<u32> = taken.into_iter().map(|(n, _)| n).collect();
        for n in (0..self.blocks()).filter(|n| !used.contains(n)) {
            let path = dir.join(n.to_string());
            match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(mut file) => {
                    file.write_all(experiment.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
                    return Ok(Some(self.block(n)));
                }
                // Another experiment was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(None)
    }

    fn taken(&self) -> io::Result<Vec<(u32, String)>> {
        let entries = match fs::read_dir(self.pools()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut taken = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(n) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            taken.push((n, fs::read_to_string(entry.path()).unwrap_or_default()));
        }
        taken.sort();
        Ok(taken)
    }

    /// Gives back the experiment's block of addresses.
    ///
    /// # Errors
    ///
    /// When its note cannot be removed.
    pub(super) fn forget(&self, experiment: &str) -> Result<()> {
        let failed = |e: io::Error| {
            Error::internal("cannot give back the free addresses of the experiment")
                .with("path", self.pools().display())
                .with_source(e)
        };
        for (n, _) in self.taken().map_err(failed)?.iter().filter(|(_, owner)| owner == experiment) {
            match fs::remove_file(self.pools().join(n.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        // Stays while another experiment has addresses.
        let _ = fs::remove_dir(self.pools());
        Ok(())
    }
}

/// What the testbed sets where the user said nothing.
struct Defaults {
    ours: bool,
    program: String,
    reserved: u32,
}

impl EnvSource for Defaults {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn option(&self, spec: &OptionSpec) -> Option<String> {
        match spec.flag {
            "machine-init" if self.ours => Some(self.program.clone()),
            "machine-args" if self.ours => Some(machine::COMMAND.into()),
            "reserved-addresses" => Some(self.reserved.to_string()),
            _ => None,
        }
    }

    fn describe(&self, spec: &OptionSpec) -> String {
        format!("default of the testbed for {}", spec.flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(dir: &Path) -> Local {
        Local {
            data_dir: dir.to_owned(),
            subnet: "10.88.0.0/24".parse().unwrap(),
            reserved: 100,
            program: "/opt/with blank/testbed".into(),
            ours: true,
        }
    }

    #[test]
    fn every_experiment_has_free_addresses_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let local = local(dir.path());
        let a = local.pool("a").unwrap().unwrap();
        assert_eq!(a, local.pool("a").unwrap().unwrap(), "asked for again");
        assert_eq!(a.start.unwrap().to_string(), "10.88.0.155");
        assert_eq!(a.end.unwrap().to_string(), "10.88.0.218");
        let b = local.pool("b").unwrap().unwrap();
        assert_eq!(b.start.unwrap().to_string(), "10.88.0.219");
        assert_eq!(b.end.unwrap().to_string(), "10.88.0.254");
        assert!(local.pool("c").unwrap().is_none(), "all blocks are others'");
        local.forget("a").unwrap();
        local.forget("a").unwrap();
        assert_eq!(local.pool("c").unwrap().unwrap(), a);
        local.forget("b").unwrap();
        local.forget("c").unwrap();
        assert!(!local.pools().exists());
    }

    #[test]
    fn a_command_keeps_blanks_and_percent_signs_together() {
        let command = local(Path::new("/x")).command(Path::new("/a%b/it's"));
        assert_eq!(command, r"'/opt/with blank/testbed' machine connect --record '/a%%b/it'\''s' --port %p");
    }
}

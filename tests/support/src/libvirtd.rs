//! A real libvirtd in namespaces of its own, with a network and a pool, that leaves nothing behind.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Netns, ProcessGuard, ProcessInfo, processes, processes_using_namespaces, run, wait_for};

/// The first start on a machine asks every QEMU what it can do, which takes ten seconds and more on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);
const END_LIMIT: Duration = Duration::from_secs(30);

/// What libvirt found out about the QEMU programs of this machine. libvirt tells by itself when it is out of date.
const CAPABILITIES: &str = "/var/cache/cloud-providers-tests/libvirt-capabilities";

/// Folders of our own, and the paths at which libvirtd sees them.
const FOLDERS: [(&str, &str); 6] = [
    ("etc", "/etc/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("cache", "/var/cache/libvirt"),
    ("run", "/run/libvirt"),
    // Names of consoles and process ids in the lock files are those of our namespaces, and mean others elsewhere.
    ("lock", "/run/lock"),
    ("log", "/var/log/libvirt"),
];

/// The driver does not start without this user and group, and we do not want to make them on the host.
const USERS: [(&str, &str, &str); 3] = [
    ("group", "kvm", "kvm:x:64055:"),
    ("group", "libvirt-qemu", "libvirt-qemu:x:64056:"),
    ("passwd", "libvirt-qemu", "libvirt-qemu:x:64056:64055::/var/lib/libvirt:/usr/sbin/nologin"),
];

const QEMU_CONF: &str = r#"user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
remember_owner = 0
"#;

const LIBVIRTD_CONF: &str = r#"unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
auth_unix_ro = "none"
listen_tls = 0
listen_tcp = 1
listen_addr = "127.0.0.1"
auth_tcp = "none"
"#;

const NETWORK: &str = "<network><name>default</name><forward mode='nat'/><bridge name='virbr0' stp='off' delay='0'/>\
    <ip address='192.168.122.1' netmask='255.255.255.0'><dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp>\
    </ip></network>\n";

/// Makes the mounts and stays as process 1 of its process namespace: when it ends, the kernel ends all the others.
///
/// bash collects ended children also while it reads; libvirt waits in vain for a QEMU that nobody collects. The end of
/// standard input is the end of our owner, however it ended.
const KEEPER: &str = r#"
dir=$1; shift
mount -t sysfs sysfs /sys
while [ $# -gt 1 ]; do mount --bind "$dir/$1" "$2"; shift 2; done
echo ready
read -r line || exit 0
[ "$line" = keep ] || exit 0
sleep infinity &
wait
"#;

/// A lease that the DHCP server of the network `default` gave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lease {
    /// The interface that has it.
    pub mac: String,
    /// The address, without prefix length.
    pub address: String,
    /// The name that the guest told, `-` without one.
    pub hostname: String,
}

/// A real libvirtd of the driver QEMU, with network `default` (bridge `virbr0`, NAT, DHCP) and pool `default`.
///
/// It runs in a network namespace that is given or made, and in mount and process namespaces of its own, so several
/// can run at once beside one of the host. Its socket lies in a folder that everybody sees: a client anywhere uses
/// [`uri`](Self::uri). Whatever speaks IP to a guest must run in the network namespace ([`command`](Self::command)).
///
/// Dropping it ends libvirtd, the DHCP server and every QEMU; so does the end of the process that made it.
#[derive(Debug)]
pub struct Libvirtd {
    dir: PathBuf,
    netns: PathBuf,
    keeper: Child,
    keeper_pid: u32,
    pid_namespace: u64,
    daemon: Option<ProcessGuard>,
    // These are fields for their drop: after ours, the folder last.
    _own_netns: Option<Netns>,
    _own_dir: Option<tempfile::TempDir>,
}

impl Libvirtd {
    /// Starts it in a network namespace and a folder of its own.
    ///
    /// # Errors
    ///
    /// Fails without root or without the programs of libvirt; shows the last lines of a libvirtd that does not come up.
    pub fn start() -> Result<Self> {
        let netns = Netns::unique("pplv")?;
        let dir = tempfile::Builder::new().prefix("pplv-").tempdir_in("/tmp")?;
        let mut started = Self::start_in(&netns, dir.path())?;
        started._own_netns = Some(netns);
        started._own_dir = Some(dir);
        Ok(started)
    }

    /// Starts it in the namespace `netns` with its files in `dir`, which the caller deletes afterwards.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_in(netns: &Netns, dir: &Path) -> Result<Self> {
        crate::require_root("starting libvirtd")?;
        prepare(dir)?;
        let mut keeper = Command::new("nsenter");
        keeper.arg(format!("--net={}", netns.path().display()));
        keeper.args(["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        keeper.args(["bash", "-ec", KEEPER, "keeper"]).arg(dir);
        for (name, path) in FOLDERS.into_iter().chain([("passwd", "/etc/passwd"), ("group", "/etc/group")]) {
            keeper.args([name, path]);
        }
        let log = fs::File::create(dir.join("keeper.log"))?;
        keeper.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let mut keeper = keeper.spawn().context("cannot start nsenter")?;
        let found = wait_for("the namespaces of libvirtd", END_LIMIT, || {
            let text = fs::read_to_string(dir.join("keeper.log")).unwrap_or_default();
            if text.contains("ready") {
                return child_of(keeper.id()).map(Ok);
            }
            keeper.try_wait().ok().flatten().map(|status| Err(anyhow::anyhow!("{status}: {text}")))
        });
        let found = found.and_then(|found| found).context("cannot make the namespaces of libvirtd");
        let pid = found.inspect_err(|_| end_child(&mut keeper))?;
        let mut made = Self {
            dir: dir.to_owned(),
            netns: netns.path(),
            keeper,
            keeper_pid: pid,
            pid_namespace: fs::metadata(format!("/proc/{pid}/ns/pid"))?.ino(),
            daemon: None,
            _own_netns: None,
            _own_dir: None,
        };
        made.launch()?;
        copy_files(&dir.join("cache/qemu/capabilities"), Path::new(CAPABILITIES))?;
        fs::write(dir.join("network.xml"), NETWORK)?;
        made.virsh(&["net-define", &dir.join("network.xml").to_string_lossy()])?;
        made.virsh(&["net-start", "default"])?;
        made.virsh(&["pool-define-as", "default", "dir", "--target", &made.pool_dir().to_string_lossy()])?;
        made.virsh(&["pool-start", "default"])?;
        // As packages set them up: both come back when libvirtd is started on a machine that was off.
        made.virsh(&["net-autostart", "default"])?;
        made.virsh(&["pool-autostart", "default"])?;
        Ok(made)
    }

    /// Starts libvirtd in the namespaces of the keeper and waits until it answers.
    fn launch(&mut self) -> Result<()> {
        let mut command = self.inside("/usr/sbin/libvirtd");
        command.args(["--listen", "--pid-file", "/run/libvirt/libvirtd.pid"]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let mut daemon = ProcessGuard::spawn("libvirtd", &mut command, &self.dir.join("libvirtd.log"))?;
        let up = wait_for("an answer of libvirtd", START_LIMIT, || {
            if let Some(status) = daemon.try_status() {
                return Some(Err(anyhow::anyhow!("libvirtd ended with {status}")));
            }
            // A client that dials a missing socket prints nothing useful: look for it first.
            (self.socket().exists() && self.virsh(&["version"]).is_ok()).then_some(Ok(()))
        });
        up.and_then(|up| up).with_context(|| format!("libvirtd says:\n{}", daemon.last_lines(30)))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Returns the URI for a client in any namespace of this machine.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Returns the URI for a client in the network namespace: TCP without authentication, on its loopback only.
    pub fn tcp_uri(&self) -> String {
        "qemu+tcp://127.0.0.1/system".to_owned()
    }

    /// Returns libvirtd's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/libvirt-sock")
    }

    /// Returns the folder with all of its files: `etc`, `lib`, `run`, `log` and `pool`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the folder of the pool `default`, of the same path inside and outside.
    pub fn pool_dir(&self) -> PathBuf {
        self.dir.join("pool")
    }

    /// Returns the path of the network namespace.
    pub fn netns_path(&self) -> &Path {
        &self.netns
    }

    /// Returns a command in the network namespace, for whatever speaks IP to a guest.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").arg(program);
        command
    }

    /// Returns a command in all namespaces of libvirtd.
    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.keeper_pid.to_string());
        command.args(["--mount", "--pid", "--net", "--root", "--"]).arg(program);
        command
    }

    /// Runs `virsh` and returns what it prints.
    ///
    /// # Errors
    ///
    /// Carries what `virsh` complained about.
    pub fn virsh(&self, args: &[&str]) -> Result<String> {
        let uri = self.uri();
        let mut all = vec!["-q", "-c", uri.as_str()];
        all.extend_from_slice(args);
        run("virsh", &all)
    }

    /// Returns the names of all domains, running or not.
    ///
    /// # Errors
    ///
    /// When libvirtd does not answer.
    pub fn domains(&self) -> Result<Vec<String>> {
        Ok(words(&self.virsh(&["list", "--all", "--name"])?, 0))
    }

    /// Returns the names of the volumes in the pool `default`, after a look at its folder.
    ///
    /// # Errors
    ///
    /// When libvirtd does not answer.
    pub fn volumes(&self) -> Result<Vec<String>> {
        self.virsh(&["pool-refresh", "default"])?;
        Ok(words(&self.virsh(&["vol-list", "default"])?, 0))
    }

    /// Returns the leases of the network `default`.
    ///
    /// # Errors
    ///
    /// When libvirtd does not answer.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        Ok(leases(&self.virsh(&["net-dhcp-leases", "default"])?))
    }

    /// Copies a disk image into the pool `default` as the volume `name`.
    ///
    /// # Errors
    ///
    /// When the file cannot be copied.
    pub fn add_volume(&self, name: &str, image: &Path) -> Result<()> {
        let to = self.pool_dir().join(name);
        fs::copy(image, &to)
            .with_context(|| format!("cannot copy {} to {}", image.display(), to.display()))?;
        self.virsh(&["pool-refresh", "default"])?;
        Ok(())
    }

    /// Returns what QEMU and libvirt wrote about a domain: its command line, then QEMU's messages.
    pub fn domain_log(&self, domain: &str) -> String {
        fs::read_to_string(self.dir.join(format!("log/qemu/{domain}.log"))).unwrap_or_default()
    }

    /// Returns what libvirtd has written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("libvirtd.log")).unwrap_or_default()
    }

    /// Returns the QEMU processes of domains, with the process ids of the caller's namespace.
    pub fn qemu_processes(&self) -> Vec<ProcessInfo> {
        let ours = processes_using_namespaces(&[self.pid_namespace]);
        // Those that ask for capabilities run without a guest.
        ours.into_iter().filter(|process| process.command.contains("guest=")).collect()
    }

    /// Returns libvirtd's process id in the caller's namespace, while it runs.
    pub fn daemon_pid(&self) -> Option<u32> {
        child_of(self.daemon.as_ref()?.pid())
    }

    /// Kills libvirtd; its domains go on, as they do on a host whose libvirtd crashes.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.end_daemon(Signal::SIGKILL)
    }

    /// Ends libvirtd as a service manager does; its domains go on.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.end_daemon(Signal::SIGTERM)
    }

    /// Sends a signal to libvirtd: SIGSTOP makes one that hangs.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.daemon_pid().context("libvirtd does not run")?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).context("cannot signal libvirtd")
    }

    fn end_daemon(&mut self, signal: Signal) -> Result<()> {
        if self.daemon.is_some() {
            self.signal(signal)?;
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait_exit(END_LIMIT)?;
        }
        // One that was killed leaves its socket, and a client would be refused there in place of finding none.
        let _ = fs::remove_file(self.socket());
        Ok(())
    }

    /// Starts libvirtd again after [`kill`](Self::kill) or [`stop`](Self::stop), and waits until it answers.
    ///
    /// # Errors
    ///
    /// Shows the last lines of a libvirtd that does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "libvirtd runs");
        self.launch()
    }

    /// Kills libvirtd and starts it again.
    ///
    /// # Errors
    ///
    /// As [`kill`](Self::kill) and [`start_again`](Self::start_again).
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start_again()
    }

    /// Ends the network, the pool and libvirtd in order, so that its network namespace is as it was.
    ///
    /// # Errors
    ///
    /// When a part does not end; the rest is killed then.
    pub fn shut_down(mut self) -> Result<()> {
        self.virsh(&["net-destroy", "default"])?;
        // Only then libvirt forgets the leases that its DHCP server gave.
        self.virsh(&["net-undefine", "default"])?;
        self.virsh(&["pool-destroy", "default"])?;
        self.stop()
    }

    /// Leaves everything running, also beyond the end of this process. The end of [`keeper_pid`](Self::keeper_pid)
    /// ends it all.
    ///
    /// # Errors
    ///
    /// When the keeper does not listen.
    pub fn keep(mut self) -> Result<()> {
        let stdin = self.keeper.stdin.as_mut().context("the keeper listens on a pipe")?;
        stdin.write_all(b"keep\n").context("cannot talk to the keeper of libvirtd's namespaces")?;
        if let Some(daemon) = self.daemon.take() {
            daemon.keep();
        }
        if let Some(netns) = self._own_netns.take() {
            std::mem::forget(netns);
        }
        if let Some(dir) = self._own_dir.take() {
            let _ = dir.keep();
        }
        std::mem::forget(self);
        Ok(())
    }

    /// Returns the process whose end is the end of libvirtd, the DHCP server and every QEMU.
    pub fn keeper_pid(&self) -> u32 {
        self.keeper_pid
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        self.daemon = None;
        end_child(&mut self.keeper);
        let gone = wait_for("the processes of libvirtd to go", END_LIMIT, || {
            processes_using_namespaces(&[self.pid_namespace]).is_empty().then_some(())
        });
        if let Err(error) = gone {
            eprintln!("libvirtd in {} did not end: {error:#}", self.dir.display());
        }
    }
}

fn end_child(child: &mut Child) {
    // The keeper itself is killed with its parent, and whatever runs in its process namespace with it.
    let _ = child.kill();
    let _ = child.wait();
}

/// Fills the folder, and makes the places on the host over which it is mounted.
fn prepare(dir: &Path) -> Result<()> {
    for (name, path) in FOLDERS {
        fs::create_dir_all(dir.join(name))?;
        fs::create_dir_all(path).with_context(|| format!("cannot make {path}"))?;
    }
    fs::create_dir_all(dir.join("pool"))?;
    fs::write(dir.join("etc/qemu.conf"), QEMU_CONF)?;
    fs::write(dir.join("etc/libvirtd.conf"), LIBVIRTD_CONF)?;
    for name in ["passwd", "group"] {
        let mut text = fs::read_to_string(format!("/etc/{name}"))?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        for (_, key, line) in USERS.iter().filter(|(file, _, _)| *file == name) {
            if !text.lines().any(|old| old.starts_with(&format!("{key}:"))) {
                text.push_str(&format!("{line}\n"));
            }
        }
        fs::write(dir.join(name), text)?;
    }
    // Whoever can write there decides what libvirt believes of QEMU.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(CAPABILITIES)?;
    copy_files(Path::new(CAPABILITIES), &dir.join("cache/qemu/capabilities"))
}

/// Copies files that are new or different, each put in place at once, since others may read meanwhile.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.path().extension().is_none_or(|extension| extension != "xml") {
            continue;
        }
        let bytes = fs::read(entry.path())?;
        if fs::read(to.join(&name)).is_ok_and(|old| old == bytes) {
            continue;
        }
        let mut file = tempfile::NamedTempFile::new_in(to)?;
        file.write_all(&bytes)?;
        file.persist(to.join(&name))?;
    }
    Ok(())
}

/// Returns the child of a process that has one.
fn child_of(parent: u32) -> Option<u32> {
    let parent = i32::try_from(parent).ok()?;
    let child = processes().into_iter().find(|process| process.parent == parent)?;
    u32::try_from(child.pid).ok()
}

/// Returns one column of a table, without empty lines.
fn words(text: &str, column: usize) -> Vec<String> {
    text.lines().filter_map(|line| line.split_whitespace().nth(column)).map(str::to_owned).collect()
}

fn leases(text: &str) -> Vec<Lease> {
    let lease = |line: &str| {
        // Date, time, MAC address, protocol, address with prefix length, host name, client id.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, mac, "ipv4", address, hostname, ..] = words[..] else { return None };
        let address = address.split('/').next().unwrap_or(address).to_owned();
        Some(Lease { mac: mac.to_owned(), address, hostname: hostname.to_owned() })
    };
    text.lines().filter_map(lease).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest without a disk: the firmware of its network interface asks for a lease.
    fn diskless(name: &str) -> String {
        format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64'>hvm</type><boot dev='network'/></os><features><acpi/></features><devices>\
             <interface type='network'><source network='default'/><model type='virtio'/></interface>\
             </devices></domain>"
        )
    }

    #[test]
    fn leases_are_read_from_the_table() {
        let text = "2026-11-22 01:00:00   52:54:00:aa:bb:cc   ipv4   192.168.122.7/24   podvm-1   01:52:54\n\
                    2026-11-22 01:00:00   52:54:00:aa:bb:dd   ipv6   fd00::7/64   -   -\n";
        let found = leases(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].address.as_str(), found[0].hostname.as_str()), ("192.168.122.7", "podvm-1"));
    }

    #[test]
    fn domains_outlive_libvirtd_and_nothing_outlives_the_guard() {
        let mut libvirtd = Libvirtd::start().unwrap();
        let second = Libvirtd::start().unwrap();
        let xml = libvirtd.dir().join("one.xml");
        fs::write(&xml, diskless("one")).unwrap();
        libvirtd.virsh(&["create", &xml.to_string_lossy()]).unwrap();
        assert_eq!(libvirtd.domains().unwrap(), ["one"]);
        assert_eq!(second.domains().unwrap(), Vec::<String>::new());
        wait_for("a lease", Duration::from_secs(60), || libvirtd.leases().ok()?.pop()).unwrap();
        assert_eq!(second.leases().unwrap(), []);

        let before = libvirtd.qemu_processes();
        assert_eq!(before.len(), 1);
        libvirtd.kill().unwrap();
        assert!(libvirtd.virsh(&["version"]).is_err());
        assert_eq!(libvirtd.qemu_processes(), before);
        libvirtd.start_again().unwrap();
        assert_eq!(libvirtd.virsh(&["domstate", "one"]).unwrap().trim(), "running");

        let namespaces = [libvirtd.pid_namespace, second.pid_namespace];
        let paths = [libvirtd.dir().to_owned(), libvirtd.netns_path().to_owned()];
        drop((libvirtd, second));
        assert_eq!(processes_using_namespaces(&namespaces), []);
        for path in paths {
            assert!(!path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn an_ordered_end_leaves_the_network_namespace_as_it_was() {
        let (netns, dir) = (Netns::unique("pplv").unwrap(), tempfile::tempdir().unwrap());
        let before = crate::NamespaceState::take(&netns).unwrap();
        let libvirtd = Libvirtd::start_in(&netns, dir.path()).unwrap();
        fs::write(dir.path().join("disk"), [0; 4096]).unwrap();
        libvirtd.add_volume("disk.raw", &dir.path().join("disk")).unwrap();
        assert_eq!(libvirtd.volumes().unwrap(), ["disk.raw"]);
        let uri = libvirtd.tcp_uri();
        assert!(libvirtd.command("virsh").args(["-c", &uri, "version"]).status().unwrap().success());
        libvirtd.shut_down().unwrap();
        // Empty tables and chains of the firewall stay: they belong to iptables.
        let added = crate::NamespaceState::take(&netns).unwrap().added_since(&before);
        assert!(added.iter().all(|line| line.starts_with("nft:")), "{added:?}");
    }
}

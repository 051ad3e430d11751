//! Network namespaces that a test makes for itself.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{unique, wait_for};

/// Fails with one clear line when the caller is not root.
///
/// # Errors
///
/// Says what needs root.
pub fn require_root(what: &str) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "{what} needs root: run it with sudo");
    Ok(())
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
///
/// Carries the command line and standard error when the program is missing or fails.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    output_of(Command::new(program).args(args))
}

fn output_of(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let out = command.stdin(std::process::Stdio::null()).output();
    let out = out.with_context(|| format!("cannot start {line}"))?;
    if !out.status.success() {
        bail!("{line} failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A named network namespace, deleted with every process in it when the value is dropped.
///
/// It is made by the `ip` program, so that tests of our own netlink code have an independent observer.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with a unique name that begins with `prefix`, loopback up.
    ///
    /// # Errors
    ///
    /// Fails without root or without the `ip` program.
    pub fn unique(prefix: &str) -> Result<Self> {
        Self::create(&unique(prefix))
    }

    /// Makes the namespace `name`, loopback up.
    ///
    /// # Errors
    ///
    /// Fails without root, without the `ip` program, or when the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        require_root("making a network namespace")?;
        run("ip", &["netns", "add", name])?;
        let netns = Self { name: name.to_owned() };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Takes over a namespace that exists already; it is deleted on drop as well.
    ///
    /// # Errors
    ///
    /// Fails when there is no namespace of that name.
    pub fn adopt(name: &str) -> Result<Self> {
        let netns = Self { name: name.to_owned() };
        if netns.path().exists() {
            Ok(netns)
        } else {
            std::mem::forget(netns);
            bail!("there is no network namespace {name}");
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path under `/run/netns`.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Returns the inode, the number in `readlink /proc/PID/ns/net`.
    ///
    /// # Errors
    ///
    /// Fails when the namespace has been deleted.
    pub fn inode(&self) -> Result<u64> {
        let path = self.path();
        Ok(std::fs::metadata(&path).with_context(|| format!("cannot stat {}", path.display()))?.ino())
    }

    /// Runs `ip -netns <name> <args>`.
    ///
    /// # Errors
    ///
    /// Carries what `ip` complained about.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-netns", &self.name];
        all.extend_from_slice(args);
        run("ip", &all)
    }

    /// Returns a command that will run `program` inside; only the network differs from the caller's surroundings.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // `ip netns exec` would remount /sys in a mount namespace of its own.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a program inside to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// Carries the command line and standard error when the program fails.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        output_of(self.command(program).args(args))
    }

    /// Runs `work` on a fresh thread inside the namespace.
    ///
    /// Sockets keep the namespace in which they were made and may be handed back.
    ///
    /// # Errors
    ///
    /// Returns the error of `work`, or says that the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes a veth pair with one end here and the other in `peer`, both up.
    ///
    /// # Errors
    ///
    /// Fails when one of the names is taken.
    pub fn veth(&self, here: &str, peer: &Self, there: &str) -> Result<()> {
        let add = ["link", "add", here, "type", "veth", "peer", "name", there, "netns", &peer.name];
        self.ip(&add)?;
        self.ip(&["link", "set", here, "up"])?;
        peer.ip(&["link", "set", there, "up"])?;
        Ok(())
    }

    /// Makes a bridge that is up and has `address` (with prefix length).
    ///
    /// # Errors
    ///
    /// Fails when the name is taken.
    pub fn bridge(&self, name: &str, address: &str) -> Result<()> {
        self.ip(&["link", "add", name, "type", "bridge"])?;
        self.ip(&["addr", "add", address, "dev", name])?;
        self.ip(&["link", "set", name, "up"])?;
        Ok(())
    }

    /// Adds a default route through `gateway`.
    ///
    /// # Errors
    ///
    /// Fails when the gateway is not reachable by a connected route.
    pub fn default_route(&self, gateway: IpAddr) -> Result<()> {
        self.ip(&["route", "add", "default", "via", &gateway.to_string()])?;
        Ok(())
    }

    /// Returns the processes whose network namespace this is.
    pub fn pids(&self) -> Vec<i32> {
        let Ok(inode) = self.inode() else { return Vec::new() };
        crate::processes_using_namespaces(&[inode]).into_iter().map(|process| process.pid).collect()
    }

    /// Deletes the namespace and kills what runs in it.
    ///
    /// # Errors
    ///
    /// Fails when a process does not go or the name cannot be removed.
    pub fn delete(self) -> Result<()> {
        let done = self.remove();
        std::mem::forget(self);
        done
    }

    fn remove(&self) -> Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        let own = i32::try_from(std::process::id()).expect("process ids fit i32");
        wait_for("the processes of a namespace to go", Duration::from_secs(5), || {
            let pids: Vec<i32> = self.pids().into_iter().filter(|pid| *pid != own).collect();
            for pid in &pids {
                // It may have ended by itself between the look and the signal.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            pids.is_empty().then_some(())
        })?;
        run("ip", &["netns", "delete", &self.name])?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("network namespace {} could not be deleted: {error:#}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_goes_with_its_guard_and_its_processes() {
        let netns = Netns::unique("pps").unwrap();
        let (path, inode) = (netns.path(), netns.inode().unwrap());
        let mut child = netns.command("sleep").arg("1000").spawn().unwrap();
        wait_for("sleep to enter", Duration::from_secs(5), || (!netns.pids().is_empty()).then_some(()))
            .unwrap();
        assert_eq!(netns.pids(), [i32::try_from(child.id()).unwrap()]);
        drop(netns);
        assert!(!path.exists());
        assert!(!child.wait().unwrap().success());
        assert!(crate::processes_using_namespaces(&[inode]).is_empty());
    }

    #[test]
    fn a_pair_connects_two_namespaces() {
        let (left, right) = (Netns::unique("pps").unwrap(), Netns::unique("pps").unwrap());
        left.veth("v0", &right, "v0").unwrap();
        left.ip(&["addr", "add", "192.0.2.1/24", "dev", "v0"]).unwrap();
        right.ip(&["addr", "add", "192.0.2.2/24", "dev", "v0"]).unwrap();
        let listener = right.run(|| Ok(std::net::TcpListener::bind("192.0.2.2:0")?)).unwrap();
        let address = listener.local_addr().unwrap();
        let stream =
            left.run(|| Ok(std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
    }

    #[test]
    fn a_failing_program_is_named_with_its_complaint() {
        let netns = Netns::unique("pps").unwrap();
        let error = netns.ip(&["link", "set", "nosuch", "up"]).unwrap_err().to_string();
        assert!(error.contains("nosuch"), "{error}");
    }
}

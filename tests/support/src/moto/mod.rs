//! The emulator of EC2, in a Python environment of its own.

mod environment;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{ProcessGuard, wait_for};

pub use environment::{install_moto, moto_cache};

/// How long the emulator may take to come up on a machine that compiles at the same time.
const UP: Duration = Duration::from_secs(120);
/// What the server writes before its address.
const RUNNING: &str = "Running on http://";

/// A server of moto on a free port of loopback, with three images and the default network of an account; ends on drop.
#[derive(Debug)]
pub struct Moto {
    // Before the folder, so that the server has ended when its log goes.
    _server: ProcessGuard,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Moto {
    /// An image of x86_64 that starts with UEFI.
    pub const IMAGE: &str = "ami-0a1b2c3d4e5f60001";
    /// An image of x86_64 that starts with a BIOS.
    pub const BIOS_IMAGE: &str = "ami-0a1b2c3d4e5f60002";
    /// An image of arm64.
    pub const ARM_IMAGE: &str = "ami-0a1b2c3d4e5f60003";

    /// Starts a server, and installs it first where the cache has none.
    ///
    /// # Errors
    ///
    /// When the environment cannot be made, or the server does not come up; with what it wrote.
    pub fn start() -> Result<Self> {
        Self::start_from(&install_moto(&moto_cache()?)?)
    }

    /// Starts a server of the environment in the folder `environment`.
    ///
    /// # Errors
    ///
    /// When the server does not come up; with what it wrote.
    pub fn start_from(environment: &Path) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder for the emulator")?;
        let written = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(path)
        };
        let images = written("images.json", include_str!("images.json"))?;
        let program = written("server.py", include_str!("server.py"))?;
        let mut command = Command::new(environment.join("bin/python"));
        // Of the variables of its surroundings, some would change what the server answers.
        command.arg("-u").arg(program).args(["-H", "127.0.0.1", "-p", "0"]).env_clear();
        command.env("MOTO_AMIS_PATH", &images).env("HOME", folder.path()).current_dir(folder.path());
        let mut server = ProcessGuard::spawn("moto", &mut command, &folder.path().join("log"))?;
        server.wait_for_output(RUNNING, UP)?;
        let what = "the address that moto listens at";
        let address = wait_for(what, UP, || read_address(&server.output())).context(server.last_lines(30))?;
        Ok(Self { _server: server, address, _folder: folder })
    }

    /// Returns where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Reads the address from the first whole line that names one.
fn read_address(output: &str) -> Option<SocketAddr> {
    let (_, rest) = output.split_once(RUNNING)?;
    let (line, _) = rest.split_once('\n')?;
    let end = line.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ':')).unwrap_or(line.len());
    line[..end].parse().ok()
}

/// Runs a program of the environment and returns what it printed.
fn run_python(program: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{} {} ended with {}:\n{text}{}",
        program.display(),
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_a_whole_line_only() {
        let line = " * Running on http://127.0.0.1:41233\n";
        assert_eq!(read_address(line).unwrap().port(), 41233);
        assert_eq!(read_address(&format!("x\n{line}\u{1b}[33mPress\n")).unwrap().port(), 41233);
        assert_eq!(read_address("* Running on http://127.0.0.1:4123"), None);
        assert_eq!(read_address("\u{1b}[31mWARNING\n"), None);
        assert_eq!(read_address("Running on http://127.0.0.1:7\u{1b}[0m\n").unwrap().port(), 7);
    }

    #[test]
    fn a_python_that_fails_is_told_with_what_it_wrote() {
        let error = run_python(Path::new("sh"), &["-c", "echo why >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
        assert!(run_python(Path::new("/no/such/python"), &[]).is_err());
    }
}

//! The node of one case: a network namespace, files, and what is in the way.

use std::{
    any::Any,
    fs,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;
use test_support::Netns;

use crate::case::{Case, CertificateSpec, Content};

/// Everything goes with the value, the file systems before the folder that they are in.
pub(crate) struct Place {
    _listeners: Vec<Box<dyn Any + Send + Sync>>,
    _disks: Vec<Mounted>,
    pub(crate) netns: Netns,
    dir: TempDir,
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = test_support::run("umount", &[&self.0.to_string_lossy()]) {
            eprintln!("{error:#}");
        }
    }
}

impl Place {
    pub(crate) fn make(case: &Case) -> Result<Self> {
        // A short path, whatever the machine's folder of temporary files is: sockets are in it.
        let dir = tempfile::tempdir_in("/tmp")?;
        let netns = Netns::unique("caa-case")?;
        if case.ipv6_only {
            netns.bridge("up0", "2001:db8::2/64")?;
            netns.ip(&["-6", "route", "add", "default", "via", "2001:db8::1"])?;
        } else {
            netns.bridge("up0", "192.0.2.2/24")?;
        }
        if !case.no_route && !case.ipv6_only {
            netns.default_route(Ipv4Addr::new(192, 0, 2, 1).into())?;
        }
        if let Some(port) = case.tunnel_port {
            let port = port.to_string();
            let make = ["link", "add", "tunnel", "type", "vxlan", "id", "7", "dstport", &port];
            netns.ip(&[&make[..], &["local", "192.0.2.2", "remote", "192.0.2.9"]].concat())?;
            netns.ip(&["link", "set", "tunnel", "up"])?;
        }
        let mut place = Self { _listeners: Vec::new(), _disks: Vec::new(), netns, dir };
        for (name, mode) in &case.folders {
            let path = place.path(name);
            fs::create_dir_all(&path)?;
            restrict(&path, mode)?;
        }
        for (name, size) in &case.disks {
            let path = place.path(name);
            fs::create_dir_all(&path)?;
            let options = format!("size={size},mode=700");
            test_support::run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &path.to_string_lossy()])?;
            place._disks.push(Mounted(path));
        }
        for (name, content) in &case.files {
            let path = place.path(name);
            match content {
                Content::Text(text, mode) => {
                    fs::write(&path, place.fill(text))?;
                    restrict(&path, mode)?;
                }
                Content::Certificate(spec) => {
                    let (certificate, key) = certificate(spec)?;
                    fs::write(&path, certificate)?;
                    fs::write(place.path(&spec.key), key)?;
                    restrict(&place.path(&spec.key), &spec.key_mode)?;
                }
            }
        }
        for what in &case.listen {
            let listener = place.listen(&place.fill(what))?;
            place._listeners.push(listener);
        }
        if let Some(name) = &case.locked {
            fs::write(place.path(name), "4711")?;
            let file = fs::File::options().write(true).open(place.path(name))?;
            let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
            place._listeners.push(Box::new(held));
        }
        Ok(place)
    }

    /// Writes the case's folder for `{dir}`, and text that does not compress for `{noise}`.
    pub(crate) fn fill(&self, text: &str) -> String {
        // Digits of a generator as old as computers: another seed would do as well.
        let mut state = 1u64;
        let mut digit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from_digit(u32::try_from(state >> 60).unwrap_or_default(), 16).unwrap_or_default()
        };
        let text = text.replace("{dir}", &self.dir.path().to_string_lossy());
        match text.contains("{noise}") {
            true => text.replace("{noise}", &(0..40_000).map(|_| digit()).collect::<String>()),
            false => text,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn listen(&self, what: &str) -> Result<Box<dyn Any + Send + Sync>> {
        let (kind, place) = what.split_once(':').context("kind and address")?;
        self.netns.run(|| {
            Ok(match kind {
                "tcp" => Box::new(TcpListener::bind(place)?) as Box<dyn Any + Send + Sync>,
                "udp" => Box::new(UdpSocket::bind(place)?),
                "unix" => Box::new(UnixListener::bind(place)?),
                _ => bail!("nothing listens like {what}"),
            })
        })
    }
}

fn restrict(path: &Path, mode: &str) -> Result<()> {
    let mode = u32::from_str_radix(mode, 8)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

fn certificate(spec: &CertificateSpec) -> Result<(String, String)> {
    let day = |days: i64| -> SystemTime {
        // Half a day more: counts of whole days must not change between two runs of a case.
        let time = Duration::from_secs(days.unsigned_abs() * 24 * 3600 + 12 * 3600);
        if days < 0 { SystemTime::now() - time } else { SystemTime::now() + time }
    };
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "case");
    params.not_before = day(spec.from).into();
    params.not_after = day(spec.until).into();
    match spec.usage.as_str() {
        "client" => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        "server" => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        "ca" => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        other => bail!("no certificate is for {other}"),
    }
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

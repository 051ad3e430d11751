//! libvirt over the network: the test's client runs in the network namespace of the hypervisor's host.

use std::{fs, future::Future, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use cloud_providers::{ErrorKind, OpContext};
use nix::sched::{CloneFlags, setns};
use test_support::{ProcessGuard, run, wait_for};

use crate::{
    LIMIT,
    common::{BASE, Setup},
    failed,
};

const PORT: &str = "2222";

/// Runs a future on threads of the set-up's network namespace, and whatever they start is in it too.
fn on_the_host<T: Send>(setup: &Setup, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let netns = fs::File::open(setup.libvirtd.netns_path())?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(work)
        });
        thread.join().expect("the thread does not panic")
    })
}

async fn comes_and_goes(setup: &Setup, uri: &str) -> Result<()> {
    let provider = setup.provider(&[("LIBVIRT_URI", uri)]).await?;
    provider.verify_config(&OpContext::new()).await?.into_result()?;
    // More than one packet of the stream.
    let request = setup.request().with_user_data(vec![b'x'; 1 << 20]);
    let instance = provider.create_instance(&OpContext::new(), &request).await?;
    provider.delete_instance(&OpContext::new(), &instance.id, &setup.own()).await?;
    provider.teardown().await?;
    setup.assert_empty()
}

#[test]
fn an_instance_comes_and_goes_over_tcp() -> Result<()> {
    let setup = Setup::start()?;
    let uri = setup.libvirtd.tcp_uri();
    on_the_host(&setup, comes_and_goes(&setup, &uri))
}

/// An SSH server on the hypervisor's host, and what a client needs.
struct Ssh {
    _server: ProcessGuard,
}

impl Ssh {
    fn start(setup: &Setup, dir: &Path) -> Result<Self> {
        for key in ["client", "other"] {
            let file = dir.join(key);
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file.to_string_lossy()])?;
        }
        let host = dir.join("host").to_string_lossy().into_owned();
        let made = run("dropbearkey", &["-t", "ed25519", "-f", &host])?;
        let public = made.lines().find(|line| line.starts_with("ssh-ed25519")).context("no public key")?;
        fs::write(dir.join("host.pub"), format!("{public}\n"))?;
        // The users that libvirtd sees are its own; root lives in our folder there.
        let users = setup.libvirtd.dir().join("passwd");
        let home = format!("root:x:0:0:root:{}:", dir.display());
        let text = fs::read_to_string(&users)?;
        let root = text.lines().find(|l| l.starts_with("root:")).context("no root")?;
        let shell = root.rsplit(':').next().context("no shell")?;
        fs::write(&users, text.replace(root, &format!("{home}{shell}")))?;
        fs::create_dir(dir.join(".ssh"))?;
        fs::set_permissions(dir.join(".ssh"), fs::Permissions::from_mode(0o700))?;
        fs::copy(dir.join("client.pub"), dir.join(".ssh/authorized_keys"))?;
        let place = dir.display();
        for (name, known, key) in
            [("good", "host", "client"), ("stranger", "other", "client"), ("nokey", "host", "other")]
        {
            let public = fs::read_to_string(dir.join(format!("{known}.pub")))?;
            fs::write(dir.join(format!("{name}.known")), format!("[127.0.0.1]:{PORT} {public}"))?;
            fs::write(
                dir.join(format!("{name}.conf")),
                format!(
                    "UserKnownHostsFile {place}/{name}.known\nStrictHostKeyChecking yes\nIdentitiesOnly yes\n\
                     IdentityFile {place}/{key}\n"
                ),
            )?;
            let script = dir.join(name);
            fs::write(&script, format!("#!/bin/sh\nexec ssh -F {place}/{name}.conf \"$@\"\n"))?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        }
        let mut command = setup.libvirtd.inside("dropbear");
        command.args(["-F", "-E", "-s", "-p", &format!("127.0.0.1:{PORT}"), "-r", &host]);
        command.arg("-P").arg(dir.join("dropbear.pid"));
        let mut server = ProcessGuard::spawn("dropbear", &mut command, &dir.join("dropbear.log"))?;
        let up = wait_for("the SSH server", LIMIT, || {
            if let Some(status) = server.try_status() {
                return Some(Err(anyhow::anyhow!("dropbear ended with {status}: {}", server.last_lines(10))));
            }
            dir.join("dropbear.pid").exists().then_some(Ok(()))
        });
        up.and_then(|up| up)?;
        Ok(Self { _server: server })
    }

    /// Returns the URI that uses one of the client's configurations.
    fn uri(dir: &Path, name: &str) -> String {
        format!("qemu+ssh://root@127.0.0.1:{PORT}/system?command={}", dir.join(name).display())
    }
}

#[test]
fn an_instance_comes_and_goes_over_ssh_and_wrong_keys_are_told_apart() -> Result<()> {
    let setup = Setup::start()?;
    let dir = tempfile::Builder::new().prefix("pplv-ssh-").tempdir_in("/tmp")?;
    let _ssh = Ssh::start(&setup, dir.path())?;
    on_the_host(&setup, comes_and_goes(&setup, &Ssh::uri(dir.path(), "good")))?;
    for (name, sign) in [("stranger", "Host key verification failed"), ("nokey", "Permission denied")] {
        let uri = Ssh::uri(dir.path(), name);
        let (error, took) = on_the_host(&setup, async {
            let provider = setup.provider(&[("LIBVIRT_URI", &uri)]).await?;
            failed(provider.create_instance(&OpContext::new(), &setup.request())).await
        })?;
        ensure!(*error.kind() == ErrorKind::Auth, "{name}: {error:?}");
        ensure!(error.report().contains(sign), "{name}: {}", error.report());
        ensure!(took < LIMIT, "{name}: {took:?}");
    }
    setup.assert_empty()
}

/// A libvirtd of an ordinary user has no networks, so no machine gets further than its start. Everything before that, and
/// taking it back, is the user's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_an_ordinary_user_is_used_as_far_as_it_goes() -> Result<()> {
    let setup = Setup::start()?;
    let dir = tempfile::Builder::new().prefix("pplv-session-").tempdir_in("/tmp")?;
    let place = |name: &str| dir.path().join(name);
    for name in ["run", "home", "pool"] {
        fs::create_dir(place(name))?;
    }
    fs::copy(setup.libvirtd.pool_dir().join(BASE), place("pool").join(BASE))?;
    run("chown", &["-R", "nobody:", &dir.path().to_string_lossy()])?;
    let mut command = setup.libvirtd.inside("setpriv");
    command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "/usr/sbin/libvirtd"]);
    command.env("XDG_RUNTIME_DIR", place("run")).env("HOME", place("home"));
    let mut daemon = ProcessGuard::spawn("session", &mut command, &setup.libvirtd.dir().join("session.log"))?;
    let socket = place("run").join("libvirt/libvirt-sock");
    let uri = format!("qemu+unix:///session?socket={}", socket.display());
    let virsh = |args: &[&str]| run("virsh", &[&["-q", "-c", &uri], args].concat());
    let up = wait_for("the user's libvirtd", LIMIT, || {
        if let Some(status) = daemon.try_status() {
            return Some(Err(anyhow::anyhow!("it ended with {status}: {}", daemon.last_lines(10))));
        }
        (socket.exists() && virsh(&["version"]).is_ok()).then_some(Ok(()))
    });
    up.and_then(|up| up)?;
    virsh(&["pool-define-as", "default", "dir", "--target", &place("pool").to_string_lossy()])?;
    virsh(&["pool-start", "default"])?;

    let more = [("LIBVIRT_URI", uri.as_str()), ("LIBVIRT_NET", "bridge:nobridge")];
    let provider = setup.provider(&more).await?;
    provider.verify_config(&OpContext::new()).await?.into_result()?;
    let (error, _) = failed(provider.create_instance(&OpContext::new(), &setup.request())).await?;
    ensure!(error.operation() == Some("virDomainCreate"), "everything up to the start is done: {error}");
    ensure!(error.leftovers().is_empty(), "{error}");
    ensure!(virsh(&["list", "--all", "--name"])?.trim().is_empty());
    let volumes = virsh(&["vol-list", "default"])?;
    ensure!(volumes.contains(BASE) && !volumes.contains("podvm-"), "{volumes}");
    let list = provider.list_owned(&OpContext::new(), &setup.scope).await?;
    ensure!(list.complete && list.entries.is_empty(), "{list:?}");
    Ok(())
}

//! What one can do in a machine over SSH.

use std::{
    fs,
    io::{Read, Write},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use test_support::wait_for;
use testbed::Host;

use crate::{
    runner::Test,
    setup::{Kept, LIMIT, Setup, outside},
};

pub(crate) const TESTS: &[Test] = &[
    ("three_machines_take_commands_files_and_terminals", three_machines_take_commands_files_and_terminals),
    ("a_wrong_key_and_a_wrong_host_key_are_refused", a_wrong_key_and_a_wrong_host_key_are_refused),
    ("another_account_is_added_with_its_home", another_account_is_added_with_its_home),
    (
        "a_machine_behind_another_namespace_is_reached_by_its_proxy_command",
        a_machine_behind_another_namespace_is_reached_by_its_proxy_command,
    ),
    ("a_session_ends_with_its_client", a_session_ends_with_its_client),
    ("ports_are_forwarded", ports_are_forwarded),
    (
        "files_are_transferred_without_a_program_of_the_host",
        files_are_transferred_without_a_program_of_the_host,
    ),
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Makes machines, hands them to `look`, and gives them back.
fn with_machines(
    n: usize,
    user: Option<&str>,
    look: impl FnOnce(&Setup, &[Host]) -> Result<()>,
) -> Result<()> {
    let setup = Setup::new()?;
    let kept = Kept::default();
    let testbed = setup.testbed()?;
    let mut reservation = setup.reservation(n)?;
    reservation.access.user = user.map(str::to_owned);
    let obtained = setup.run(async { Ok(testbed.init(&kept.context(&setup), &reservation).await?) })?;
    ensure!(obtained.hosts.len() == n && obtained.made.len() == n, "{obtained:?}");
    look(&setup, &obtained.hosts)?;
    setup.destroy(&testbed, &kept)?;
    setup.destroy(&testbed, &kept)?;
    setup.check_clean()
}

fn three_machines_take_commands_files_and_terminals() -> Result<()> {
    with_machines(3, None, |setup, hosts| {
        for host in hosts {
            ensure!(
                host.proxy_command.is_none(),
                "the bridge is in this namespace: {:?}",
                host.proxy_command
            );
            let out = setup.on(host, "hostname; id -un; pwd; cat /proc/1/comm >/dev/null && echo ok")?;
            ensure!(out.status.success(), "{}", text(&out.stderr));
            ensure!(
                text(&out.stdout) == format!("{}\nroot\n/root\nok\n", host.alias),
                "{}",
                text(&out.stdout)
            );
        }
        let host = &hosts[0];
        let out = setup.on(host, "echo to-err >&2; exit 7")?;
        ensure!(out.status.code() == Some(7) && text(&out.stderr) == "to-err\n", "{out:?}");
        let out = setup.on(host, "kill -TERM $$")?;
        ensure!(out.status.code() == Some(255), "a signal is no status: {out:?}");

        // Input and its end, more than any buffer takes, both ways at once.
        let big: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut command = setup.ssh(host)?;
        command.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = setup.netns.run(|| Ok(command.spawn()?))?;
        let mut stdin = child.stdin.take().context("it is piped")?;
        let sent = big.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&sent));
        let mut back = Vec::new();
        child.stdout.take().context("it is piped")?.read_to_end(&mut back)?;
        writer.join().expect("no panic")?;
        ensure!(child.wait()?.success() && back == big, "{} of {} bytes came back", back.len(), big.len());

        files(setup, host, &big)?;
        terminal(setup, host)
    })
}

/// A file goes in and out again, by the way of today's client and by the old one.
fn files(setup: &Setup, host: &Host, content: &[u8]) -> Result<()> {
    let file = setup.dir.path().join("a file");
    fs::write(&file, content)?;
    for (n, old) in [&[][..], &["-O"]].into_iter().enumerate() {
        let back = setup.dir.path().join(format!("back-{n}"));
        let copy = |from: &str, to: &str| -> Result<()> {
            let mut scp = setup.client("scp", host)?;
            scp.args(old).arg("-i").arg(setup.key()).args(["-p", "-r", from, to]);
            let out = setup.netns.run(|| Ok(scp.output()?))?;
            ensure!(out.status.success(), "scp {old:?} {from} {to}: {}", text(&out.stderr));
            Ok(())
        };
        let there = format!("root@{}:/tmp/copy-{n}", host.address);
        copy(&file.display().to_string(), &there)?;
        copy(&there, &back.display().to_string())?;
        ensure!(fs::read(&back)? == content, "scp {old:?}");
    }
    Ok(())
}

fn terminal(setup: &Setup, host: &Host) -> Result<()> {
    let mut command = setup.ssh(host)?;
    // Asked for twice, as this process has no terminal itself.
    command.args(["-tt"]).env("TERM", "vt100").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = setup.netns.run(|| Ok(command.spawn()?))?;
    let mut stdin = child.stdin.take().context("it is piped")?;
    stdin.write_all(b"tty; echo $TERM; test -t 0 && echo is-a-$(echo terminal); stty size; exit 3\n")?;
    let mut seen = String::new();
    child.stdout.take().context("it is piped")?.read_to_string(&mut seen)?;
    ensure!(child.wait()?.code() == Some(3), "{seen}");
    for part in ["/dev/pts/", "vt100", "is-a-terminal"] {
        ensure!(seen.contains(part), "{part} is not in {seen}");
    }
    ensure!(!seen.contains("job control"), "the terminal is the shell's own: {seen}");
    Ok(())
}

fn a_wrong_key_and_a_wrong_host_key_are_refused() -> Result<()> {
    with_machines(2, None, |setup, hosts| {
        let mut other = hosts[0].clone();
        other.key = Some(setup.keygen("other", &["-t", "ed25519"])?);
        let out = setup.on(&other, "true")?;
        ensure!(
            !out.status.success() && text(&out.stderr).contains("Permission denied"),
            "{}",
            text(&out.stderr)
        );
        let mut other = hosts[0].clone();
        other.user = Some("nobody".into());
        let out = setup.on(&other, "true")?;
        ensure!(!out.status.success(), "an account without keys");
        let mut other = hosts[0].clone();
        other.host_key = hosts[1].host_key.clone();
        let out = setup.on(&other, "true")?;
        ensure!(text(&out.stderr).contains("Host key verification failed"), "{}", text(&out.stderr));
        ensure!(hosts[0].host_key != hosts[1].host_key);
        Ok(())
    })
}

fn another_account_is_added_with_its_home() -> Result<()> {
    with_machines(1, Some("ada"), |setup, hosts| {
        let out = setup
            .on(&hosts[0], "id -un; pwd; touch file; cat /media/cidata/user-data 2>/dev/null; echo $HOME")?;
        ensure!(text(&out.stdout) == "ada\n/home/ada\n/home/ada\n", "{out:?}");
        // It has the rights of its account and no others.
        let out = setup.on(&hosts[0], "touch /etc/mine")?;
        ensure!(!out.status.success());
        let mut root = hosts[0].clone();
        root.user = Some("root".into());
        ensure!(!setup.on(&root, "true")?.status.success(), "root has no key");
        Ok(())
    })
}

fn a_machine_behind_another_namespace_is_reached_by_its_proxy_command() -> Result<()> {
    let setup = Setup::new()?;
    let kept = Kept::default();
    // The provider works in the namespace that it was made in; whoever uses it is elsewhere.
    let testbed = setup.testbed()?;
    let reservation = setup.reservation(1)?;
    let obtained = outside(async { Ok(testbed.init(&kept.context(&setup), &reservation).await?) })?;
    let host = &obtained.hosts[0];
    ensure!(host.proxy_command.is_some(), "{host:?}");
    let out = setup.ssh(host)?.arg("hostname").output()?;
    ensure!(text(&out.stdout) == "node-1\n", "{out:?}");
    setup.destroy(&testbed, &kept)?;
    setup.check_clean()
}

fn a_session_ends_with_its_client() -> Result<()> {
    with_machines(1, None, |setup, hosts| {
        let host = &hosts[0];
        let mut command = setup.ssh(host)?;
        command.arg("echo begun; exec sleep 7531").stdout(Stdio::piped());
        let mut child = setup.netns.run(|| Ok(command.spawn()?))?;
        let mut begun = [0; 6];
        child.stdout.as_mut().context("it is piped")?.read_exact(&mut begun)?;
        let running =
            || -> Result<bool> { Ok(!setup.on(host, "pgrep -f '^sleep 7531$'")?.stdout.is_empty()) };
        ensure!(running()?, "it runs while the client is there");
        child.kill()?;
        child.wait()?;
        wait_for("the command to end", LIMIT, || running().ok().filter(|r| !r).map(drop))?;
        // What goes to the background by itself stays, and holds nobody up.
        let out = setup.on(host, "setsid -f sleep 7532 >/dev/null 2>&1; sleep 7533 & echo left")?;
        ensure!(text(&out.stdout) == "left\n", "{out:?}");
        let out = setup.on(host, "pgrep -f '^sleep 7532$'")?;
        ensure!(!out.stdout.is_empty(), "what was detached goes on");
        Ok(())
    })
}

fn files_are_transferred_without_a_program_of_the_host() -> Result<()> {
    let setup = Setup::new()?;
    let kept = Kept::default();
    let config = setup.config().with("machine-args", "machine,--ssh-server,ours");
    let testbed = setup.testbed_of(&config)?;
    let mut reservation = setup.reservation(1)?;
    reservation.access.user = Some("ada".into());
    let obtained = setup.run(async { Ok(testbed.init(&kept.context(&setup), &reservation).await?) })?;
    let host = &obtained.hosts[0];
    let folder = setup.dir.path().join("tree");
    fs::create_dir_all(folder.join("inner"))?;
    let big: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
    fs::write(folder.join("inner/big"), &big)?;
    fs::write(folder.join("empty"), "")?;
    let copy = |from: &str, to: &str| -> Result<std::process::Output> {
        let mut scp = setup.client("scp", host)?;
        scp.arg("-i").arg(setup.key()).args(["-p", "-r", from, to]);
        setup.netns.run(|| Ok(scp.output()?))
    };
    let there = format!("ada@{}:", host.address);
    let out = copy(&folder.display().to_string(), &there)?;
    ensure!(out.status.success(), "{}", text(&out.stderr));
    let out = setup.on(host, "ls -lR tree; ps -o args= -C sftp-server")?;
    ensure!(text(&out.stdout).contains("ada") && !text(&out.stdout).contains("sftp-server"), "{out:?}");
    let back = setup.dir.path().join("back");
    let out = copy(&format!("{there}tree"), &back.display().to_string())?;
    ensure!(out.status.success(), "{}", text(&out.stderr));
    ensure!(fs::read(back.join("inner/big"))? == big && fs::read(back.join("empty"))?.is_empty());
    // It is the account's own rights that count.
    let out = copy(&folder.join("empty").display().to_string(), &format!("{there}/etc/mine"))?;
    ensure!(text(&out.stderr).to_lowercase().contains("permission denied"), "{}", text(&out.stderr));
    let out = copy(&format!("{there}/no/such/file"), &back.display().to_string())?;
    ensure!(text(&out.stderr).to_lowercase().contains("no such file"), "{}", text(&out.stderr));
    setup.destroy(&testbed, &kept)?;
    setup.check_clean()
}

fn ports_are_forwarded() -> Result<()> {
    with_machines(1, None, |setup, hosts| {
        // The server itself is what listens in a machine.
        let mut command = setup.ssh(&hosts[0])?;
        command.args(["-W", "127.0.0.1:22"]).stdout(Stdio::piped());
        let mut child = setup.netns.run(|| Ok(command.stdin(Stdio::piped()).spawn()?))?;
        let mut seen = [0; 8];
        child.stdout.as_mut().context("it is piped")?.read_exact(&mut seen)?;
        ensure!(&seen == b"SSH-2.0-");
        child.kill()?;
        child.wait()?;
        Ok(())
    })
}

//! What an instance sees of the host.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use anyhow::{Result, ensure};
use cloud_providers::{CreateRequest, ErrorKind, OpContext, Role};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    runner::Test,
    setup::{Setup, request, token},
};

pub(crate) const TESTS: &[Test] = &[
    ("the_host_cannot_be_written_through_the_root", the_host_cannot_be_written_through_the_root),
    (
        "secrets_of_the_host_and_of_other_instances_are_hidden",
        secrets_of_the_host_and_of_other_instances_are_hidden,
    ),
    ("file_systems_of_their_own_are_shown_read_only", file_systems_of_their_own_are_shown_read_only),
    ("devices_are_few_and_work", devices_are_few_and_work),
    ("control_groups_are_the_instance_s_own", control_groups_are_the_instance_s_own),
    (
        "without_control_groups_on_the_host_there_are_none_inside",
        without_control_groups_on_the_host_there_are_none_inside,
    ),
    (
        "a_given_root_is_used_and_its_links_lead_nowhere_else",
        a_given_root_is_used_and_its_links_lead_nowhere_else,
    ),
    ("a_plain_machine_has_a_program_of_its_own", a_plain_machine_has_a_program_of_its_own),
    (
        "without_a_program_for_them_plain_machines_are_refused",
        without_a_program_for_them_plain_machines_are_refused,
    ),
];

fn plain(unit: &str) -> CreateRequest {
    let mut request = request(unit);
    request.role = Role::Plain;
    request
}

fn a_plain_machine_has_a_program_of_its_own() -> Result<()> {
    let setup = Setup::new()?;
    let program = setup.dir.path().join("guest/init").display().to_string();
    // Nothing of a guest is there.
    let setup = setup
        .with("LOCAL_MACHINE_INIT", program)
        .with("LOCAL_MACHINE_ARGS", "as-guest,second")
        .with("LOCAL_RESERVED_ADDRESSES", "200")
        .with("LOCAL_INIT", "")
        .with("LOCAL_INIT_ARGS", "no-such-part")
        .with("LOCAL_GUEST_DIR", "/nowhere");
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        ensure!(provider.capabilities().plain_machines);
        let report = provider.verify_config(&OpContext::new()).await?;
        ensure!(report.into_result().is_ok());
        let instance = provider.create_instance(&OpContext::new(), &plain("one")).await?;
        Ok((provider, instance))
    })?;
    let report = setup.report(&instance)?;
    ensure!(
        report.args[1..] == ["as-guest", "second", "--user-data-dir", "/media/cidata"],
        "{:?}",
        report.args
    );
    for dir in ["/home", "/srv", "/mnt", "/etc", "/root", "/var/lib"] {
        let answer = setup.ask(&instance, &format!("write {dir}/own"))?;
        ensure!(answer == "Ok(())", "{dir}: {answer}");
    }
    let seen = setup.ask(&instance, "sh cat /etc/shadow; ls -A /home; echo x > /etc/shadow.new; mv /etc/shadow.new /etc/shadow; cat /etc/shadow")?;
    ensure!(seen == "own\nx\n", "the host's accounts are hidden, and the file may be replaced: {seen}");
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

fn without_a_program_for_them_plain_machines_are_refused() -> Result<()> {
    let setup = Setup::new()?;
    let error = setup.run(async {
        let provider = setup.provider().await?;
        ensure!(!provider.capabilities().plain_machines);
        Ok(provider.create_instance(&OpContext::new(), &plain("one")).await.map(drop).unwrap_err())
    })?;
    ensure!(
        *error.kind() == ErrorKind::Unsupported && error.to_string().contains("plain machines"),
        "{error}"
    );
    setup.check_clean()
}

fn the_host_cannot_be_written_through_the_root() -> Result<()> {
    let setup = Setup::new()?;
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        Ok((provider, instance))
    })?;
    let name = test_support::unique("ppl-written");
    for dir in ["/etc", "/usr", "/tmp", "/run", "/root", "/var/tmp"] {
        let path = format!("{dir}/{name}");
        let answer = setup.ask(&instance, &format!("write {path}"))?;
        ensure!(answer == "Ok(())", "{path}: {answer}");
        ensure!(!Path::new(&path).exists(), "{path} is on the host");
    }
    let answer = setup.ask(&instance, "write /run/peerpod-local/guest/x")?;
    ensure!(answer.contains("ReadOnlyFilesystem"), "{answer}");
    let report = setup.report(&instance)?;
    ensure!(!report.mountinfo.contains("peerpod-old-root"), "the old root is gone: {}", report.mountinfo);
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

fn secrets_of_the_host_and_of_other_instances_are_hidden() -> Result<()> {
    let base = tempfile::Builder::new().prefix("ppl-").tempdir_in("/var/lib")?;
    let data = base.path().join("data");
    let setup = Setup::new()?.with("LOCAL_DATA_DIR", data.display().to_string());
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        provider.create_instance(&OpContext::new(), &request("other")).await?;
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        Ok((provider, instance))
    })?;
    let seen =
        setup.ask(&instance, &format!("sh ls -A {} /home /root /boot; cat /etc/shadow", data.display()))?;
    let lines: Vec<&str> = seen.lines().filter(|l| !l.is_empty() && !l.ends_with(':')).collect();
    ensure!(lines.is_empty(), "{seen}");
    let mode = setup.ask(&instance, "sh stat -c %a /media/cidata /media/cidata/user-data")?;
    ensure!(mode.lines().collect::<Vec<_>>() == ["700", "600"], "{mode}");
    let console = data.join("instances").join(instance.id.as_str()).join("console.log");
    ensure!(fs::metadata(&console)?.permissions().mode() & 0o777 == 0o600);
    ensure!(fs::read_to_string(&console)?.contains("guest listens"));
    setup.run(async {
        provider.release(&OpContext::new(), &token("other")).await?;
        Ok(provider.release(&OpContext::new(), &token("one")).await?)
    })?;
    ensure!(crate::setup::files(&data)? == ["instances", "locks"]);
    Ok(())
}

fn file_systems_of_their_own_are_shown_read_only() -> Result<()> {
    let setup = Setup::new()?;
    let marked = setup.dir.path().join("marked");
    fs::write(&marked, "from a mount\n")?;
    let (provider, instance) = setup.netns.run(|| {
        // The mount is seen by this thread and those that it starts.
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some(&marked), "/etc/passwd", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let provider = setup.provider().await?;
            let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
            Ok((provider, instance))
        })
    })?;
    ensure!(setup.ask(&instance, "sh cat /etc/passwd")? == "from a mount\n");
    let answer = setup.ask(&instance, "write /etc/passwd")?;
    ensure!(answer.contains("ReadOnlyFilesystem"), "{answer}");
    ensure!(fs::read_to_string(&marked)? == "from a mount\n");
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

fn devices_are_few_and_work() -> Result<()> {
    let setup = Setup::new()?;
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        Ok((provider, instance))
    })?;
    let listed = setup.ask(&instance, "sh ls /dev")?;
    let names: Vec<&str> = listed.lines().collect();
    let wanted = [
        "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    ];
    ensure!(names == wanted, "{names:?}");
    let script = "sh echo x >/dev/null && head -c 4 /dev/urandom | wc -c && ls /dev/pts && echo ok >/dev/shm/x && ls /sys/class/net";
    let answer = setup.ask(&instance, script)?;
    ensure!(answer.split_whitespace().collect::<Vec<_>>() == ["4", "ptmx", "eth0", "lo"], "{answer}");
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

fn control_groups_are_the_instance_s_own() -> Result<()> {
    let setup = Setup::new()?;
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        Ok((provider, instance))
    })?;
    let on_host = setup.groups()?;
    ensure!(!on_host.is_empty(), "this test needs a host with control groups");
    // An agent makes a group in each hierarchy, puts a process into it and finds it there.
    let script = "sh cd /sys/fs/cgroup && for top in $(find . -name cgroup.procs | sed s,/cgroup.procs,,); do \
                  case $top in */init) continue;; esac; mkdir $top/web || exit; \
                  [ -e $top/cpuset.cpus ] && cp $top/cpuset.cpus $top/cpuset.mems $top/web; \
                  sleep 1000 >/dev/null 2>&1 & echo $! >$top/web/cgroup.procs && grep -qx $! $top/web/cgroup.procs && echo ok; \
                  done; cat /proc/1/cgroup";
    let seen = setup.ask(&instance, script)?;
    let made = seen.lines().filter(|line| *line == "ok").count();
    ensure!(made == on_host.len(), "{seen} {on_host:?}");
    for line in seen.lines().filter(|line| line.contains(':')) {
        ensure!(line.ends_with(":/") || line.ends_with(":/init"), "{seen}");
    }
    ensure!(on_host.iter().all(|group| group.join("web").is_dir()), "{on_host:?}");
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

fn without_control_groups_on_the_host_there_are_none_inside() -> Result<()> {
    let setup = Setup::new()?;
    let (provider, instance) = setup.netns.run(|| {
        // Seen by this thread and those that it starts.
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("tmpfs"), "/sys/fs/cgroup", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let provider = setup.provider().await?;
            let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
            Ok((provider, instance))
        })
    })?;
    ensure!(setup.ask(&instance, "sh ls /sys/fs/cgroup")?.is_empty());
    ensure!(setup.groups()?.is_empty());
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

fn a_given_root_is_used_and_its_links_lead_nowhere_else() -> Result<()> {
    let setup = Setup::new()?;
    // A name that the overlay's options would misread, if it were not escaped.
    let root = setup.dir.path().join("a root, with: \\ marks");
    fs::create_dir(&root)?;
    // What the guest program needs: the libraries that we ourselves have mapped.
    let maps = fs::read_to_string("/proc/self/maps")?;
    for library in maps.lines().filter_map(|l| l.split_whitespace().nth(5)).filter(|p| p.contains(".so")) {
        let target = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().expect("a library lies in a folder"))?;
        fs::copy(library, &target)?;
    }
    if !root.join("lib64").exists() {
        // The loader is named by its path in /lib64, which may be a symbolic link on this host.
        let loader = fs::canonicalize("/lib64/ld-linux-x86-64.so.2")?;
        fs::create_dir_all(root.join("lib64"))?;
        fs::copy(loader, root.join("lib64/ld-linux-x86-64.so.2"))?;
    }
    // A folder of the host that links of the root point at.
    let outside = setup.dir.path().join("outside");
    fs::create_dir(&outside)?;
    symlink(&outside, root.join("media"))?;
    symlink(&outside, root.join("var"))?;
    let setup = setup.with("LOCAL_ROOT", root.display().to_string());
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let result = provider.create_instance(&OpContext::new(), &request("one")).await;
        Ok((provider, result))
    })?;
    ensure!(fs::read_dir(&outside)?.next().is_none(), "nothing was written on the host");
    // A link to nowhere inside is an error that names it, and leaves nothing.
    let error = instance.err().map(|e| e.report()).unwrap_or_default();
    ensure!(error.contains("/var/tmp") || error.contains("/media"), "{error}");
    setup.check_clean()?;

    fs::remove_file(root.join("media"))?;
    fs::remove_file(root.join("var"))?;
    fs::write(root.join("only-here"), "")?;
    let instance =
        setup.run(async { Ok(provider.create_instance(&OpContext::new(), &request("one")).await?) })?;
    let report = setup.report(&instance)?;
    ensure!(report.hostname == instance.name && report.user_data == "#cloud-config\n", "{report:?}");
    ensure!(setup.ask(&instance, "write /only-here")? == "Ok(())");
    ensure!(fs::read_to_string(root.join("only-here"))?.is_empty(), "the lower root is read-only");
    setup.run(async { Ok(provider.release(&OpContext::new(), &token("one")).await?) })?;
    setup.check_clean()
}

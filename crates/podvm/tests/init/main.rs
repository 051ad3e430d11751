//! `podvm-init` as the first process of a process namespace, with an agent that this program plays itself.

#[path = "../common/mod.rs"]
mod common;

use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use bytes::Bytes;
use common::{LIMIT, Network, Recorder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerpod_proto::Client;
use peerpod_proto::messages::agent;
use test_support::{ProcessGuard, wait_for};

const CASES: &[(&str, fn())] = &[
    ("the_guest_boots_and_ends_when_told", the_guest_boots_and_ends_when_told),
    (
        "a_socket_of_a_dead_agent_is_not_taken_for_a_living_one",
        a_socket_of_a_dead_agent_is_not_taken_for_a_living_one,
    ),
    ("orphans_are_reaped", orphans_are_reaped),
    ("an_agent_that_dies_is_started_again_within_bounds", an_agent_that_dies_is_started_again_within_bounds),
    ("a_forwarder_that_dies_is_started_again", a_forwarder_that_dies_is_started_again),
    ("each_failing_step_has_its_exit_code", each_failing_step_has_its_exit_code),
    ("children_that_ignore_the_end_are_killed", children_that_ignore_the_end_are_killed),
    ("missing_mounts_are_made_when_told", missing_mounts_are_made_when_told),
];

/// The agent that the init starts is this program; it listens where the Kata agent would be told to.
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "play-agent") {
        play_agent(&args[1..]);
        return ExitCode::SUCCESS;
    }
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen: Vec<_> = CASES
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())))
        .collect();
    println!("running {} tests", chosen.len());
    let mut failed = 0;
    for (name, case) in &chosen {
        let passed = catch_unwind(AssertUnwindSafe(case)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    println!("test result: {} passed; {failed} failed", chosen.len() as u32 - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play_agent(args: &[String]) {
    let address = std::env::var("KATA_AGENT_SERVER_ADDR").expect("the init names the socket");
    let socket = PathBuf::from(address.strip_prefix("unix://").expect("a unix socket"));
    if args.iter().any(|arg| arg == "leave-an-orphan") {
        // The shell ends at once; its child loses its parent and ends a moment later.
        Command::new("sh").args(["-c", "sleep 0.2 & echo orphan $!"]).status().unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // As the Kata agent: it makes no folder for its socket, and empties its own one on CreateSandbox.
        let _stop = Arc::new(Recorder::default()).serve(&socket);
        let _ = std::fs::remove_dir_all("/run/kata-containers");
        if args.iter().any(|arg| arg == "ignore-the-end") {
            let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            while end.recv().await.is_some() {}
        }
        std::future::pending::<()>().await;
    });
}

/// A guest whose first process is the init.
struct Guest {
    init: ProcessGuard,
    network: Network,
    _dir: tempfile::TempDir,
}

struct Setup {
    user_data: bool,
    agent: Vec<String>,
    options: Vec<String>,
    prepare: String,
    /// Starts in a root without /proc, /sys, /dev and /run.
    bare: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            user_data: true,
            agent: vec!["play-agent".to_owned()],
            options: Vec::new(),
            prepare: String::new(),
            bare: false,
        }
    }
}

impl Guest {
    fn boot(setup: Setup) -> Self {
        let network = Network::new();
        let dir = tempfile::tempdir().unwrap();
        let seed = dir.path().join("seed");
        std::fs::create_dir(&seed).unwrap();
        std::fs::write(seed.join("meta-data"), "").unwrap();
        if setup.user_data {
            let apf = serde_json::json!({ "pod-network": common::pod_network() });
            let text =
                format!("#cloud-config\nwrite_files:\n- path: /run/peerpod/apf.json\n  content: '{apf}'\n");
            std::fs::write(seed.join("user-data"), text).unwrap();
        }
        let programs = seed.join("guest");
        std::fs::create_dir(&programs).unwrap();
        for (name, path) in [
            ("process-user-data", env!("CARGO_BIN_EXE_process-user-data")),
            ("agent-protocol-forwarder", env!("CARGO_BIN_EXE_agent-protocol-forwarder")),
        ] {
            std::os::unix::fs::symlink(path, programs.join(name)).unwrap();
        }
        let script = dir.path().join("boot");
        let quoted = |words: &[String]| words.iter().map(|word| format!("'{word}' ")).collect::<String>();
        let target = std::path::Path::new(env!("CARGO_BIN_EXE_podvm-init")).parent().unwrap().display();
        let root = dir.path().join("root");
        let enter = match setup.bare {
            false => format!("mount -t tmpfs tmpfs /run\nmount -t proc proc /proc\n{}\nexec", setup.prepare),
            true => format!(
                "mkdir {root}\nmount -t tmpfs tmpfs {root}\nmkdir {root}/proc {root}/sys {root}/dev {root}/run\n\
                 for d in /usr /bin /sbin /lib /lib64 /etc {target} {}; do\n  mkdir -p {root}$d\n  \
                 mount --rbind $d {root}$d\ndone\nexec chroot {root}",
                seed.display(),
                root = root.display(),
            ),
        };
        let text = format!(
            "#!/bin/sh\nset -e\n{enter} {} --guest-dir {} --agent {} --user-data-dir {} --user-data-fetch-timeout 1 \
             --forwarder-options -disable-tls {} -- {}\n",
            env!("CARGO_BIN_EXE_podvm-init"),
            programs.display(),
            std::env::current_exe().unwrap().display(),
            seed.display(),
            quoted(&setup.options),
            quoted(&setup.agent),
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = network.guest.command("unshare");
        command.args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
        command.arg(&script);
        let init = ProcessGuard::spawn("podvm-init", &mut command, &dir.path().join("console")).unwrap();
        Self { init, network, _dir: dir }
    }

    fn up(setup: Setup) -> Self {
        let mut guest = Self::boot(setup);
        guest.init.wait_for_output(" listening ", LIMIT).unwrap();
        guest
    }

    /// The init as this process numbers it.
    fn pid(&self) -> Pid {
        let tool = self.init.pid();
        let children = std::fs::read_to_string(format!("/proc/{tool}/task/{tool}/children")).unwrap();
        Pid::from_raw(children.trim().parse().unwrap())
    }

    /// Exit code of the guest after its own end or after a signal.
    fn code(&mut self) -> Option<i32> {
        self.init.wait_exit(LIMIT).unwrap().code()
    }

    /// Asks the agent through the forwarder.
    fn answers(&self) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let Ok(stream) = self.network.connect(15150) else { return false };
            let client = Client::connect(stream);
            let asked =
                client.request(agent::SERVICE, "Check", Bytes::from_static(b"x"), Some(LIMIT), Vec::new());
            asked.await.is_ok_and(|reply| &reply[..] == b"x")
        })
    }

    /// Processes of the guest by program name.
    fn processes(&self, name: &str) -> Vec<i32> {
        let named = |pid: &i32| {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
            exe.is_ok_and(|exe| exe.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)))
        };
        self.network.guest.pids().into_iter().filter(named).collect()
    }
}

fn the_guest_boots_and_ends_when_told() {
    let mut guest = Guest::up(Setup::default());
    assert!(guest.answers());
    let console = guest.init.output();
    for line in ["pod namespace is made", "user data is in place", "the agent listens", "listening"] {
        assert!(console.contains(line), "{line}: {console}");
    }
    kill(guest.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(guest.code(), Some(0), "{}", guest.init.output());
    assert!(guest.init.output().contains("network_down=true"), "{}", guest.init.output());
    assert!(guest.network.guest.pids().is_empty());
}

fn a_socket_of_a_dead_agent_is_not_taken_for_a_living_one() {
    let socket = "/run/peerpod/agent.sock";
    let agent = std::env::current_exe().unwrap();
    let mut guest = Guest::boot(Setup {
        prepare: format!(
            "mkdir -p /run/peerpod\nKATA_AGENT_SERVER_ADDR=unix://{socket} {} play-agent &\nuntil [ -S {socket} ]; do :; done\nkill -9 $!",
            agent.display()
        ),
        options: vec!["--agent=/bin/sleep".to_owned(), "--agent-timeout=1".to_owned()],
        agent: vec!["1000".to_owned()],
        ..Setup::default()
    });
    assert_eq!(guest.code(), Some(13), "{}", guest.init.output());
}

fn orphans_are_reaped() {
    let guest = Guest::up(Setup {
        agent: vec!["play-agent".to_owned(), "leave-an-orphan".to_owned()],
        options: vec!["--verbose".to_owned()],
        ..Setup::default()
    });
    let gone = || guest.init.output().contains("reaped an orphan").then_some(());
    wait_for("the orphan to be reaped", LIMIT, gone).unwrap();
    assert!(guest.answers());
}

fn an_agent_that_dies_is_started_again_within_bounds() {
    let mut guest = Guest::up(Setup { options: vec!["--restarts=1".to_owned()], ..Setup::default() });
    let agent_name = std::env::current_exe().unwrap();
    let agent_name = agent_name.file_name().unwrap().to_string_lossy().into_owned();
    let first = guest.processes(&agent_name);
    assert_eq!(first.len(), 1);
    kill(Pid::from_raw(first[0]), Signal::SIGKILL).unwrap();
    let second = wait_for("a new agent", LIMIT, || {
        guest.processes(&agent_name).into_iter().find(|pid| *pid != first[0])
    });
    let second = second.unwrap();
    wait_for("an answer of the new agent", LIMIT, || guest.answers().then_some(())).unwrap();
    kill(Pid::from_raw(second), Signal::SIGKILL).unwrap();
    assert_eq!(guest.code(), Some(14), "{}", guest.init.output());
}

fn a_forwarder_that_dies_is_started_again() {
    let guest = Guest::up(Setup::default());
    let first = guest.processes("agent-protocol-forwarder");
    kill(Pid::from_raw(first[0]), Signal::SIGKILL).unwrap();
    wait_for("an answer of the new forwarder", LIMIT, || {
        (guest.processes("agent-protocol-forwarder") != first && guest.answers()).then_some(())
    })
    .unwrap();
}

fn each_failing_step_has_its_exit_code() {
    let option = |text: &str| vec![text.to_owned()];
    for (setup, code, word) in [
        (Setup { user_data: false, ..Setup::default() }, 12, "user-data"),
        (Setup { options: option("--agent=/no/such/agent"), ..Setup::default() }, 14, "/no/such/agent"),
        (
            Setup {
                options: vec!["--agent=/bin/sleep".to_owned(), "--agent-timeout=1".to_owned()],
                agent: option("1000"),
                ..Setup::default()
            },
            13,
            "agent.sock",
        ),
        (
            Setup {
                options: vec!["--agent=/bin/false".to_owned(), "--restarts=0".to_owned()],
                ..Setup::default()
            },
            14,
            "exit status: 1",
        ),
        (
            Setup {
                options: vec![
                    "--restarts=0".to_owned(),
                    "--forwarder-options=-disable-tls -listen nowhere".to_owned(),
                ],
                ..Setup::default()
            },
            15,
            "-listen",
        ),
        (
            Setup {
                prepare: "mkdir /run/netns && mount -t tmpfs -o ro tmpfs /run/netns".to_owned(),
                ..Setup::default()
            },
            11,
            "namespace",
        ),
        (Setup { options: option("--restarts=many"), ..Setup::default() }, 2, "--restarts"),
    ] {
        let mut guest = Guest::boot(setup);
        assert_eq!(guest.code(), Some(code), "{}", guest.init.output());
        assert!(guest.init.output().contains(word), "{word}: {}", guest.init.output());
        assert!(guest.network.guest.pids().is_empty());
    }
}

fn children_that_ignore_the_end_are_killed() {
    let mut guest = Guest::up(Setup {
        agent: vec!["play-agent".to_owned(), "ignore-the-end".to_owned()],
        options: vec!["--end-timeout=1".to_owned()],
        ..Setup::default()
    });
    kill(guest.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(guest.code(), Some(0), "{}", guest.init.output());
    assert!(guest.init.output().contains("are killed"), "{}", guest.init.output());
    assert!(guest.network.guest.pids().is_empty());
}

fn missing_mounts_are_made_when_told() {
    let guest = Guest::up(Setup { bare: true, options: vec!["--mount".to_owned()], ..Setup::default() });
    assert!(guest.answers());
    let console = guest.init.output();
    for target in ["/proc", "/sys", "/dev", "/dev/pts", "/run"] {
        assert!(
            console.contains("mounted kind=") && console.contains(&format!("target=\"{target}\"")),
            "{console}"
        );
    }
}

//! Boots the image with a whole system in QEMU under software emulation, and looks at what became of it.
//!
//! `cargo xtask test --stage debian` builds the image and names it in `PEERPOD_DEBIAN_IMAGE`. The machine has its disk read-only:
//! whatever the system writes must go to memory.

mod common;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::Certificates;
use test_support::{AgentPlayer, Netns, ProcessGuard};

/// A whole system under software emulation, on a machine that is busy with other tests.
const BOOT: Duration = Duration::from_secs(600);
const PORT: u16 = 15150;
const CONTAINER: &str = "container";

fn image() -> PathBuf {
    std::env::var_os("PEERPOD_DEBIAN_IMAGE")
        .expect("PEERPOD_DEBIAN_IMAGE names the image: `cargo xtask podvm build --flavour debian` makes one")
        .into()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn seed(dir: &Path, certificates: &Certificates) -> PathBuf {
    let (folder, file) = (dir.join("seed"), dir.join("seed.iso"));
    std::fs::create_dir(&folder).unwrap();
    let content = serde_json::Value::String(certificates.apf().to_string()).to_string();
    let user_data =
        format!("#cloud-config\nwrite_files:\n- path: /run/peerpod/apf.json\n  content: {content}\n");
    std::fs::write(folder.join("user-data"), user_data).unwrap();
    std::fs::write(folder.join("meta-data"), "local-hostname: podvm-of-a-test\n").unwrap();
    let args = ["-quiet", "-volid", "cidata", "-joliet", "-rock", "-output", text(&file), text(&folder)];
    test_support::run("genisoimage", &args).unwrap();
    file
}

/// A container with the root of the guest, since the test agent contains nothing.
async fn in_a_pod(agent: &AgentPlayer, script: &str) -> String {
    let mut spec = test_support::spec(&["/bin/sh", "-c", "exec sleep 1000"]);
    // This guest has its programs elsewhere.
    spec.mounts.retain(|mount| mount.destination != test_support::PROGRAMS);
    if let Some(linux) = &mut spec.linux {
        linux.cgroups_path = format!("/k8s.io/{CONTAINER}");
    }
    agent.create_sandbox("sandbox", "pod").await.unwrap();
    agent.start_container_of(CONTAINER, spec).await.unwrap();
    let (code, output) = agent.exec(CONTAINER, "script", &["/bin/sh", "-ec", script]).await.unwrap();
    assert_eq!(code, 0, "{output}");
    output
}

/// What a line such as `name=value` says.
fn value<'a>(output: &'a str, name: &str) -> &'a str {
    let line = output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("{name}: {output}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_system_boots_to_a_running_agent_lets_nobody_in_and_writes_to_memory_only() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::new();
    let seed = seed(dir.path(), &certificates);
    let network = Netns::unique("podvm-debian").unwrap();
    network.ip(&["link", "set", "lo", "up"]).unwrap();
    let mut qemu = network.command("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "1024", "-smp", "2", "-display", "none", "-serial", "stdio"]);
    qemu.args(["-no-reboot", "-machine", "pc"]);
    for (id, file, format) in [("root", image(), "qcow2"), ("seed", seed, "raw")] {
        let file = file.display();
        qemu.arg("-drive").arg(format!("if=none,id={id},format={format},readonly=on,file={file}"));
        qemu.arg("-device").arg(format!("virtio-blk-pci,drive={id}"));
    }
    qemu.args(["-device", "virtio-rng-pci", "-nic"]);
    qemu.arg(format!("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{PORT}-:{PORT}"));
    let mut console = ProcessGuard::spawn("machine", &mut qemu, &dir.path().join("console")).unwrap();

    // QEMU accepts for the guest, and closes where the guest does not: only a handshake tells.
    let start = std::time::Instant::now();
    let agent = loop {
        assert!(console.try_status().is_none(), "the machine went off: {}", console.last_lines(40));
        assert!(start.elapsed() < BOOT, "no forwarder within {BOOT:?}: {}", console.last_lines(40));
        if let Some(agent) = connect(&network, &certificates).await {
            break agent;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    println!("the forwarder answers {:.0} s after the machine was started", start.elapsed().as_secs_f64());

    let output = in_a_pod(
        &agent,
        "exec 2>&1
         for unit in netns@podns process-user-data kata-agent agent-protocol-forwarder; do
             echo \"$unit=$(systemctl show -P ActiveState $unit)\"
             echo \"$unit.at=$(systemctl show -P ActiveEnterTimestampMonotonic $unit)\"
         done
         for unit in attestation-agent confidential-data-hub api-server-rest; do
             echo \"$unit=$(systemctl show -P ConditionResult $unit)\"
         done
         echo root=$(awk '$2 == \"/\" {print $3}' /proc/mounts | tail -n 1)
         touch /usr/written && echo written=$(ls /usr/written)
         echo disk=$(cat /sys/block/vda/ro)
         echo passwords=$(awk -F: '$2 !~ /^[*!]/' /etc/shadow | wc -l)
         echo setuid=$(find /usr -xdev -perm /6000 -type f | wc -l)
         echo logins=$(ls /usr/sbin | grep -c -E '^(sshd|dropbear)$' || true)
         echo init=$(cat /proc/1/comm)
         echo shells=$(cat /proc/[0-9]*/comm | grep -c -E '^(agetty|login|sulogin|bash)$' || true)
         echo cmdline=$(cat /proc/cmdline)
         echo release=$(. /etc/os-release; echo $ID)",
    )
    .await;
    println!("{output}");
    for unit in ["netns@podns", "process-user-data", "kata-agent", "agent-protocol-forwarder"] {
        assert_eq!(value(&output, unit), "active", "{unit}");
    }
    for unit in ["attestation-agent", "confidential-data-hub", "api-server-rest"] {
        assert_eq!(value(&output, unit), "no", "{unit} is not in this image");
    }
    let at = |unit: &str| value(&output, &format!("{unit}.at")).parse::<u64>().unwrap();
    assert!(at("netns@podns") <= at("kata-agent"), "the namespace comes before the agent");
    assert!(at("process-user-data") <= at("kata-agent"), "the configuration comes before the agent");
    assert!(at("kata-agent") <= at("agent-protocol-forwarder"), "the agent comes before the forwarder");
    assert_eq!((value(&output, "root"), value(&output, "written")), ("overlay", "/usr/written"));
    assert_eq!(value(&output, "disk"), "1", "the disk is read-only, and the system runs all the same");
    for way_in in ["passwords", "setuid", "logins", "shells"] {
        assert_eq!(value(&output, way_in), "0", "{way_in}");
    }
    assert_eq!((value(&output, "release"), value(&output, "init")), ("debian", "systemd"));
    assert!(value(&output, "cmdline").contains("console=null"));

    // The name and address of the pod, by the forwarder.
    let address =
        agent.exec(CONTAINER, "address", &["/sbin/ip", "-4", "addr", "show", "dev", "eth0"]).await.unwrap();
    assert!(address.1.contains(common::POD_IP), "{address:?}");
    // Nothing but the forwarder listens where the node and its neighbours can reach it.
    let script = "nsenter -t 1 -n cat /proc/net/tcp /proc/net/tcp6";
    let (_, sockets) = agent.exec(CONTAINER, "sockets", &["/bin/sh", "-c", script]).await.unwrap();
    assert_eq!(reachable(&sockets), [PORT], "{sockets}");
    // What a boot program writes before the kernel is all that is on the console.
    let written = console.output();
    for word in ["Linux version", "systemd", "login:", "podvm"] {
        assert!(!written.contains(word), "{word} on a console that is off: {written}");
    }
    assert!(console.try_status().is_none(), "the machine is there still: {}", console.last_lines(20));
}

/// Ports of listening sockets that are bound to another address than loopback.
fn reachable(table: &str) -> Vec<u16> {
    let mut ports: Vec<u16> = table
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (address, port) = words.get(1)?.split_once(':')?;
            let listens = *words.get(3)? == "0A";
            // 127.x.x.x and ::1 as the kernel writes them.
            let local = (address.len() == 8 && address.ends_with("7F"))
                || address == "00000000000000000000000001000000";
            (listens && !local).then(|| u16::from_str_radix(port, 16).ok()).flatten()
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

async fn connect(network: &Netns, certificates: &Certificates) -> Option<AgentPlayer> {
    let stream = network.run(|| Ok(TcpStream::connect(("127.0.0.1", PORT))?)).ok()?;
    stream.set_nonblocking(true).ok()?;
    let stream = tokio::net::TcpStream::from_std(stream).ok()?;
    let handshake = tokio::time::timeout(Duration::from_secs(20), certificates.client(stream));
    let client = handshake.await.ok()?.ok()?;
    Some(AgentPlayer::over(client))
}

//! Boots the image in QEMU under software emulation, by BIOS and by UEFI, with real disks.
//!
//! `cargo xtask podvm build` makes the image; `PEERPOD_IMAGE` names one that is there already.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use common::Certificates;
use peerpod_proto::messages::oci::{Mount, Spec};
use podvm::volumes::ANNOTATION;
use test_support::{AgentPlayer, Netns, ProcessGuard, wait_for};

/// Software emulation on a machine that is busy with other tests.
const BOOT: Duration = Duration::from_secs(180);
const PORT: u16 = 15150;
const CONTAINER: &str = "container";
const SERIAL: &str = "data-0001";
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_SETTINGS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        if let Some(image) = std::env::var_os("PEERPOD_IMAGE") {
            return image.into();
        }
        let args = ["run", "--quiet", "--package", "xtask", "--", "podvm", "build"];
        let built =
            Command::new(env!("CARGO")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        let errors = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "the image cannot be built: {errors}");
        String::from_utf8(built.stdout).unwrap().trim().into()
    })
}

/// What differs from one machine to the next.
struct Hardware {
    uefi: bool,
    /// QEMU's options for the seed disk; `{}` stands for its file.
    seed: &'static str,
    card: bool,
}

/// A machine with a console in a file, in a network namespace of its own.
struct Machine {
    network: Netns,
    console: ProcessGuard,
    monitor: PathBuf,
}

impl Machine {
    fn start(dir: &Path, hardware: &Hardware, certificates: &Certificates, data: &Path) -> Self {
        let network = Netns::unique("podvm-image").unwrap();
        network.ip(&["link", "set", "lo", "up"]).unwrap();
        let at = |name: &str| dir.join(test_support::unique(name));
        let (overlay, monitor, seed) = (at("root.qcow2"), at("monitor"), at("seed.iso"));
        make_seed(&at("seed"), &seed, certificates);
        test_support::run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(image()), text(&overlay)],
        )
        .unwrap();
        let mut qemu = network.command("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-m", "768", "-smp", "2", "-display", "none", "-serial", "stdio"]);
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        qemu.args(["-machine", if hardware.uefi { "q35" } else { "pc" }]);
        if hardware.uefi {
            let settings = at("settings.fd");
            std::fs::copy(FIRMWARE_SETTINGS, &settings).unwrap();
            qemu.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={FIRMWARE}"));
            qemu.arg("-drive").arg(format!("if=pflash,format=raw,file={}", settings.display()));
        }
        let disks = [
            ("root", "qcow2", overlay.as_path(), "bootindex=1".to_owned()),
            ("data", "raw", data, format!("serial={SERIAL}")),
        ];
        for (id, format, file, more) in disks {
            qemu.arg("-drive").arg(format!("if=none,id={id},format={format},file={}", file.display()));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive={id},{more}"));
        }
        qemu.args(hardware.seed.replace("{}", text(&seed)).split(' '));
        match hardware.card {
            true => qemu
                .arg("-nic")
                .arg(format!("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{PORT}-:{PORT}")),
            false => qemu.args(["-nic", "none"]),
        };
        let console = ProcessGuard::spawn("machine", &mut qemu, &at("console")).unwrap();
        Self { network, console, monitor }
    }

    async fn agent(&mut self, certificates: &Certificates) -> AgentPlayer {
        self.console.wait_for_output("agent-protocol-forwarder: listening", BOOT).unwrap();
        let stream = self.network.run(|| Ok(TcpStream::connect(("127.0.0.1", PORT))?)).unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        AgentPlayer::over(certificates.client(stream).await.unwrap())
    }

    /// Presses the power button and waits until the machine is off.
    fn press_power_button(&mut self) {
        let mut stream = UnixStream::connect(&self.monitor).unwrap();
        let mut answers = BufReader::new(stream.try_clone().unwrap());
        for call in [r#"{"execute":"qmp_capabilities"}"#, r#"{"execute":"system_powerdown"}"#] {
            stream.write_all(call.as_bytes()).unwrap();
            let mut answer = String::new();
            // The first line is a greeting.
            while !answer.contains("return") {
                answer.clear();
                assert_ne!(answers.read_line(&mut answer).unwrap(), 0, "the monitor is gone");
            }
        }
        assert!(self.console.wait_exit(BOOT).unwrap().success(), "{}", self.console.last_lines(20));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn make_seed(folder: &Path, file: &Path, certificates: &Certificates) {
    std::fs::create_dir(folder).unwrap();
    let apf = certificates.apf().to_string();
    // JSON in one line is YAML, and so is a text in JSON's quotes.
    let content = serde_json::Value::String(apf).to_string();
    let user_data =
        format!("#cloud-config\nwrite_files:\n- path: /run/peerpod/apf.json\n  content: {content}\n");
    std::fs::write(folder.join("user-data"), user_data).unwrap();
    std::fs::write(folder.join("meta-data"), "local-hostname: podvm-of-a-test\n").unwrap();
    let args = ["-quiet", "-volid", "cidata", "-joliet", "-rock", "-output", text(file), text(folder)];
    test_support::run("genisoimage", &args).unwrap();
}

/// A container as a shim describes it, in whose `/mnt` the volume is.
fn container() -> Spec {
    let volume = format!(r#"{{"vol-0":{{"mount_point":"/mnt","lun":"0","disk_id":"{SERIAL}"}}}}"#);
    let slow = "/sbin/tc qdisc add dev eth0 root netem delay 1ms; exec sleep 1000";
    let mut spec = test_support::spec(&["/bin/sh", "-c", slow]);
    if let Some(capabilities) = spec.process.as_mut().and_then(|process| process.capabilities.as_mut()) {
        let sets = [&mut capabilities.bounding, &mut capabilities.effective, &mut capabilities.permitted];
        sets.into_iter().for_each(|set| set.push("NET_ADMIN".to_owned()));
    }
    spec.annotations.insert(ANNOTATION.to_owned(), volume);
    // This guest has its programs elsewhere.
    spec.mounts.retain(|mount| mount.destination != test_support::PROGRAMS);
    spec.mounts.push(Mount {
        destination: "/mnt".to_owned(),
        kind: "bind".to_owned(),
        options: vec!["rbind".to_owned()],
        ..Mount::default()
    });
    if let Some(linux) = &mut spec.linux {
        linux.cgroups_path = format!("/k8s.io/{CONTAINER}");
    }
    spec
}

/// Starts a pod with the volume, runs a script in it, and returns what it wrote.
async fn in_a_pod(agent: &AgentPlayer, script: &str) -> String {
    agent.create_sandbox("sandbox", "pod").await.unwrap();
    agent.start_container_of(CONTAINER, container()).await.unwrap();
    let (code, output) = agent.exec(CONTAINER, "script", &["/bin/sh", "-ec", script]).await.unwrap();
    assert_eq!(code, 0, "{output}");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_boots_by_bios_and_uefi_and_a_volume_is_formatted_once_and_keeps_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::new();
    let data = dir.path().join("data");
    std::fs::File::create(&data).unwrap().set_len(64 << 20).unwrap();

    let hardware = Hardware { uefi: false, seed: "-cdrom {}", card: true };
    let mut machine = Machine::start(dir.path(), &hardware, &certificates, &data);
    let agent = machine.agent(&certificates).await;
    let script = "exec 2>&1; cat /proc/sys/kernel/random/boot_id; echo kept > /mnt/file; df -T /mnt | tail -1; \
                  /bin/ip -4 addr show dev eth0; \
                  timeout 60 sh -c 'until /sbin/tc qdisc show dev eth0 | grep netem; do sleep 0.1; done'";
    let output = in_a_pod(&agent, script).await;
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = output.lines().next().unwrap();
    assert!(boot.len() == 36 && boot != host.trim(), "this is another kernel: {output}");
    for expected in ["ext4", common::POD_IP, "netem"] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    machine.press_power_button();
    let console = machine.console.output();
    for expected in
        ["podvm-of-a-test", "making a file system", "cloud volume is unmounted", "as it was asked to"]
    {
        assert!(console.contains(expected), "{expected}: {console}");
    }
    drop(machine);

    let seed = "-drive if=virtio,format=raw,readonly=on,file={}";
    let hardware = Hardware { uefi: true, seed, card: true };
    let mut machine = Machine::start(dir.path(), &hardware, &certificates, &data);
    let agent = machine.agent(&certificates).await;
    let output = in_a_pod(&agent, "cat /mnt/file; cat /proc/sys/kernel/random/boot_id").await;
    assert!(output.starts_with("kept\n"), "{output}");
    assert!(!output.contains(boot), "this is another boot: {output}");
    assert!(!machine.console.output().contains("making a file system"));
    machine.press_power_button();
}

#[test]
fn a_machine_that_cannot_be_a_guest_says_why_on_its_console_and_goes_off() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::File::create(&data).unwrap().set_len(1 << 20).unwrap();
    let hardware = Hardware { uefi: false, seed: "-cdrom {}", card: false };
    let mut machine = Machine::start(dir.path(), &hardware, &Certificates::new(), &data);
    let status = wait_for("the machine to go off", BOOT, || machine.console.try_status());
    let status = status.unwrap_or_else(|error| panic!("{error:#}: {}", machine.console.last_lines(20)));
    assert!(status.success(), "{status}");
    let console = machine.console.output();
    assert!(console.contains("FAILED at network: the machine has no network card"), "{console}");
    assert!(!console.contains("Kernel panic"), "{console}");
}

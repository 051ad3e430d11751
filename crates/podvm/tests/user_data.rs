//! `process-user-data` against real disk images and metadata servers of our own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use podvm::paths::{self, Paths};
use podvm::userdata::{DEFAULT_DIGEST, Provisioner, Source, provision};

const APF: &str = "{\"pod-network\": null, \"pod-name\": \"p\"}\n";
const USER_DATA: &str = "#cloud-config\n\nwrite_files:\n  - path: /run/peerpod/apf.json\n    content: |\n      \
                         {\"pod-network\": null, \"pod-name\": \"p\"}\n  - path: /etc/passwd\n    content: |\n      evil\n";

struct Machine {
    root: tempfile::TempDir,
    p: Provisioner,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut p = Provisioner::new(Paths::new(root.path()));
        p.timeout = Duration::from_secs(20);
        // Nothing listens there: a test that reaches a metadata server by mistake fails at once.
        p.endpoints.link_local = "http://127.0.0.1:9".to_owned();
        p.endpoints.alibaba = "http://127.0.0.1:9".to_owned();
        Self { root, p }
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.p.paths.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.p.paths.at(path)).unwrap()
    }

    fn is_provisioned_from(&self, source: &Source) {
        let report = provision(&self.p).unwrap();
        assert_eq!(&report.source, source);
        assert_eq!(report.written, [paths::APF_CONFIG]);
        assert_eq!(report.digest, DEFAULT_DIGEST);
        assert_eq!(self.read(paths::APF_CONFIG), APF);
        assert_eq!(self.read(paths::INITDATA_DIGEST), DEFAULT_DIGEST);
        assert!(!self.p.paths.at("/etc/passwd").exists());
        let mode = std::fs::metadata(self.p.paths.at(paths::APF_CONFIG)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

/// Runs a tool; one that is missing fails the test, since its images are what the test is about.
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program}: {error} (needs the packages genisoimage, dosfstools and mtools)")
    });
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn seed(user_data: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("user-data"), user_data).unwrap();
    std::fs::write(dir.path().join("meta-data"), "local-hostname: p\n").unwrap();
    std::fs::write(dir.path().join("vendor-data"), "").unwrap();
    dir
}

/// Adds a disk beside an unreadable one, an empty one and one that is something else.
fn with_disk(make: impl Fn(&Path)) -> (Machine, Source) {
    let machine = Machine::new();
    for name in ["sr0", "vda", "vda1", "vdb", "loop0"] {
        std::fs::create_dir_all(machine.root.path().join("sys/class/block").join(name)).unwrap();
    }
    machine.write("/dev/vda", &vec![7; 100_000]);
    machine.write("/dev/vda1", b"");
    let device = machine.root.path().join("dev/vdb");
    make(&device);
    (machine, Source::Disk(device))
}

#[test]
fn iso_images_are_read_whatever_names_the_tool_wrote() {
    let seed = seed(USER_DATA.as_bytes());
    for options in
        [&["-joliet", "-rock"][..], &["-rock"], &["-joliet"], &["-iso-level", "1"], &["-iso-level", "4"]]
    {
        let (machine, source) = with_disk(|device| {
            let fixed = ["-quiet", "-output", text(device), "-volid", "cidata"];
            let args: Vec<&str> = [&fixed, options, &[text(seed.path())]].concat();
            run("genisoimage", &args);
        });
        println!("options {options:?}");
        machine.is_provisioned_from(&source);
    }
}

#[test]
fn fat_images_are_read_with_either_case_of_the_label() {
    let seed = seed(USER_DATA.as_bytes());
    for (label, bits) in [("CIDATA", "12"), ("cidata", "12"), ("CIDATA", "16"), ("CIDATA", "32")] {
        let (machine, source) = with_disk(|device| {
            let kilobytes = if bits == "12" { "1440" } else { "65536" };
            run("mkfs.vfat", &["-C", "-F", bits, "-n", label, text(device), kilobytes]);
            run("mcopy", &["-i", text(device), text(&seed.path().join("user-data")), "::user-data"]);
        });
        println!("label {label} FAT{bits}");
        machine.is_provisioned_from(&source);
    }
}

#[test]
fn a_disk_with_another_label_is_not_user_data() {
    let seed = seed(USER_DATA.as_bytes());
    let (mut machine, _) = with_disk(|device| {
        run(
            "genisoimage",
            &["-quiet", "-output", text(device), "-volid", "cidata2", "-rock", text(seed.path())],
        );
    });
    machine.p.timeout = Duration::from_millis(200);
    let error = format!("{:#}", provision(&machine.p).unwrap_err());
    assert!(error.contains("no source of user data"), "{error}");
}

#[test]
fn a_cut_or_damaged_disk_is_an_error_that_names_it() {
    let seed = seed(USER_DATA.as_bytes());
    let (mut machine, _) = with_disk(|device| {
        run(
            "genisoimage",
            &["-quiet", "-output", text(device), "-volid", "cidata", "-rock", text(seed.path())],
        );
        // The descriptors stay, the folders and files go.
        std::fs::OpenOptions::new().write(true).open(device).unwrap().set_len(20 * 2048).unwrap();
    });
    machine.p.timeout = Duration::from_millis(200);
    let error = format!("{:#}", provision(&machine.p).unwrap_err());
    assert!(error.contains("dev/vdb") && error.contains("cut short"), "{error}");
}

#[test]
fn a_folder_comes_before_a_disk() {
    let seed_disk = seed(b"write_files: []\n");
    let (machine, _) = with_disk(|device| {
        run(
            "genisoimage",
            &["-quiet", "-output", text(device), "-volid", "cidata", "-rock", text(seed_disk.path())],
        );
    });
    machine.write(paths::USER_DATA_FILE, USER_DATA.as_bytes());
    machine.is_provisioned_from(&Source::File(machine.p.paths.at(paths::USER_DATA_FILE)));
}

#[test]
fn user_data_that_arrives_in_pieces_is_waited_for() {
    let machine = Machine::new();
    let path = machine.p.paths.at(paths::USER_DATA_FILE);
    machine.write(paths::USER_DATA_FILE, b"");
    let (head, tail) = USER_DATA.split_at(80);
    let writer = std::thread::spawn({
        let stop = machine.p.cancel.clone();
        move || {
            assert!(!stop.wait(Duration::from_millis(300)));
            std::fs::write(&path, head).unwrap();
            assert!(!stop.wait(Duration::from_millis(300)));
            std::fs::write(&path, format!("{head}{tail}")).unwrap();
        }
    });
    machine.is_provisioned_from(&Source::File(machine.p.paths.at(paths::USER_DATA_FILE)));
    writer.join().unwrap();
}

#[test]
fn an_empty_file_ends_in_an_error_at_the_deadline_and_writes_nothing() {
    let mut machine = Machine::new();
    machine.write(paths::USER_DATA_FILE, b"");
    machine.p.timeout = Duration::from_millis(400);
    let start = Instant::now();
    let error = format!("{:#}", provision(&machine.p).unwrap_err());
    assert!(error.contains("apf.json is not among the files"), "{error}");
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert!(!machine.p.paths.at(paths::INITDATA_DIGEST).exists());
}

#[test]
fn cancelling_ends_the_wait_for_user_data() {
    let mut machine = Machine::new();
    machine.p.timeout = Duration::from_secs(600);
    let start = Instant::now();
    let canceller = std::thread::spawn({
        let cancel = machine.p.cancel.clone();
        move || cancel.cancel()
    });
    let error = format!("{:#}", provision(&machine.p).unwrap_err());
    canceller.join().unwrap();
    assert!(error.contains("cancelled"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn without_a_source_the_files_cloud_init_wrote_are_used() {
    let machine = Machine::new();
    machine.write(paths::APF_CONFIG, APF.as_bytes());
    let report = provision(&machine.p).unwrap();
    assert_eq!(report.source, Source::None);
    assert!(report.written.is_empty());
    assert_eq!(machine.read(paths::AA_CONFIG), "");
}

#[test]
fn provisioning_again_gives_the_same_files() {
    let machine = Machine::new();
    machine.write(paths::USER_DATA_FILE, USER_DATA.as_bytes());
    let source = Source::File(machine.p.paths.at(paths::USER_DATA_FILE));
    machine.is_provisioned_from(&source);
    machine.is_provisioned_from(&source);
}

/// One request as the metadata server saw it: method, path, headers with lower-case names.
#[derive(Debug, Clone)]
struct Seen {
    line: String,
    headers: HashMap<String, String>,
}

/// A metadata server: answers each request by `answer` until it is dropped.
struct Imds {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Imds {
    fn start(answer: impl Fn(&Seen, usize) -> (u16, Vec<u8>) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let request = read_request(&stream);
                let count = {
                    let mut all = record.lock().unwrap();
                    all.push(request.clone());
                    all.iter().filter(|seen| seen.line == request.line).count()
                };
                let (status, body) = answer(&request, count);
                let mut stream = stream;
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Seen {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().unwrap().unwrap();
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())))
        .collect();
    Seen { line, headers }
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes()
}

fn in_cloud(dmi: &str, text: &str, imds: &Imds) -> Machine {
    let mut machine = Machine::new();
    machine.write(&format!("/sys/class/dmi/id/{dmi}"), text.as_bytes());
    machine.p.endpoints.link_local = imds.url.clone();
    machine.p.endpoints.alibaba = imds.url.clone();
    machine
}

#[test]
fn azure_user_data_is_base64_behind_the_metadata_header() {
    let imds = Imds::start(|_, _| (200, base64(USER_DATA.as_bytes())));
    in_cloud("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", &imds)
        .is_provisioned_from(&Source::Azure);
    let seen = imds.seen();
    assert_eq!(
        seen[0].line,
        "GET /metadata/instance/compute/userData?api-version=2021-01-01&format=text HTTP/1.1"
    );
    assert_eq!(seen[0].headers["metadata"], "true");
}

#[test]
fn aws_user_data_is_fetched_with_a_token() {
    let imds = Imds::start(|request, _| match request.line.as_str() {
        "PUT /latest/api/token HTTP/1.1" => (200, b"secret-token".to_vec()),
        "GET /latest/user-data HTTP/1.1" if request.headers.contains_key("x-aws-ec2-metadata-token") => {
            (200, USER_DATA.as_bytes().to_vec())
        }
        _ => (401, Vec::new()),
    });
    in_cloud("sys_vendor", "Amazon EC2", &imds).is_provisioned_from(&Source::Aws);
    let seen = imds.seen();
    assert_eq!(seen[0].headers["x-aws-ec2-metadata-token-ttl-seconds"], "60");
    assert_eq!(seen[1].headers["x-aws-ec2-metadata-token"], "secret-token");
}

#[test]
fn aws_without_tokens_is_asked_the_old_way() {
    let imds = Imds::start(|request, _| match request.line.as_str() {
        "GET /latest/user-data HTTP/1.1" => (200, USER_DATA.as_bytes().to_vec()),
        _ => (404, Vec::new()),
    });
    in_cloud("sys_vendor", "Amazon EC2", &imds).is_provisioned_from(&Source::Aws);
    assert!(!imds.seen()[1].headers.contains_key("x-aws-ec2-metadata-token"));
}

#[test]
fn gcp_user_data_is_base64_and_may_be_gzip() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(USER_DATA.as_bytes()).unwrap();
    let packed = base64(&gzip.finish().unwrap());
    let imds = Imds::start(move |_, _| (200, packed.clone()));
    in_cloud("sys_vendor", "Google", &imds).is_provisioned_from(&Source::Gcp);
    let seen = imds.seen();
    assert_eq!(seen[0].line, "GET /computeMetadata/v1/instance/attributes/user-data HTTP/1.1");
    assert_eq!(seen[0].headers["metadata-flavor"], "Google");
}

#[test]
fn alibaba_user_data_is_plain() {
    let imds = Imds::start(|_, _| (200, USER_DATA.as_bytes().to_vec()));
    in_cloud("sys_vendor", "Alibaba Cloud", &imds).is_provisioned_from(&Source::Alibaba);
    assert_eq!(imds.seen()[0].line, "GET /latest/user-data HTTP/1.1");
}

#[test]
fn a_metadata_server_that_has_nothing_for_long_is_asked_until_the_deadline() {
    // More refusals than the ten attempts that the fixed count of older programs allowed.
    let imds = Imds::start(
        |_, count| if count <= 12 { (404, Vec::new()) } else { (200, base64(USER_DATA.as_bytes())) },
    );
    let mut machine = in_cloud("sys_vendor", "Google", &imds);
    machine.p.timeout = Duration::from_secs(60);
    machine.p.longest_pause = Duration::from_millis(20);
    machine.is_provisioned_from(&Source::Gcp);
    assert_eq!(imds.seen().len(), 13);
}

#[test]
fn a_metadata_server_that_never_answers_ends_in_an_error_at_the_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut machine = Machine::new();
    machine.write("/sys/class/dmi/id/sys_vendor", b"Google\n");
    machine.p.endpoints.link_local = format!("http://{}", silent.local_addr().unwrap());
    machine.p.timeout = Duration::from_secs(1);
    let start = Instant::now();
    let error = format!("{:#}", provision(&machine.p).unwrap_err());
    assert!(error.contains("within 1 s") && error.contains("user data from gcp"), "{error}");
    // Far less than the patience for an answer of one request after the other.
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn an_unknown_machine_asks_no_network_at_all() {
    let imds = Imds::start(|_, _| (200, base64(USER_DATA.as_bytes())));
    let mut machine = in_cloud("sys_vendor", "QEMU", &imds);
    machine.p.timeout = Duration::from_millis(300);
    assert!(provision(&machine.p).is_err());
    assert!(imds.seen().is_empty());
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_process-user-data"))
}

#[test]
fn the_program_provisions_and_says_so() {
    let machine = Machine::new();
    let seed = seed(USER_DATA.as_bytes());
    let output = program()
        .args([
            "provision-files",
            "-t",
            "20",
            "--user-data-dir",
            text(seed.path()),
            "-root",
            text(machine.root.path()),
        ])
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    assert!(log.contains("user data is in place"), "{log}");
    assert!(!log.contains("pod-network"), "contents stay out of the log: {log}");
    assert_eq!(machine.read(paths::APF_CONFIG), APF);
}

#[test]
fn the_program_answers_one_on_errors_and_names_them() {
    for (args, word) in [
        (&["provision-files", "--user-data-fetch-timeout=soon"][..], "user-data-fetch-timeout"),
        (&["provision"], "provision-files"),
        (&["provision-files", "-t", "0", "-root", "/nonexistent"], "within 0 s"),
        (&["-x"], "-x"),
    ] {
        let output = program().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(word), "{error}");
    }
    for args in [&["-v"][..], &["--version"]] {
        let output = program().args(args).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains(podvm::VERSION));
    }
}

#[test]
fn the_seed_disk_names_the_machine() {
    let named = |meta_data: &str| {
        let (machine, _) = with_disk(|disk| {
            let files = seed(USER_DATA.as_bytes());
            std::fs::write(files.path().join("meta-data"), meta_data).unwrap();
            run(
                "genisoimage",
                &[
                    "-quiet",
                    "-volid",
                    "cidata",
                    "-joliet",
                    "-rock",
                    "-output",
                    text(disk),
                    text(files.path()),
                ],
            );
        });
        podvm::userdata::local_hostname(&machine.p.paths, Duration::ZERO)
    };
    assert_eq!(
        named("instance-id: x\nlocal-hostname: podvm-web-1\n").unwrap().as_deref(),
        Some("podvm-web-1")
    );
    assert_eq!(named("local-hostname: \"podvm-web-1\"\n").unwrap().as_deref(), Some("podvm-web-1"));
    assert_eq!(named("instance-id: x\n").unwrap(), None);
    let error = named("local-hostname: not a name\n").unwrap_err().to_string();
    assert!(error.contains("not a name"), "{error}");
    assert_eq!(podvm::userdata::local_hostname(&Machine::new().p.paths, Duration::ZERO).unwrap(), None);
}

//! The first program of the tests' instances: answers on a port, fails when its user data say so, ends when told.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Command, exit},
};

use serde::{Deserialize, Serialize};

/// The argument that asks for this part.
pub(crate) const ROLE: &str = "as-guest";
/// The port it answers on.
pub(crate) const PORT: u16 = 8080;
/// User data that make it fail at once.
pub(crate) const FAIL: &str = "fail at once";
/// User data that make it leave processes behind that ignore signals.
pub(crate) const BREED: &str = "start children";

/// What an instance says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) pid: u32,
    pub(crate) hostname: String,
    pub(crate) netns: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user_data: String,
    pub(crate) meta_data: String,
    pub(crate) mountinfo: String,
    pub(crate) processes: usize,
    pub(crate) open_files: Vec<String>,
}

pub(crate) fn main() -> ! {
    let user_data = fs::read_to_string("/media/cidata/user-data").unwrap_or_default();
    eprintln!("guest begins");
    let open_files: Vec<String> = fs::read_dir("/proc/self/fd").map_or_else(
        |e| vec![e.to_string()],
        |dir| dir.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect(),
    );
    if user_data == FAIL {
        eprintln!("guest gives up: told so by its user data");
        exit(3);
    }
    if user_data == BREED {
        for _ in 0..3 {
            let script = "trap '' TERM HUP INT; setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1000; done' & \
                          while :; do sleep 1000; done";
            // Nobody waits for it: it ends with the instance.
            std::mem::forget(Command::new("/bin/sh").args(["-c", script]).spawn().expect("sh starts"));
        }
    }
    let listener = TcpListener::bind(("0.0.0.0", PORT)).expect("the port is free in a fresh namespace");
    eprintln!("guest listens");
    for stream in listener.incoming().flatten() {
        // A client that goes away is no reason to end.
        let _ = serve(stream, &open_files);
    }
    exit(4)
}

fn serve(mut stream: TcpStream, open_files: &[String]) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let answer = match line.trim().split_once(' ') {
        Some(("sh", script)) => {
            let out = Command::new("/bin/sh").args(["-c", script]).output()?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!("{}{}", text(&out.stdout), text(&out.stderr))
        }
        Some(("write", path)) => format!("{:?}", fs::write(path, "written")),
        Some(("exit", code)) => exit(code.parse().unwrap_or(99)),
        _ => serde_json::to_string(&report(open_files)).map_err(std::io::Error::other)?,
    };
    stream.write_all(answer.as_bytes())
}

fn report(open_files: &[String]) -> Report {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_else(|e| format!("{path}: {e}"));
    Report {
        pid: std::process::id(),
        hostname: read("/proc/sys/kernel/hostname").trim().to_owned(),
        netns: fs::read_link("/proc/self/ns/net").map(|p| p.display().to_string()).unwrap_or_default(),
        args: std::env::args().collect(),
        env: std::env::vars().collect(),
        user_data: read("/media/cidata/user-data"),
        meta_data: read("/media/cidata/meta-data"),
        open_files: open_files.to_vec(),
        mountinfo: read("/proc/self/mountinfo"),
        processes: fs::read_dir("/proc").map_or(0, |d| {
            d.flatten().filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok()).count()
        }),
    }
}

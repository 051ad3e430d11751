//! The way to a machine whose bridge is in another network namespace: through the machine's own.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use serde::Deserialize;

use super::Words;

/// A connection to loopback answers at once or never.
const LIMIT: Duration = Duration::from_secs(5);

/// The part of an instance's record that is needed here.
#[derive(Deserialize)]
struct Record {
    process: Option<Process>,
}

/// Names one process for ever: its number may be used again, but not with the same start time in the same boot.
#[derive(Deserialize)]
struct Process {
    pid: i32,
    /// Field 22 of `/proc/PID/stat`, clock ticks since the boot.
    start_ticks: u64,
    boot_id: String,
}

impl Process {
    /// Opens the network namespace of the process; `None` when the process has ended.
    fn netns(&self) -> io::Result<Option<File>> {
        if fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim() != self.boot_id {
            return Ok(None);
        }
        let netns = match File::open(format!("/proc/{}/ns/net", self.pid)) {
            Ok(netns) => netns,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // The file was opened first: should the number be another process's by now, so is the start time.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        Ok((start_ticks(&stat) == Some(self.start_ticks)).then_some(netns))
    }
}

/// Reads the start time from a line of `/proc/PID/stat`, whose second field is a name that may hold anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // The next field is the third.
    after_name.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// What `machine connect` is asked for.
#[derive(Debug)]
pub(super) struct Connect {
    record: PathBuf,
    port: u16,
}

impl Connect {
    pub(super) fn parse(mut words: Words) -> Result<Self, String> {
        let (mut record, mut port) = (None, 22);
        while let Some(flag) = words.flag()? {
            match flag.as_str() {
                "--record" => record = Some(PathBuf::from(words.value(&flag)?)),
                "--port" => {
                    let text = words.text(&flag)?;
                    port = text.parse().map_err(|_| format!("--port is {text:?}, expected a port"))?;
                }
                _ => return Err(format!("unknown flag {flag}, expected --record or --port")),
            }
        }
        let record = record.ok_or("--record is missing: the file instance.json of a machine")?;
        Ok(Self { record, port })
    }

    /// Connects, and copies between the connection and standard input and output until both ends are closed.
    pub(super) fn run(&self) -> Result<(), String> {
        let stream = enter(&self.record, self.port)
            .map_err(|e| format!("cannot connect to the machine of {}: {e}", self.record.display()))?;
        let failed = |e: io::Error| format!("the connection broke: {e}");
        let mut up = stream.try_clone().map_err(failed)?;
        // The other direction decides when this ends; the thread goes with the process.
        thread::spawn(move || {
            let copied = copy(&mut io::stdin().lock(), &mut up);
            let _ = up.shutdown(Shutdown::Write);
            copied
        });
        let mut down = stream;
        copy(&mut down, &mut io::stdout().lock()).map_err(failed)
    }
}

/// Copies and hands on every piece at once: SSH waits for answers.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..n])?;
        to.flush()?;
    }
}

/// Connects to a port of a machine from inside its network namespace.
fn enter(record: &Path, port: u16) -> io::Result<TcpStream> {
    let record: Record = serde_json::from_slice(&fs::read(record)?)?;
    let Some(process) = record.process else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the machine has not started"));
    };
    let Some(netns) = process.netns()? else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the machine's first process has ended"));
    };
    // A thread of its own: its namespace is another one afterwards, and the socket keeps to it.
    let connected = thread::spawn(move || {
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT)
    });
    connected.join().unwrap_or_else(|_| Err(io::Error::other("the thread that connects panicked")))
}

/// Whether this way leads to the SSH server of a machine.
pub(crate) async fn works(record: &Path) -> bool {
    let record = record.to_owned();
    tokio::task::spawn_blocking(move || enter(&record, 22).is_ok()).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn parse(args: &[&str]) -> Result<Connect, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Connect::parse(Words::new(&args))
    }

    #[test]
    fn the_record_must_be_named() {
        assert_eq!(parse(&["--record", "/x", "--port", "2222"]).unwrap().port, 2222);
        assert!(parse(&[]).unwrap_err().contains("--record"));
        assert!(parse(&["--record", "/x", "--port", "many"]).unwrap_err().contains("many"));
    }

    #[test]
    fn another_process_with_the_number_of_a_dead_one_is_not_entered() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = |start_ticks, boot_id: &str| Process { pid, start_ticks, boot_id: boot_id.to_owned() };
        let started = start_ticks(&stat).unwrap();
        assert!(own(started, &boot_id).netns().unwrap().is_some());
        assert!(own(started + 1, &boot_id).netns().unwrap().is_none());
        assert!(own(started, "of another boot").netns().unwrap().is_none());
        let named = "7 (a) b 1) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_ticks(named), Some(4711));
    }

    #[test]
    fn a_machine_that_is_gone_is_named() {
        let error = parse(&["--record", "/no/such/instance.json"]).unwrap().run().unwrap_err();
        assert!(error.contains("/no/such/instance.json"), "{error}");
    }
}

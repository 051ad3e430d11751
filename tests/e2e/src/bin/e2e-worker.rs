//! Runs the assessments on a worker machine.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Arg, Command, value_parser};
use e2e::assess;
use e2e::node::Node;
use test_support::require_root;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let path = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("DIR").value_parser(value_parser!(PathBuf)).help(help)
    };
    let matches = Command::new("e2e-worker")
        .about("Starts gateway and daemon on this machine, plays a shim, and prints a line of JSON for each assessment")
        .arg(path("programs", "Folder with the programs of node and guest").required_unless_present("round-trip"))
        .arg(
            Arg::new("round-trip")
                .long("round-trip")
                .value_name("ADDRESS:PORT")
                .value_parser(value_parser!(SocketAddr))
                .help("Only print how many milliseconds a connection to it takes: a packet there and one back"),
        )
        .arg(path("dir", "Folder for sockets, state and logs").default_value("/var/lib/e2e"))
        .arg(Arg::new("flags").last(true).num_args(0..).value_parser(value_parser!(OsString)).help("More flags of the daemon"))
        .get_matches();
    if let Some(peer) = matches.get_one::<SocketAddr>("round-trip") {
        println!("{:.3}", round_trip(*peer)?);
        return Ok(true);
    }
    require_root("e2e-worker")?;
    let folder = |name: &str| matches.get_one::<PathBuf>(name).cloned().unwrap_or_default();
    let flags = matches.get_many::<OsString>("flags").into_iter().flatten().cloned().collect();
    let mut node = Node::new(&folder("dir"), &folder("programs"), flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut good = true;
    runtime.block_on(assess::run(&mut node, |outcome| {
        good &= outcome.error.is_none();
        println!(
            "{}",
            serde_json::to_string(&outcome).context("an outcome is plain data").unwrap_or_default()
        );
    }));
    if !good {
        eprintln!("{}", node.logs());
    }
    Ok(good)
}

/// The mean of three, after one that makes the neighbours known.
fn round_trip(peer: SocketAddr) -> Result<f64> {
    const TIMES: u32 = 3;
    let connect = || {
        let start = Instant::now();
        TcpStream::connect(peer).with_context(|| format!("cannot connect to {peer}"))?;
        anyhow::Ok(start.elapsed())
    };
    connect()?;
    let mut total = Duration::ZERO;
    for _ in 0..TIMES {
        total += connect()?;
    }
    Ok(total.as_secs_f64() * 1000.0 / f64::from(TIMES))
}

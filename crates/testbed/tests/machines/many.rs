//! Many machines at once: how long it takes and what it costs, printed and never judged.

use std::{
    collections::BTreeSet,
    fs,
    pin::Pin,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt, stream};
use test_support::processes;
use testbed::Host;

use crate::setup::{Kept, Setup};

/// Asks for the measurement, with the number of machines.
pub(crate) const FLAG: &str = "--machines";
/// SSH clients at the same time.
const CLIENTS: usize = 16;

pub(crate) fn main(machines: Option<&str>) -> ExitCode {
    let Some(machines) = machines.and_then(|n| n.parse().ok()).filter(|n| (1..=250).contains(n)) else {
        eprintln!("{FLAG} needs a number of machines from 1 to 250");
        return ExitCode::from(2);
    };
    match measure(machines) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn measure(machines: usize) -> Result<()> {
    let setup = Setup::new()?;
    let kept = Kept::default();
    let config = setup.config().with("subnet", "198.18.0.0/16");
    let testbed = setup.testbed_of(&config)?;
    let reservation = setup.reservation(machines)?;
    let free = available()?;

    let begin = Instant::now();
    let obtained = setup.run(async { Ok(testbed.init(&kept.context(&setup), &reservation).await?) })?;
    let init = begin.elapsed();
    ensure!(obtained.hosts.len() == machines, "{} of {machines} machines", obtained.hosts.len());

    let begin = Instant::now();
    let names = setup.run(async {
        let mut all: Vec<Pin<Box<dyn Future<Output = Result<String>> + Send + '_>>> = Vec::new();
        for host in &obtained.hosts {
            all.push(Box::pin(hostname(&setup, host)));
        }
        Ok(stream::iter(all).buffer_unordered(CLIENTS).collect::<Vec<_>>().await)
    })?;
    let ssh = begin.elapsed();
    let names = names.into_iter().collect::<Result<BTreeSet<String>>>()?;
    ensure!(names.len() == machines, "{} of {machines} machines answered by their names", names.len());
    let own = setup.machine_processes();
    let used = free.saturating_sub(available()?);
    let resident: u64 = own.iter().map(|pid| proportional(*pid)).sum();

    let begin = Instant::now();
    setup.destroy(&testbed, &kept)?;
    let destroy = begin.elapsed();
    setup.check_clean()?;

    let each = |kib: u64| kib as f64 / 1024.0 / machines as f64;
    println!("machines          {machines}");
    println!("init              {:.2} s, SSH servers up", init.as_secs_f64());
    println!("a command on each {:.2} s, {CLIENTS} clients at a time", ssh.as_secs_f64());
    println!("destroy           {:.2} s, nothing left", destroy.as_secs_f64());
    println!("processes         {} of the machines, {:.2} MiB for each machine", own.len(), each(resident));
    println!("memory            {:.2} MiB less available for each machine", each(used));
    Ok(())
}

async fn hostname(setup: &Setup, host: &Host) -> Result<String> {
    let mut command: Command = setup.ssh(host)?;
    command.arg("hostname");
    // The runtime's threads are in the namespace, and so are the programs that they start.
    let out = tokio::process::Command::from(command).output().await?;
    ensure!(out.status.success(), "{}: {}", host.alias, String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Returns the available memory of this host in KiB.
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line =
        text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).context("the kernel does not tell")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Returns a process's part of memory in KiB; what several share is counted once.
fn proportional(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

impl Setup {
    /// Processes of all machines: the first ones and what they started.
    fn machine_processes(&self) -> Vec<i32> {
        let first: BTreeSet<i32> = self.processes().into_iter().collect();
        let children = processes().into_iter().filter(|p| first.contains(&p.parent)).map(|p| p.pid);
        first.iter().copied().chain(children).collect::<BTreeSet<i32>>().into_iter().collect()
    }
}

//! Ends demos that were kept, or whose task is gone.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, geteuid};
use test_support::{Netns, wait_for};

use super::report::Report;
use crate::context::Context;
use crate::leftovers::{self, Seen};
use crate::setup;
use crate::world::{Marker, PREFIX, World};

/// Says how to look at a kept demo and how to end it.
pub(crate) fn how_to_look(world: &World, report: &Report) -> String {
    let (dir, node) = (world.dir.display(), world.node.name());
    let pod = world.pod(0);
    let more: String = world
        .machines()
        .how_to_look(&report.instance)
        .into_iter()
        .map(|(what, line)| format!("  {what:<13} {line}\n"))
        .collect();
    let enter = match world.daemon_pid() {
        Some(pid) if !setup::owns_the_system() => {
            format!("  first         nsenter --target {pid} --user --preserve-credentials --mount --net\n")
        }
        _ => String::new(),
    };
    format!(
        "\
the demo is kept. Look at it:
{enter}  the page      nsenter --net=/run/netns/{node} curl http://{address}:8080/
  sandboxes     {caactl} list --socket {socket}
  daemon log    {dir}/daemon.log
{more}  node          ip -netns {node} addr
  pod           ip -netns {podns} -details link ; tc -netns {podns} filter show dev eth0 ingress
End it:
  cargo xtask demo --clean",
        address = pod.address,
        podns = pod.netns.name(),
        socket = report.socket.display(),
        caactl = world.caactl().display(),
    )
}

/// Ends every demo that nobody looks after any more.
///
/// # Errors
///
/// When something of one cannot be removed.
pub(crate) fn run(context: &Context) -> Result<ExitCode> {
    let mut ended = 0;
    for (dir, marker) in abandoned(Path::new("/tmp"), geteuid())? {
        end(&dir, &marker).with_context(|| format!("cannot end the demo in {}", dir.display()))?;
        context.say(format!("ended the demo in {}", dir.display()));
        ended += 1;
    }
    if ended == 0 {
        context.say("there is no demo to end".to_owned());
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds demos that were kept, and demos whose task is gone.
fn abandoned(folder: &Path, own: Uid) -> Result<Vec<(PathBuf, Marker)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)?.filter_map(Result::ok) {
        let dir = entry.path();
        // Who is not root ends its own alone.
        if !own.is_root() && entry.metadata().is_ok_and(|meta| meta.uid() != own.as_raw()) {
            continue;
        }
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(text) = std::fs::read(dir.join("demo.json")) else { continue };
        let Ok(marker) = serde_json::from_slice::<Marker>(&text) else { continue };
        let owner_lives = Path::new(&format!("/proc/{}", marker.owner)).exists();
        if marker.kept || !owner_lives {
            found.push((dir, marker));
        }
    }
    Ok(found)
}

fn end(dir: &Path, marker: &Marker) -> Result<()> {
    for pid in &marker.pids {
        let Ok(raw) = i32::try_from(*pid) else { continue };
        // The number may belong to another program by now: only one that uses the folder is told to end.
        let ours = || leftovers::processes_of(dir).iter().any(|process| process.pid == raw);
        if ours() {
            kill(Pid::from_raw(raw), Signal::SIGTERM)?;
            let ended = wait_for("the process to end", Duration::from_secs(60), || (!ours()).then_some(()));
            if ended.is_err() {
                eprintln!("process {pid} does not end when it is asked to and is killed");
            }
        }
    }
    leftovers::kill_all(dir, &Seen::default());
    for name in &marker.netns {
        if let Ok(netns) = Netns::adopt(name) {
            netns.delete()?;
        }
    }
    std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_and_orphaned_demos_are_found_and_running_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        // No process has the highest number that a pid can take.
        let cases = [
            ("kept", std::process::id(), true),
            ("orphan", u32::MAX, false),
            ("running", std::process::id(), false),
        ];
        for (name, owner, kept) in cases {
            let dir = folder.path().join(format!("{PREFIX}{name}"));
            std::fs::create_dir(&dir).unwrap();
            let marker = Marker { owner, kept, ..Marker::default() };
            std::fs::write(dir.join("demo.json"), serde_json::to_vec(&marker).unwrap()).unwrap();
        }
        std::fs::create_dir(folder.path().join("other")).unwrap();
        let mut found: Vec<String> = abandoned(folder.path(), geteuid())
            .unwrap()
            .into_iter()
            .map(|(dir, _)| dir.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        found.sort();
        assert_eq!(found, [format!("{PREFIX}kept"), format!("{PREFIX}orphan")]);
        let stranger = Uid::from_raw(geteuid().as_raw() + 4242);
        assert!(abandoned(folder.path(), stranger).unwrap().is_empty(), "those of others are theirs to end");
    }

    #[test]
    fn ending_a_demo_ends_its_processes_namespaces_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join(format!("{PREFIX}x"));
        std::fs::create_dir(&dir).unwrap();
        let netns = test_support::unique("ppclean");
        std::mem::forget(Netns::create(&netns).unwrap());
        std::fs::write(dir.join("file"), "").unwrap();
        let mut child = std::process::Command::new("tail").arg("-f").arg(dir.join("file")).spawn().unwrap();
        wait_for("tail", Duration::from_secs(5), || {
            (!leftovers::processes_of(&dir).is_empty()).then_some(())
        })
        .unwrap();
        let marker = Marker { pids: vec![child.id()], netns: vec![netns.clone()], ..Marker::default() };
        end(&dir, &marker).unwrap();
        assert!(!dir.exists());
        assert!(!Path::new("/run/netns").join(netns).exists());
        assert!(!child.wait().unwrap().success());
    }
}

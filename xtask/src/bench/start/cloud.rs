//! The CPU time of the cloud, where it is a part of the daemon.
//!
//! The provider `local` makes machines within the daemon's process, on threads of its own: namespaces, links, control
//! groups, the machine's first program. A cloud does that on its own machines while the daemon waits.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The names of those threads begin with this.
const NAMES: &str = "local-";
/// The kernel forgets what a thread took when it ends, so they are looked at all the time. What one takes after the last
/// look counts as ours.
const REST: Duration = Duration::from_micros(500);
/// A new thread has the name of the one that started it until it has run for some microseconds.
const NAMELESS: Duration = Duration::from_micros(200);

/// Looks at the threads of a process until it is told to end.
pub(super) struct Cloud {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Duration>>,
}

impl Cloud {
    /// Begins; without a process there is nothing to see.
    pub(super) fn watch(daemon: Option<u32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watch = |pid: u32| {
            std::thread::spawn(move || {
                let tasks = format!("/proc/{pid}/task");
                let mut seen = BTreeMap::new();
                while !stopped.load(Ordering::Relaxed) {
                    look(Path::new(&tasks), &mut seen);
                    std::thread::sleep(REST);
                }
                let time = |seen| if let Seen::Cloud(time) = seen { time } else { Duration::ZERO };
                seen.into_values().map(time).sum()
            })
        };
        Self { stop, thread: daemon.map(watch) }
    }

    /// What these threads took since the beginning.
    pub(super) fn end(mut self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(JoinHandle::join);
        joined.map_or(Duration::ZERO, |time| time.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What is known of a thread.
#[derive(Clone, Copy)]
enum Seen {
    Cloud(Duration),
    Other,
}

/// Notes the time of each thread by its number.
fn look(tasks: &Path, seen: &mut BTreeMap<u32, Seen>) {
    // Threads end while they are looked at.
    for thread in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let Some(id) = thread.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let known = seen.get(&id).copied();
        if let Some(Seen::Other) = known {
            continue;
        }
        let Some(time) = nanoseconds(&thread.path()) else { continue };
        let is_cloud = match known {
            Some(_) => true,
            None => match fs::read_to_string(thread.path().join("comm")) {
                Ok(name) => name.starts_with(NAMES),
                Err(_) => continue,
            },
        };
        if is_cloud {
            seen.insert(id, Seen::Cloud(time));
        } else if time > NAMELESS {
            seen.insert(id, Seen::Other);
        }
    }
}

/// How long a thread has run, which is the first number of its `schedstat`.
fn nanoseconds(thread: &Path) -> Option<Duration> {
    let text = fs::read_to_string(thread.join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn threads_of_the_provider_count_also_when_they_have_ended() {
        let end = Arc::new(AtomicBool::new(false));
        let start = |name: &str| {
            let end = Arc::clone(&end);
            let work = move || {
                while !end.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            };
            std::thread::Builder::new().name(name.into()).spawn(work).unwrap()
        };
        let threads = ["local-launch", "another"].map(start);
        let mut seen = BTreeMap::new();
        let mut cloud = || {
            look(Path::new("/proc/self/task"), &mut seen);
            let is_cloud = |seen: &&Seen| matches!(seen, Seen::Cloud(time) if !time.is_zero());
            seen.values().filter(is_cloud).count()
        };
        let limit = Instant::now() + Duration::from_secs(20);
        while cloud() == 0 && Instant::now() < limit {
            std::thread::sleep(REST);
        }
        end.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(cloud(), 1);
    }

    #[test]
    fn without_a_daemon_there_is_no_cloud() {
        assert_eq!(Cloud::watch(None).end(), Duration::ZERO);
    }
}

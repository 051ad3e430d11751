//! The goals of a start, and of the daemon's memory.

use super::{CPU_OWN, Measured, Options, REPLY};
use crate::bench::goals::Goal;
use crate::machines::Provider;

impl Measured {
    /// Judges the goals of what was measured.
    pub(in crate::bench) fn goals(&self, options: &Options) -> Vec<Goal> {
        let mut goals = self.times(options);
        goals.extend(self.memory(options));
        goals
    }

    /// The goals of times.
    fn times(&self, options: &Options) -> Vec<Goal> {
        // A figure that is not there is one that misses its goal.
        let median =
            |name: &str| self.rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.at(0.5));
        let mut goals = Vec::new();
        // An emulated processor takes longer for the handshake of TLS alone.
        if options.provider == Provider::Local {
            let what = "StartVM answers after the forwarder listens, ms p50";
            goals.push(Goal::at_most(what, median(REPLY), 50.0));
        }
        let what = "our own share of StartVM outside waits, CPU ms p50";
        goals.push(Goal::at_most(what, median(CPU_OWN), 10.0));
        goals
    }

    /// The goals of the daemon's memory.
    pub(in crate::bench) fn memory(&self, options: &Options) -> Vec<Goal> {
        // What a daemon takes once would be most of the share of each of two machines.
        if options.provider != Provider::Local {
            return Vec::new();
        }
        let mib = |kib: f64| kib / 1024.0;
        let (idle, busy) = (self.idle.daemon as f64, self.busy.daemon as f64);
        let each = mib(busy - idle) / options.sandboxes as f64;
        vec![
            Goal::at_most("daemon idle, MiB resident", mib(idle), 15.0),
            Goal::at_most("daemon for each sandbox, MiB resident", each, 0.2),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Memory, Row};
    use super::*;

    fn measured(reply: &[f64], cpu: &[f64], busy: u64) -> Measured {
        let row = |name: &str, times: &[f64]| Row { name: name.to_owned(), times: times.to_vec() };
        let memory = |daemon| Memory { daemon, gateway: 0 };
        Measured {
            rows: vec![row(REPLY, reply), row(CPU_OWN, cpu)],
            idle: memory(15 << 10),
            busy: memory(busy),
        }
    }

    fn met(goals: &[Goal]) -> Vec<bool> {
        goals.iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn times_are_judged_by_the_median_and_memory_by_the_sandbox() {
        let options = Options::usual(Provider::Local);
        let good = measured(&[1.0, 50.0, 999.0], &[1.0, 10.0, 99.0], (15 << 10) + 20 * 204);
        assert_eq!(met(&good.goals(&options)), [true; 4]);
        let bad = measured(&[51.0], &[11.0], (15 << 10) + 20 * 205);
        assert_eq!(met(&bad.goals(&options)), [false, false, true, false]);
    }

    #[test]
    fn times_that_were_not_measured_are_missed() {
        let options = Options::usual(Provider::Local);
        let nothing = measured(&[], &[], 15 << 10);
        assert_eq!(met(&nothing.goals(&options)), [false, false, true, true]);
        assert_eq!(met(&nothing.memory(&options)), [true, true]);
    }

    #[test]
    fn of_machines_the_cpu_time_alone_is_judged() {
        let goals = measured(&[999.0], &[9.0], 99 << 10).goals(&Options::usual(Provider::Libvirt));
        assert_eq!(met(&goals), [true]);
        assert!(goals[0].what.contains("CPU"), "{goals:?}");
    }
}

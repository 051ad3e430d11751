//! Reads the daemon's metrics.

use std::time::Duration;

const NAME: &str = "peerpod_start_phase_seconds";

/// The phases of a start as the daemon names them, in order.
pub(crate) const PHASES: [&str; 7] =
    ["create_vm", "inspect", "prepare", "create", "tunnel", "connect", "start_vm"];

/// Returns the time spent in each phase so far, summed over all starts.
pub(crate) fn phases(text: &str) -> Vec<(String, Duration)> {
    let read = |phase: &str| {
        let line = text.lines().find(|line| {
            line.starts_with(&format!("{NAME}_sum{{")) && line.contains(&format!("phase=\"{phase}\""))
        })?;
        let seconds: f64 = line.rsplit(' ').next()?.parse().ok()?;
        Some((phase.to_owned(), Duration::try_from_secs_f64(seconds).ok()?))
    };
    PHASES.iter().filter_map(|phase| read(phase)).collect()
}

/// Returns how many sandboxes the daemon knows, also those whose end it has not finished.
pub(crate) fn sandboxes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("peerpod_sandboxes"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_in_order_and_missing_phases_left_out() {
        let text = "# TYPE peerpod_start_phase_seconds histogram\n\
            peerpod_start_phase_seconds_sum{provider=\"local\",phase=\"create\"} 0.25\n\
            peerpod_start_phase_seconds_count{provider=\"local\",phase=\"create\"} 2\n\
            peerpod_start_phase_seconds_sum{provider=\"local\",phase=\"inspect\"} 0.5\n";
        let found = phases(text);
        assert_eq!(found[0], ("inspect".to_owned(), Duration::from_millis(500)));
        assert_eq!(found[1], ("create".to_owned(), Duration::from_millis(250)));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn sandboxes_are_read_with_and_without_labels() {
        let text = "# HELP peerpod_sandboxes Sandboxes known to the daemon.\npeerpod_sandboxes{provider=\"a b\"} 3\n";
        assert_eq!(sandboxes(text), Some(3));
        assert_eq!(sandboxes("peerpod_sandboxes 0\n# EOF\n"), Some(0));
        assert_eq!(sandboxes("# EOF\n"), None);
    }
}

//! How long to wait after an error.

use std::time::Duration;

use cloud_providers::{Error, Retry};

/// Bounds of the pauses between two attempts at one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backoff {
    /// The first pause.
    pub least: Duration,
    /// No pause of ours is longer; the cloud may ask for a longer one.
    pub most: Duration,
    /// The least pause after an error that the same call gets again until somebody changes something.
    pub hopeless: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            least: Duration::from_secs(1),
            most: Duration::from_secs(300),
            hopeless: Duration::from_secs(60),
        }
    }
}

/// The most that a cloud's own word is believed.
const ASKED_MOST: Duration = Duration::from_secs(900);

impl Backoff {
    /// Returns the pause before attempt `attempt + 1`, where `attempt` counts from 1.
    ///
    /// It doubles, is spread by `seed` over its upper half so that records that failed together do not come back
    /// together, and is never shorter than the error asks for.
    pub fn pause(&self, error: Option<&Error>, attempt: u32, seed: u64) -> Duration {
        let doubled = self.least.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(self.most);
        let (asked, doubled) = match error.map(Error::retry) {
            Some(Retry::After { delay }) => (delay.min(ASKED_MOST), doubled),
            Some(Retry::Never) => (Duration::ZERO, doubled.max(self.hopeless)),
            _ => (Duration::ZERO, doubled),
        };
        let half = doubled / 2;
        let share = f64::from(spread(seed, attempt)) / f64::from(u32::MAX);
        asked.max(half + half.mul_f64(share))
    }
}

/// A number that looks random and is the same for the same input (the finaliser of splitmix64).
fn spread(seed: u64, attempt: u32) -> u32 {
    let mut z = seed ^ u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use cloud_providers::ErrorKind;

    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_follow_the_clouds_word() {
        let backoff = Backoff::default();
        let transient = Error::new(ErrorKind::Transient, "reset");
        let mut last = Duration::ZERO;
        for attempt in 1..=30 {
            let pause = backoff.pause(Some(&transient), attempt, 7);
            assert!(pause <= backoff.most, "{attempt}: {pause:?}");
            assert!(pause >= last.min(backoff.most) / 2, "{attempt}: {pause:?} after {last:?}");
            last = pause;
        }
        assert!(last >= backoff.most / 2);
        let asked = Error::new(ErrorKind::Throttled, "slow down")
            .with_retry(Retry::After { delay: Duration::from_secs(400) });
        assert!(backoff.pause(Some(&asked), 1, 7) >= Duration::from_secs(400));
        let silly = asked.with_retry(Retry::After { delay: Duration::from_secs(1 << 40) });
        assert!(backoff.pause(Some(&silly), 1, 7) <= ASKED_MOST);
        let never = Error::new(ErrorKind::Auth, "who are you?");
        assert!(backoff.pause(Some(&never), 1, 7) >= backoff.hopeless / 2);
    }

    #[test]
    fn records_that_failed_together_come_back_apart() {
        let backoff = Backoff::default();
        let pauses: std::collections::BTreeSet<Duration> =
            (0..100).map(|seed| backoff.pause(None, 5, seed)).collect();
        assert!(pauses.len() > 90);
    }
}

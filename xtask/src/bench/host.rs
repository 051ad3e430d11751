//! What the host of a virtual machine takes of its processors while something is measured.

use anyhow::{Context as _, Result};

/// The part of the processors' time above which a measurement says more of the host than of what is measured.
const DISTURBED: f64 = 0.01;

/// How often one is made again at most. On a host that is always busy the last one counts.
const TRIES: u32 = 3;

/// How long the processors have done what, in ticks since the boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// Those of now.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell them.
    pub(super) fn now() -> Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").context("read /proc/stat")?)
    }

    fn parse(stat: &str) -> Result<Self> {
        let line =
            stat.lines().find_map(|line| line.strip_prefix("cpu ")).context("no line `cpu` in /proc/stat")?;
        // user, nice, system, idle, iowait, irq, softirq and steal; what comes after is part of the first two.
        // https://www.kernel.org/doc/html/latest/filesystems/proc.html#miscellaneous-kernel-statistics-in-proc-stat
        let ticks: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .context("/proc/stat")?;
        let stolen = *ticks.get(7).context("/proc/stat tells no steal")?;
        Ok(Self { all: ticks.iter().sum(), stolen })
    }

    /// The part of the processors' time that the host gave to others since then.
    ///
    /// # Errors
    ///
    /// As for [`Ticks::now`].
    pub(super) fn stolen_since(self) -> Result<f64> {
        Ok(self.stolen_until(Self::now()?))
    }

    fn stolen_until(self, end: Self) -> f64 {
        let (stolen, all) = (end.stolen.saturating_sub(self.stolen), end.all.saturating_sub(self.all));
        if all == 0 { 0.0 } else { stolen as f64 / all as f64 }
    }
}

/// Makes measurements, those that the host disturbs again, and counts both.
#[derive(Debug)]
pub(super) struct Undisturbed {
    tries: u32,
    /// How many there are.
    pub(super) turns: u32,
    /// How often one of them was made again.
    pub(super) again: u32,
}

impl Undisturbed {
    /// For figures that are judged, or quick ones that say little anyhow.
    pub(super) fn new(quick: bool) -> Self {
        Self { tries: if quick { 0 } else { TRIES }, turns: 0, again: 0 }
    }

    /// Makes one for each of those that are compared, one right after the other; all of them again when the host
    /// disturbed any.
    ///
    /// # Errors
    ///
    /// When one fails, or the kernel does not tell what the host took.
    pub(super) fn turn<I: Copy, T>(
        &mut self,
        compared: &[I],
        one: impl FnMut(I) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.turn_by(compared, one, || {
            let before = Ticks::now()?;
            Ok(move || before.stolen_since())
        })
    }

    fn turn_by<I: Copy, T, End: FnOnce() -> Result<f64>>(
        &mut self,
        compared: &[I],
        mut one: impl FnMut(I) -> Result<T>,
        mut begin: impl FnMut() -> Result<End>,
    ) -> Result<Vec<T>> {
        self.turns += 1;
        let mut left = self.tries;
        let mut found = Vec::new();
        while found.len() < compared.len() {
            let end = begin()?;
            found.push(one(compared[found.len()])?);
            if end()? > DISTURBED && left > 0 {
                left -= 1;
                self.again += 1;
                found.clear();
            }
        }
        Ok(found)
    }

    /// What is said of it, if there is anything to say.
    pub(super) fn text(&self) -> Option<String> {
        (self.again > 0).then(|| {
            format!(
                "{} repetitions among {} measurements, during which the host gave more than {:.0} % of the processors' \
                 time to others",
                self.again,
                self.turns,
                DISTURBED * 100.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_takes_is_a_part_of_all_time() {
        let at = |line: &str| Ticks::parse(&format!("cpu  {line}\ncpu0 1 1 1 1 1 1 1 1 1 1\n")).unwrap();
        let before = at("10 0 10 100 0 0 0 5 7 0");
        let after = at("60 0 30 120 0 0 0 15 9 0");
        assert!((before.stolen_until(after) - 0.1).abs() < 1e-9);
        assert_eq!(after.stolen_until(before), 0.0);
        assert!(Ticks::parse("cpu  1 2 3 4").unwrap_err().to_string().contains("steal"));
        assert!(Ticks::parse("intr 5").unwrap_err().to_string().contains("cpu"));
    }

    /// Compares two, while the host takes these parts of each measurement, and then nothing.
    fn compare(quick: bool, parts: &[f64]) -> (Vec<usize>, Undisturbed) {
        let mut undisturbed = Undisturbed::new(quick);
        let (mut made, mut parts) = (0, parts.iter().copied());
        let one = |_| {
            made += 1;
            Ok(made)
        };
        let found = undisturbed.turn_by(&["ours", "floor"], one, || {
            let part = parts.next().unwrap_or_default();
            Ok(move || Ok(part))
        });
        (found.unwrap(), undisturbed)
    }

    #[test]
    fn all_that_is_compared_is_measured_again() {
        let (found, undisturbed) = compare(false, &[0.0, 0.02, 0.01]);
        assert_eq!(found, [3, 4], "and not the first one of before");
        assert_eq!((undisturbed.turns, undisturbed.again), (1, 1));
        let text = undisturbed.text().unwrap();
        assert!(text.starts_with("1 repetitions among 1 measurements") && text.contains("1 %"), "{text}");
        let (found, undisturbed) = compare(false, &[0.0, 0.0]);
        assert_eq!((found, undisturbed.text()), (vec![1, 2], None));
    }

    #[test]
    fn the_last_one_counts_on_a_host_that_is_always_busy() {
        let (found, undisturbed) = compare(false, &[0.5; 20]);
        assert_eq!((found, undisturbed.again), (vec![4, 5], 3));
        let (found, undisturbed) = compare(true, &[0.5; 20]);
        assert_eq!((found, undisturbed.again), (vec![1, 2], 0));
    }
}

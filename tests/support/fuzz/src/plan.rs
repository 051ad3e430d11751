//! How long and from where a target runs.

use std::path::PathBuf;
use std::time::Duration;

/// Variables that turn the short pass of a target into a long one; `cargo xtask fuzz` sets them.
pub mod variables {
    /// How long to run, in seconds.
    pub const SECONDS: &str = "PEERPOD_FUZZ_SECONDS";
    /// Where the random choices begin.
    pub const SEED: &str = "PEERPOD_FUZZ_SEED";
    /// A file to run in place of everything else.
    pub const REPEAT: &str = "PEERPOD_FUZZ_REPEAT";
    /// Where findings go.
    pub const FOLDER: &str = "PEERPOD_FUZZ_FOLDER";
}

/// How a target runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// How long; a fixed number of executions without it.
    pub(crate) time: Option<Duration>,
    pub(crate) seed: u64,
    pub(crate) repeat: Option<PathBuf>,
    /// Where the input in hand and findings are kept.
    pub(crate) folder: Option<PathBuf>,
}

impl Plan {
    /// Reads the variables of this process.
    ///
    /// # Panics
    ///
    /// When one is no number.
    pub(crate) fn from_process() -> Self {
        Self::from_variables(|name| std::env::var_os(name)?.into_string().ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| {
            let text = get(name)?;
            Some(
                text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is {text:?}, expected a whole number")),
            )
        };
        Self {
            time: number(variables::SECONDS).map(Duration::from_secs),
            seed: number(variables::SEED).unwrap_or(1),
            repeat: get(variables::REPEAT).map(PathBuf::from),
            folder: get(variables::FOLDER).map(PathBuf::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_without_variables_is_short_and_always_the_same() {
        let plan = Plan::from_variables(|_| None);
        assert!(plan.time.is_none() && plan.repeat.is_none() && plan.folder.is_none());
        assert_eq!(plan.seed, 1);
    }

    #[test]
    #[should_panic(expected = "PEERPOD_FUZZ_SECONDS is \"ten\", expected a whole number")]
    fn a_variable_that_is_no_number_is_named() {
        Plan::from_variables(|name| (name == variables::SECONDS).then(|| "ten".to_owned()));
    }
}

//! Which version follows which: semantic versioning, also before 1.0.

use anyhow::{Result, bail, ensure};
use semver::{Op, Version, VersionReq};

/// What a release means for those who use the package.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Change {
    /// What was wrong is right; nothing is new.
    Fix,
    /// Something is new or different, and what worked before still works.
    Feature,
    /// Something that worked before does not.
    Breaking,
}

impl Change {
    /// Returns the word for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Fix => "fix",
            Self::Feature => "feature",
            Self::Breaking => "breaking",
        }
    }
}

/// What is typed for the version of a release.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Level {
    /// Count up the last number.
    Patch,
    /// Count up the number in the middle.
    Minor,
    /// Count up the first number.
    Major,
    /// The next version that may break what worked: before 1.0 it counts up the number in the middle.
    Breaking,
    /// What the changelog and the other packages of the release suggest.
    Auto,
    /// This version.
    Exactly(Version),
}

impl Level {
    /// Parses the word or the version.
    ///
    /// # Errors
    ///
    /// Names what may be typed.
    pub(super) fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "patch" => Self::Patch,
            "minor" => Self::Minor,
            "major" => Self::Major,
            "breaking" => Self::Breaking,
            "auto" => Self::Auto,
            _ => match Version::parse(text) {
                Ok(version) => {
                    // Registries take two versions that differ in this alone for one.
                    ensure!(
                        version.build.is_empty(),
                        "the version {text} has build metadata: leave out +{}",
                        version.build
                    );
                    Self::Exactly(version)
                }
                Err(error) => bail!(
                    "`{text}` is neither a version such as 0.2.0 ({error}) nor one of: patch, minor, major, breaking, auto"
                ),
            },
        })
    }

    /// Returns the version that follows `last`; `suggested` is what `auto` stands for.
    pub(super) fn after(&self, last: &Version, suggested: Change) -> Version {
        let Version { major, minor, patch, .. } = *last;
        // What comes after 0.2.0-rc.1 is 0.2.0, whatever it is for.
        let release = Version::new(major, minor, patch);
        match self {
            Self::Exactly(version) => version.clone(),
            Self::Auto => next(last, suggested),
            Self::Breaking => next(last, Change::Breaking),
            Self::Patch if last.pre.is_empty() => Version::new(major, minor, patch + 1),
            Self::Minor if last.pre.is_empty() || patch > 0 => Version::new(major, minor + 1, 0),
            Self::Major if last.pre.is_empty() || patch > 0 || minor > 0 => Version::new(major + 1, 0, 0),
            Self::Patch | Self::Minor | Self::Major => release,
        }
    }
}

/// Returns the version that follows `last` when this changed.
///
/// Before 1.0 the number in the middle is that of changes that break, and before 0.1 the last one is.
pub(super) fn next(last: &Version, change: Change) -> Version {
    let Version { major, minor, patch, .. } = *last;
    if !last.pre.is_empty() {
        return Version::new(major, minor, patch);
    }
    match (major, minor, change) {
        (0, 0, _) => Version::new(0, 0, patch + 1),
        (0, _, Change::Breaking) => Version::new(0, minor + 1, 0),
        (0, ..) | (_, _, Change::Fix) => Version::new(major, minor, patch + 1),
        (_, _, Change::Feature) => Version::new(major, minor + 1, 0),
        (_, _, Change::Breaking) => Version::new(major + 1, 0, 0),
    }
}

/// Returns the most that may have changed between two versions by what their numbers promise.
pub(super) fn allowed(from: &Version, to: &Version) -> Change {
    if !compatible(from, to) {
        Change::Breaking
    } else if from.major == 0 || to.minor > from.minor {
        Change::Feature
    } else {
        Change::Fix
    }
}

/// Whether who asks for `from` may be given `to`.
pub(super) fn compatible(from: &Version, to: &Version) -> bool {
    VersionReq::parse(&format!("^{from}")).is_ok_and(|requirement| requirement.matches(to))
}

/// Whether a requirement is a pin, `=x.y.z`.
pub(super) fn is_pin(requirement: &VersionReq) -> bool {
    matches!(&requirement.comparators[..], [only] if only.op == Op::Exact && only.minor.is_some() && only.patch.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn the_next_version_follows_the_rules_before_and_after_1_0() {
        for (last, fix, feature, breaking) in [
            ("1.2.3", "1.2.4", "1.3.0", "2.0.0"),
            ("0.2.3", "0.2.4", "0.2.4", "0.3.0"),
            ("0.0.3", "0.0.4", "0.0.4", "0.0.4"),
            ("0.2.0-rc.1", "0.2.0", "0.2.0", "0.2.0"),
        ] {
            assert_eq!(next(&v(last), Change::Fix), v(fix), "{last}");
            assert_eq!(next(&v(last), Change::Feature), v(feature), "{last}");
            assert_eq!(next(&v(last), Change::Breaking), v(breaking), "{last}");
        }
    }

    #[test]
    fn numbers_promise_what_may_have_changed() {
        for (from, to, change) in [
            ("1.2.3", "1.2.4", Change::Fix),
            ("1.2.3", "1.3.0", Change::Feature),
            ("1.2.3", "2.0.0", Change::Breaking),
            ("0.1.0", "0.1.1", Change::Feature),
            ("0.1.0", "0.2.0", Change::Breaking),
            ("0.0.1", "0.0.2", Change::Breaking),
        ] {
            assert_eq!(allowed(&v(from), &v(to)), change, "{from} to {to}");
        }
    }

    #[test]
    fn levels_count_from_the_last_version() {
        let after = |level: &str, last: &str| Level::parse(level).unwrap().after(&v(last), Change::Feature);
        assert_eq!(after("patch", "0.1.9"), v("0.1.10"));
        assert_eq!(after("minor", "0.1.9"), v("0.2.0"));
        assert_eq!(after("major", "0.1.9"), v("1.0.0"));
        assert_eq!(after("breaking", "0.1.9"), v("0.2.0"));
        assert_eq!(after("breaking", "1.1.9"), v("2.0.0"));
        assert_eq!(after("auto", "1.1.9"), v("1.2.0"));
        assert_eq!(after("3.0.0-rc.1", "1.1.9"), v("3.0.0-rc.1"));
        assert_eq!(after("minor", "0.2.0-rc.1"), v("0.2.0"));
        assert_eq!(after("patch", "0.2.0-rc.1"), v("0.2.0"));
        assert_eq!(after("minor", "0.2.1-rc.1"), v("0.3.0"));
    }

    #[test]
    fn what_is_no_level_is_named() {
        for bad in ["", "0.2", "v0.2.0", "big", "01.2.3"] {
            let error = Level::parse(bad).unwrap_err().to_string();
            assert!(error.contains("patch, minor, major"), "{error}");
        }
        assert!(Level::parse("0.2.0+5").unwrap_err().to_string().contains("leave out +5"));
    }

    #[test]
    fn a_pin_names_all_three_numbers() {
        let pin = |text: &str| is_pin(&VersionReq::parse(text).unwrap());
        assert!(pin("=0.1.0") && pin("=0.2.0-rc.1"));
        assert!(!pin("0.1.0") && !pin("=0.1") && !pin("*") && !pin(">=0.1.0, <0.2.0"));
    }
}

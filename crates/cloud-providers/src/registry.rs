//! Which providers are linked into this program.

use crate::{Cloud, Error, OptionSpec, Result};

/// Announces a cloud. Written by [`crate::register!`].
#[derive(Debug)]
pub struct Registration {
    /// The name on the command line, in records and in reservations.
    pub name: &'static str,
    /// One sentence for lists.
    pub summary: &'static str,
    /// Version of the provider crate.
    pub version: &'static str,
    /// Every option.
    pub options: &'static [OptionSpec],
    /// Makes a fresh configuration value.
    pub new: fn() -> Box<dyn Cloud>,
}

inventory::collect!(Registration);

/// Announces the cloud of a provider crate.
///
/// A program sees it only when the crate is named in code (`use my_provider as _;`): a dependency that stands only in
/// the manifest is dropped by the linker, and its registration with it.
///
#[macro_export]
macro_rules! register {
    (name: $name:expr, summary: $summary:expr, options: $options:expr, cloud: $new:expr $(,)?) => {
        $crate::inventory::submit! {
            $crate::Registration {
                name: $name,
                summary: $summary,
                version: env!("CARGO_PKG_VERSION"),
                options: $options,
                new: || ::std::boxed::Box::new($new),
            }
        }
    };
}

/// Returns all registrations, sorted by name.
pub fn registered() -> Vec<&'static Registration> {
    let mut all: Vec<&'static Registration> = inventory::iter::<Registration>().collect();
    all.sort_by_key(|r| r.name);
    all
}

/// Finds a cloud by name.
///
/// # Errors
///
/// [`crate::ErrorKind::Config`] with the known names when there is none, or when two crates claim the name.
pub fn lookup(name: &str) -> Result<&'static Registration> {
    lookup_in(&registered(), name)
}

fn lookup_in<'a>(all: &[&'a Registration], name: &str) -> Result<&'a Registration> {
    let found: Vec<&&Registration> = all.iter().filter(|r| r.name == name).collect();
    match found[..] {
        [one] => Ok(one),
        [] => {
            let known = all.iter().map(|r| r.name).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none was compiled in".to_owned() } else { known };
            Err(Error::config(format!("unknown provider {name:?}")).with("known", known))
        }
        _ => Err(Error::config(format!("two crates register the provider {name:?}"))),
    }
}

/// Checks that what was compiled in is what registered, once at the start of a program.
///
/// # Errors
///
/// [`crate::ErrorKind::Internal`] naming what is missing or doubled.
pub fn check_registered(compiled_in: &[&str]) -> Result<()> {
    let all = registered();
    let mut problems = Vec::new();
    for name in compiled_in {
        if !all.iter().any(|r| r.name == *name) {
            problems.push(format!("provider {name} was compiled in but did not register"));
        }
    }
    for pair in all.windows(2) {
        if pair[0].name == pair[1].name {
            problems.push(format!("provider {} registered twice", pair[0].name));
        }
    }
    match Error::all(crate::ErrorKind::Internal, problems) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

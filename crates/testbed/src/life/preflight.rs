//! What can be known to be missing before anything is made.

use cloud_providers::{EnvSource, Error, ErrorKind, Result};

use crate::{Reservation, hooks};

/// Checks this machine: the `ssh` of the system, and what the document's hooks need.
///
/// # Errors
///
/// All problems together.
pub fn preflight(env: &dyn EnvSource, reservations: &[Reservation]) -> Result<()> {
    let mut problems = Vec::new();
    if let Err(error) = crate::ssh::program(env, "ssh", "install the OpenSSH client") {
        problems.push(error.to_string());
    }
    // Hooks belong to the document: they are the same in each of its reservations.
    if let Some(first) = reservations.first() {
        problems.extend(hooks::problems(env, first, reservations));
    }
    match Error::all(ErrorKind::Config, problems) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

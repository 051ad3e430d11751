#![doc = include_str!("../README.md")]

pub mod backoff;
pub mod cli;
pub mod cluster;
mod conditions;
pub mod controller;
pub mod decide;
pub mod drain;
pub mod election;
pub mod hooks;
pub mod http;
pub mod kubernetes;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
pub mod metrics;
pub mod model;
pub mod options;
pub mod profiles;
pub mod program;
pub mod providers;
pub mod settings;
pub mod sweep;
pub mod sweeper;
pub mod work;

use std::process::ExitCode;

/// The `main` of `peerpod-ctrl`, with every provider that is linked into the program.
///
/// This is all that a program with a provider of its own needs:
///
/// ```no_run
/// # mod my_provider {}
/// // A crate that only the manifest names is dropped by the linker, and its registration with it.
/// use my_provider as _;
///
/// fn main() -> std::process::ExitCode {
///     peerpod_ctrl::main()
/// }
/// ```
///
/// It reads the arguments and the environment of the process. Exit codes are those of [`cli::main`]; besides, a
/// provider that was chosen by a feature of this crate and did not register is a failure.
pub fn main() -> ExitCode {
    if let Err(error) = cloud_providers_bundle::check() {
        eprintln!("peerpod-ctrl: {}", error.report());
        return ExitCode::FAILURE;
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    cli::main(&args, &cloud_providers::ProcessEnv)
}

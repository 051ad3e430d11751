#![doc = include_str!("../README.md")]

pub mod annotations;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod diagnose;
pub mod files;
#[cfg(test)]
mod fuzz;
pub mod handover;
pub mod hooks;
pub mod http;
pub mod identity;
pub mod init_data;
pub mod journal;
pub mod kubernetes;
pub mod log;
mod memory;
pub mod metrics;
pub mod network;
pub mod orphans;
pub mod recent;
pub mod sandbox;
pub mod service;
pub mod socket;
pub mod status;
pub mod store;
pub mod trace;
pub mod user_data;
pub mod validate;
pub mod volumes;

use std::process::ExitCode;

/// The `main` of `cloud-api-adaptor`, with every provider that is linked into the program.
///
/// This is all that a program with a provider of its own needs:
///
/// ```no_run
/// # mod my_provider {}
/// // A crate that only the manifest names is dropped by the linker, and its registration with it.
/// use my_provider as _;
///
/// fn main() -> std::process::ExitCode {
///     caa::main()
/// }
/// ```
///
/// It reads the arguments and the environment of the process. Exit codes are those of [`cli::main`]; besides, a
/// provider that was chosen by a feature of this crate and did not register is a failure.
pub fn main() -> ExitCode {
    memory::limit_arenas(&cloud_providers::ProcessEnv);
    if let Err(error) = cloud_providers_bundle::check() {
        eprintln!("cloud-api-adaptor: {}", error.report());
        return ExitCode::FAILURE;
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    cli::main(&args, &cloud_providers::ProcessEnv)
}

//! A `cloud-api-adaptor` with the provider of this package.

use std::process::ExitCode;

// A crate that only the manifest names is dropped by the linker, and its registration with it.
use minimal_provider as _;

fn main() -> ExitCode {
    caa::main()
}

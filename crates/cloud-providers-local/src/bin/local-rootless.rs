//! Runs a program, and all that it starts, as root of namespaces of their own.

use std::process::ExitCode;

fn main() -> ExitCode {
    cloud_providers_local::rootless::main(std::env::args_os().skip(1))
}

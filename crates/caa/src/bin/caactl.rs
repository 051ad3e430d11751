//! Speaks to the hypervisor socket as a shim does, for people who debug a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    caa::ctl::main(std::env::args_os())
}

//! The node daemon with the providers that its features chose.

use std::process::ExitCode;

fn main() -> ExitCode {
    caa::main()
}

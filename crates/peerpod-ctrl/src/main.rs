//! The controller with the providers that its features chose.

use std::process::ExitCode;

fn main() -> ExitCode {
    peerpod_ctrl::main()
}

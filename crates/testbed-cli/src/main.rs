//! The program with the providers that its features chose.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = cloud_providers_bundle::check() {
        eprintln!("testbed: {}", error.report());
        return ExitCode::FAILURE;
    }
    testbed::main()
}

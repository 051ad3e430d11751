//! The node daemon with the providers that its features chose.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = cloud_providers_bundle::check() {
        eprintln!("cloud-api-adaptor: {}", error.report());
        return ExitCode::FAILURE;
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    caa::cli::main(&args, &cloud_providers::ProcessEnv)
}

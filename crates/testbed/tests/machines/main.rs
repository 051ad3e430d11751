//! Machines of this host through the adapter, as root, with the system's own SSH client; each test in a network
//! namespace of its own.
//!
//! The program plays two parts: it runs the tests, and it is the first program of their machines.

mod life;
mod many;
mod runner;
mod setup;
mod ssh;

use std::{ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|a| a == testbed::machine::COMMAND) {
        return testbed::machine::main(&args[1..]);
    }
    let args: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    // `cargo test -p testbed --test machines -- --machines 200` measures.
    if let Some(at) = args.iter().position(|a| a == many::FLAG) {
        return many::main(args.get(at + 1).map(String::as_str));
    }
    runner::main(&args, &[ssh::TESTS, life::TESTS])
}

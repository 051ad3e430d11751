//! Instances on real namespaces, as root, each test in a network namespace and a data folder of its own.
//!
//! The program plays three parts: it runs the tests, it is the first program of their instances (`guest`), and it is
//! a daemon that a test kills (`daemon`). So the instances need nothing from outside.

mod crash;
mod daemon;
mod failure;
mod guest;
mod lifecycle;
mod ownership;
mod root;
mod runner;
mod setup;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == guest::ROLE) {
        guest::main();
    } else if args.first().is_some_and(|a| a == daemon::ROLE) {
        daemon::main(&args[1..]);
    } else {
        runner::main(&args, &[lifecycle::TESTS, ownership::TESTS, failure::TESTS, crash::TESTS, root::TESTS]);
    }
}

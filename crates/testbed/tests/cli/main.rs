//! The program over a testbed whose steps can be told to fail, to wait, or to kill it.

mod desk;
mod interrupt;
mod life;
mod look;
mod network;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::var_os(desk::AS_PROGRAM).is_some() {
        return testbed::main();
    }
    let all = [life::ALL, interrupt::ALL, look::ALL, network::ALL].concat();
    let trials = all.iter().map(|(name, test)| {
        let test = *test;
        Trial::test(*name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A test: its name, and what it does.
type Test = (&'static str, fn());

/// Lists tests by the names of their functions.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        pub(crate) const ALL: &[crate::Test] = &[$((stringify!($name), $name)),+];
    };
}
pub(crate) use tests;

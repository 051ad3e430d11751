//! The same provider for a `testbed` that was built without it: put it on the `PATH`.

use my_testbed as _;

fn main() -> std::process::ExitCode {
    testbed::plugin::main()
}

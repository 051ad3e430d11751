//! `testbed` with a provider of one's own. Other providers are added by another line like the first.

use my_testbed as _;

fn main() -> std::process::ExitCode {
    testbed::main()
}

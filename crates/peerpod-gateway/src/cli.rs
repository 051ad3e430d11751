//! The command line of `peerpod-gateway`: what its program reads and the book lists.

use std::path::PathBuf;

use clap::{Arg, Command, value_parser};

/// Help, version, or an end after SIGINT or SIGTERM.
pub const DONE: (u8, &str) = (0, "help, version, or an end in order after SIGINT or SIGTERM");
/// It could not begin, or not go on.
pub const FAILED: (u8, &str) =
    (1, "it could not begin, such as when another gateway serves the socket, or not go on; the log says why");
/// The command line cannot be read.
pub const USAGE: (u8, &str) = (2, "wrong command line");

/// Every exit code with its meaning.
pub const EXITS: [(u8, &str); 3] = [DONE, FAILED, USAGE];

/// Returns the command line.
pub fn command() -> Command {
    Command::new("peerpod-gateway")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Owns the agent sockets of a node's sandboxes and holds the connections to their guests")
        .arg(
            Arg::new("control-socket")
                .long("control-socket")
                .value_name("PATH")
                .default_value("/run/peerpod/gateway.sock")
                .value_parser(value_parser!(PathBuf))
                .help("Unix socket for the daemon; only root and the own user may connect"),
        )
        .arg(
            Arg::new("log-format")
                .long("log-format")
                .value_name("FORMAT")
                .default_value("text")
                .value_parser(["json", "text"])
                .help("How the log is written to standard error"),
        )
        .arg(
            Arg::new("log-level")
                .long("log-level")
                .value_name("LEVEL")
                .default_value("info")
                .value_parser(["error", "warn", "info", "debug", "trace"])
                .help("The least important messages to log"),
        )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}

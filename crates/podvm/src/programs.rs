//! The command lines of this crate's programs: their options and exit codes, which the programs use and the book lists.

use crate::flags::Flag;
use crate::init::Step;
use crate::paths;

/// An exit code and what it says.
pub type Exit = (u8, &'static str);

/// Options of `agent-protocol-forwarder`.
pub const FORWARDER_FLAGS: &[Flag] = &[
    Flag::switch("version", "print the version"),
    Flag::value("config", paths::APF_CONFIG, "configuration file"),
    Flag::value("listen", "0.0.0.0:15150", "address to listen on"),
    Flag::value("kata-agent-socket", paths::AGENT_SOCKET, "socket of the agent"),
    Flag::value("pod-namespace", paths::POD_NETNS, "path of the pod's network namespace"),
    Flag::value("host-interface", "", "second interface of this machine, for a dedicated tunnel"),
    Flag::value("ca-cert-file", "", "CA certificate for clients"),
    Flag::value("cert-file", "", "certificate of this server"),
    Flag::value("cert-key", "", "key of this server"),
    Flag::switch("tls-skip-verify", "refused: clients are always verified"),
    Flag::switch("disable-tls", "serve plain TCP; for trusted networks only"),
    Flag::value("bind-source-dirs", "", "folders below which missing bind sources are made, by commas"),
    Flag::value(
        "link-grace",
        "2m",
        "how long the calls of a node that lost its connection are kept; 0 for not at all",
    ),
    Flag::switch("verbose", "log details"),
];

/// Exit codes of `agent-protocol-forwarder`.
pub const FORWARDER_EXITS: [Exit; 2] = [
    (0, "help, version, or an end in order after the first SIGTERM or SIGINT"),
    (
        1,
        "wrong command line, a configuration that cannot be used, a network that cannot be set up, or a second signal",
    ),
];

/// Options of `process-user-data`.
pub const USER_DATA_FLAGS: &[Flag] = &[
    Flag::switch("version", "print the version").with_short("v"),
    Flag::value("user-data-fetch-timeout", "180", "seconds to wait for complete user data").with_short("t"),
    Flag::value("user-data-dir", "", "folder with the file user-data; no other source is looked at"),
    Flag::value("root", "/", "folder that stands for the root of the file system"),
    Flag::switch("verbose", "log details"),
];

/// Exit codes of `process-user-data`.
pub const USER_DATA_EXITS: [Exit; 2] = [
    (0, "help, version, or every file is written"),
    (1, "wrong command line, no complete user data in time, or a file that cannot be written"),
];

/// Options of `podvm-init`.
pub const INIT_FLAGS: &[Flag] = &[
    Flag::switch("version", "print the version"),
    Flag::value(
        "guest-dir",
        "/usr/libexec/peerpod",
        "folder of process-user-data and agent-protocol-forwarder",
    ),
    Flag::value(
        "agent",
        "",
        "agent to start, default kata-agent of the guest folder; its arguments stand after --",
    ),
    Flag::value("agent-socket", paths::INIT_AGENT_SOCKET, "socket that the agent makes"),
    Flag::value("agent-timeout", "60", "seconds the agent may take to make its socket"),
    Flag::value("forwarder-port", "15150", "port of the forwarder"),
    Flag::value("forwarder-options", "", "further options of the forwarder, by blanks"),
    Flag::value("user-data-dir", "", "folder with the file user-data; default: look for a source"),
    Flag::value("user-data-fetch-timeout", "180", "seconds to wait for complete user data"),
    Flag::value("restarts", "3", "how often the agent, and how often the forwarder, is started again"),
    Flag::value("end-timeout", "10", "seconds a child may take to end before it is killed"),
    Flag::switch("mount", "mount /proc, /sys, /dev and /run where they are missing"),
    Flag::switch("verbose", "log details"),
];

/// `podvm-init` did what it was asked for.
pub const INIT_DONE: Exit = (0, "help, version, or ended by a signal");
/// `podvm-init` cannot use its command line.
pub const INIT_USAGE: Exit = (2, "wrong command line");

/// Returns the exit codes of `podvm-init`: a failure has that of its step.
pub fn init_exits() -> Vec<Exit> {
    let steps = Step::ALL.iter().map(|step| (step.exit_code(), step.meaning()));
    [INIT_DONE, INIT_USAGE].into_iter().chain(steps).collect()
}

/// Writes options as a Markdown table.
pub fn flags_table(flags: &[Flag]) -> String {
    let mut table = "| option | default | |\n| --- | --- | --- |\n".to_owned();
    for flag in flags {
        let short = flag.short.map(|short| format!(", `-{short}`")).unwrap_or_default();
        let default = match flag.default {
            "" => String::new(),
            text => format!("`{text}`"),
        };
        table += &format!("| `-{}`{short} | {default} | {} |\n", flag.name, flag.help);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_step_of_the_init_has_a_code_of_its_own() {
        let exits = init_exits();
        let codes: BTreeSet<u8> = exits.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes.len(), exits.len());
        // The list has every step: their codes follow one another.
        assert!((10..=20).all(|code| codes.contains(&code)) && exits.len() == 13, "{codes:?}");
    }

    #[test]
    fn an_option_is_a_row() {
        let flags = [Flag::value("root", "/", "folder").with_short("r"), Flag::switch("verbose", "more")];
        let rows: Vec<String> = flags_table(&flags).lines().skip(2).map(str::to_owned).collect();
        assert_eq!(rows, ["| `-root`, `-r` | `/` | folder |", "| `-verbose` | `false` | more |"]);
    }
}

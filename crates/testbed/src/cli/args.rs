//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, Command, value_parser};
use clap_complete::Shell;

use super::exits;

/// What the help says below the exit codes.
const OTHER_EXITS: &str =
    "`ssh` and `exec` end with the status of the command instead; 255 means that a machine was not reached.";

/// The exit codes as the help has them.
fn exit_text() -> String {
    let rows = exits::ALL.iter().map(|(code, meaning)| format!("  {code}  {meaning}\n"));
    format!("Exit codes:\n{}\n{OTHER_EXITS}", rows.collect::<String>())
}

/// Returns the whole command line.
pub fn command() -> Command {
    Command::new("testbed")
        .about("From a reservation.yaml to machines one can SSH into, and back")
        .version(env!("CARGO_PKG_VERSION"))
        .after_long_help(format!("{}\n{}", cloud_providers::provider_list(), exit_text()))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .infer_subcommands(false)
        .args(global())
        .subcommands(starting())
        .subcommands(life())
        .subcommands(looking())
        .subcommands(machines())
        .subcommands(others())
}

fn global() -> [Arg; 5] {
    [
        Arg::new("file")
            .long("file")
            .short('f')
            .value_name("FILE")
            .global(true)
            .value_parser(value_parser!(PathBuf))
            .help("The document; default: reservation.yaml"),
        Arg::new("env")
            .long("env")
            .short('e')
            .value_name("DIR")
            .global(true)
            .value_parser(value_parser!(PathBuf))
            .help("Folder of the environment; default: TESTBED_ENV, else testbed_<experiment> beside the document for `up`, and the link `current` for later commands"),
        Arg::new("json")
            .long("json")
            .global(true)
            .action(ArgAction::SetTrue)
            .help("Print JSON: one document, or one a line with the result last where it takes time"),
        Arg::new("verbose")
            .long("verbose")
            .short('v')
            .global(true)
            .action(ArgAction::Count)
            .help("Tell more; twice for everything"),
        Arg::new("quiet")
            .long("quiet")
            .short('q')
            .global(true)
            .action(ArgAction::SetTrue)
            .conflicts_with("verbose")
            .help("Tell errors only"),
    ]
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn starting() -> [Command; 3] {
    [
        Command::new("new")
            .about("Writes a commented reservation.yaml for a provider")
            .arg(Arg::new("provider").required(true).help("The provider, see `testbed providers`"))
            .arg(
                Arg::new("to")
                    .value_name("FILE")
                    .default_value("reservation.yaml")
                    .value_parser(value_parser!(PathBuf))
                    .help("The file to write, which must not be there yet; - prints it"),
            ),
        Command::new("check").about(
            "Says everything that is wrong with a document, and with this machine for it; makes nothing",
        ),
        Command::new("plan").about("Says what `up` would make; makes nothing"),
    ]
}

fn life() -> [Command; 3] {
    let force = || flag("force-deploy", "Make machines anew even where they are there already");
    let timeout = || {
        Arg::new("ssh-timeout")
            .long("ssh-timeout")
            .value_name("DURATION")
            .default_value("10m")
            .value_parser(duration)
            .help("How long machines may take until they answer over SSH, such as 90s or 10m")
    };
    [
        Command::new("up")
            .about("Gets machines, waits until they answer over SSH, and provisions them")
            .arg(force())
            .arg(flag("provision", "Run the provisioning again also where nothing changed"))
            .arg(timeout()),
        Command::new("init").about("Gets machines, and no more").arg(force()),
        Command::new("destroy")
            .about("Gives everything back and proves that nothing is left")
            .arg(flag(
                "soft",
                "Keep the machines: undo the emulation, run the hooks of `destroy`, give addresses back",
            ))
            .arg(flag("no-hooks", "Go on when a hook of `destroy` fails").conflicts_with("soft")),
    ]
}

fn looking() -> [Command; 3] {
    [
        Command::new("status").about("Says how far the experiment is, and what the providers say is there"),
        Command::new("hosts")
            .about("Lists the machines")
            .arg(Arg::new("role").help("Only machines of this role")),
        Command::new("inventory").about("Prints the machines for other programs").arg(
            Arg::new("format")
                .long("format")
                .default_value("yaml")
                .value_parser(["ini", "yaml", "json", "ssh-config"])
                .help("ini and yaml are Ansible's"),
        ),
    ]
}

fn machines() -> [Command; 4] {
    let network = || {
        Arg::new("network")
            .long("network")
            .value_name("NAME")
            .help("The network; default: the first with a pool")
    };
    [
        Command::new("ssh")
            .about("Logs in to a machine, or runs a command on it")
            .arg(Arg::new("host").required(true).help("The machine, or a role that only one machine has"))
            .arg(
                Arg::new("option")
                    .long("option")
                    .short('o')
                    .action(ArgAction::Append)
                    .allow_hyphen_values(true)
                    .value_name("ARG")
                    .help("An argument for ssh, such as -L8080:localhost:80; may be given several times"),
            )
            .arg(Arg::new("command").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true)),
        Command::new("exec")
            .about("Runs a command on all machines of a role, at the same time")
            .arg(
                Arg::new("role")
                    .required(true)
                    .help("Roles or machines, separated by commas; `all` is every machine"),
            )
            .arg(
                Arg::new("command")
                    .required(true)
                    .num_args(1..)
                    .trailing_var_arg(true)
                    .allow_hyphen_values(true),
            ),
        Command::new("ips")
            .about("Free addresses of the experiment's networks")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(Command::new("list").about("Lists pools and who has which address").arg(network()))
            .subcommand(
                Command::new("take")
                    .about("Takes an address out of a pool and prints it")
                    .arg(network())
                    .arg(
                        Arg::new("owner")
                            .long("owner")
                            .value_name("NAME")
                            .help("Who it is for: the same name gets the same address again"),
                    )
                    .arg(flag("ipv4", "An IPv4 address").short('4'))
                    .arg(flag("ipv6", "An IPv6 address").short('6').conflicts_with("ipv4")),
            )
            .subcommand(
                Command::new("give").about("Gives addresses back to their pool").arg(
                    Arg::new("address")
                        .required(true)
                        .num_args(1..)
                        .value_parser(value_parser!(std::net::IpAddr)),
                ),
            ),
        emulate(),
    ]
}

fn emulate() -> Command {
    let value =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("VALUE").help(help);
    Command::new("emulate")
        .about("Delay, rate and loss between machines")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("apply")
                .about("Applies the document's network_constraints, or those given here, in place of what was applied")
                .arg(
                    Arg::new("constraints")
                        .long("constraints")
                        .value_name("FILE")
                        .value_parser(value_parser!(PathBuf))
                        .help("A file with network_constraints, in place of the document's"),
                )
                .arg(value("src", "Role that sends; with it, only what is given here is applied").conflicts_with("constraints"))
                .arg(value("dst", "Role that receives").requires("src"))
                .arg(value("delay", "Such as 25ms").requires("src"))
                .arg(value("rate", "Such as 100mbit").requires("src"))
                .arg(value("loss", "Such as 0.1%").requires("src"))
                .arg(flag("one-way", "Not from dst to src, too").requires("src")),
        )
        .subcommand(Command::new("show").about("Shows what is applied, as the machines' kernels say"))
        .subcommand(Command::new("clear").about("Takes everything away that was applied"))
}

fn others() -> [Command; 3] {
    [
        Command::new("providers").about("Lists the providers that a document can name"),
        Command::new("schema").about("Prints the JSON schema of the document, for editors"),
        Command::new("completions")
            .about("Prints completions for a shell")
            .arg(Arg::new("shell").required(true).value_parser(value_parser!(Shell))),
    ]
}

fn duration(text: &str) -> Result<Duration, String> {
    let allowed = "write a duration such as 90s, 10m or 1h";
    cloud_providers::parse_go_duration(text)
        .map_err(|_| allowed.to_owned())
        .and_then(|duration| if duration.is_zero() { Err(allowed.to_owned()) } else { Ok(duration) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_follows_a_machine_is_its_command() {
        let matches = command()
            .try_get_matches_from(["testbed", "ssh", "-o", "-v", "web-0", "ls", "-l", "--json"])
            .unwrap();
        let (_, ssh) = matches.subcommand().unwrap();
        let words: Vec<_> = ssh.get_many::<String>("command").unwrap().collect();
        assert_eq!(words, ["ls", "-l", "--json"]);
        assert!(!ssh.get_flag("json"));
    }
}

//! The command line of `caactl`.

use std::{
    collections::HashMap,
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use peerpod_proto::{
    Client, Code, Status,
    envelope::KeyValue,
    messages::{hypervisor, podvminfo},
    server::encode,
};

use crate::{
    annotations::keys,
    config::DEFAULT_STATE_DIR,
    daemon::STATE_IN_RUN,
    diagnose,
    journal::Journal,
    sandbox::SandboxInfo,
    service::{NODE_JOURNAL, NODE_LIST, NODE_SERVICE},
    store::SandboxRecord,
};

const DONE: (u8, &str) = (0, "done");
const REFUSED: (u8, &str) =
    (1, "the daemon refused, and its status is printed; or something failed on this side, such as a file");
const USAGE: (u8, &str) = (2, "wrong command line");
const UNREACHABLE: (u8, &str) = (3, "no daemon answers at the socket");

/// Every exit code of `caactl` with its meaning.
pub const EXITS: [(u8, &str); 4] = [DONE, REFUSED, USAGE, UNREACHABLE];

/// How long what only looks may take, unless said otherwise: a gateway keeps calls for a daemon that is not there.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Runs one command. `args` begins with the program's name.
///
/// Exit codes are [`EXITS`].
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        // Help and version come this way, too.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE.0 } else { DONE.0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("caactl: start the runtime: {error}");
            return ExitCode::from(REFUSED.0);
        }
    };
    match runtime.block_on(run(&matches)) {
        Ok(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::from(DONE.0)
        }
        Err(error) => {
            eprintln!("caactl: {error:#}");
            ExitCode::from(if error.is::<Unreachable>() { UNREACHABLE.0 } else { REFUSED.0 })
        }
    }
}

/// The daemon does not answer at its socket.
#[derive(Debug, thiserror::Error)]
#[error("no daemon answers at {0}")]
struct Unreachable(PathBuf);

/// Returns the command line.
pub fn command() -> Command {
    let id = || Arg::new("id").required(true).help("Sandbox id");
    let timeout = || {
        Arg::new("timeout")
            .long("timeout")
            .value_name("SECONDS")
            .value_parser(value_parser!(u64))
            .help("Deadline of the call; default: none")
    };
    Command::new("caactl")
        .about("Speaks to the cloud-api-adaptor of this node as a Kata shim does")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("socket")
                .long("socket")
                .global(true)
                .default_value("/run/peerpod/hypervisor.sock")
                .value_parser(value_parser!(PathBuf))
                .help("Socket of the daemon"),
        )
        .arg(Arg::new("json").long("json").global(true).action(ArgAction::SetTrue).help("Print JSON"))
        .subcommand(
            Command::new("create")
                .about("Plans a sandbox and prints the path of its agent socket")
                .arg(id())
                .arg(Arg::new("pod").long("pod").required(true).help("Name of the pod"))
                .arg(Arg::new("namespace").long("namespace").default_value("default").help("Namespace of the pod"))
                .arg(Arg::new("netns").long("netns").required(true).help("Path of the pod's network namespace"))
                .arg(
                    Arg::new("annotation")
                        .long("annotation")
                        .value_name("KEY=VALUE")
                        .action(ArgAction::Append)
                        .help("Annotation of the sandbox; machine_type, default_vcpus and the like may be short"),
                )
                .arg(timeout()),
        )
        .subcommand(Command::new("start").about("Starts the VM of a sandbox and waits for its agent").arg(id()).arg(timeout()))
        .subcommand(Command::new("stop").about("Ends a sandbox; unknown ones are fine").arg(id()).arg(timeout()))
        .subcommand(
            Command::new("info")
                .about("Prints the instance id of a pod")
                .arg(Arg::new("pod").required(true).help("Name of the pod"))
                .arg(Arg::new("namespace").default_value("default").help("Namespace of the pod"))
                .arg(Arg::new("wait").long("wait").action(ArgAction::SetTrue).help("Wait until it is known"))
                .arg(timeout()),
        )
        .subcommand(
            Command::new("list")
                .about("Lists the sandboxes of this node, with what went wrong")
                .arg(timeout().help("Deadline of the call; default: 10")),
        )
        .subcommand(
            Command::new("diagnose")
                .about("Collects what is known of sandboxes into one file, without secrets; also when no daemon runs")
                .arg(Arg::new("sandbox").value_name("SANDBOX").help("Sandbox id or its beginning; default: all"))
                .arg(
                    Arg::new("output")
                        .short('o')
                        .long("output")
                        .value_name("FILE")
                        .value_parser(value_parser!(PathBuf))
                        .help("File to write; default: peerpod-diagnose-<time>.tar.gz"),
                )
                .arg(
                    Arg::new("state-dir")
                        .long("state-dir")
                        .value_name("DIR")
                        .value_parser(value_parser!(PathBuf))
                        .help("Where the journal is, for when no daemon runs; default: /var/lib/peerpod or /run/peerpod/state"),
                )
                .arg(
                    Arg::new("gateway-socket")
                        .long("gateway-socket")
                        .value_name("PATH")
                        .default_value("/run/peerpod/gateway.sock")
                        .value_parser(value_parser!(PathBuf))
                        .help("Control socket of the gateway, for when no daemon runs"),
                ),
        )
        .subcommand(
            Command::new("journal")
                .about("Shows the records of the journal, without keys and user data, as JSON")
                .arg(timeout().help("Deadline of the call; default: 10"))
                .arg(
                    Arg::new("state-dir")
                        .long("state-dir")
                        .value_name("DIR")
                        .value_parser(value_parser!(PathBuf))
                        .help("Read the journal in this folder instead of asking a daemon; for when none runs"),
                ),
        )
}

async fn run(matches: &ArgMatches) -> Result<String> {
    if let Some(("journal", args)) = matches.subcommand()
        && let Some(dir) = args.get_one::<PathBuf>("state-dir")
    {
        let records = Journal::peek(dir).await?;
        return pretty(&records.iter().map(SandboxRecord::view).collect::<Vec<_>>());
    }
    let socket: &PathBuf = matches.get_one("socket").context("--socket has a default")?;
    if let Some(("diagnose", args)) = matches.subcommand() {
        return diagnose(socket, args, matches.get_flag("json")).await;
    }
    let client = Client::connect_unix(socket)
        .await
        .map_err(|e| anyhow::Error::new(e).context(Unreachable(socket.clone())))?;
    let json = matches.get_flag("json");
    let (name, args) = matches.subcommand().context("a command is required")?;
    let text = |key: &str| args.try_get_one::<String>(key).ok().flatten().cloned().unwrap_or_default();
    let timeout = args.try_get_one::<u64>("timeout").ok().flatten().map(|s| Duration::from_secs(*s));
    let mut lines = String::new();
    let mut field = |key: &str, value: String| {
        lines = if json { format!("{}\n", serde_json::json!({ key: value })) } else { format!("{value}\n") };
    };
    match name {
        "create" => {
            let request = hypervisor::CreateVmRequest {
                id: text("id"),
                annotations: annotations(args)?,
                network_namespace_path: text("netns"),
            };
            let reply: hypervisor::CreateVmResponse = client
                .call(hypervisor::SERVICE, hypervisor::CREATE_VM, &request, timeout)
                .await
                .map_err(refused)?;
            field("agentSocketPath", reply.agent_socket_path);
        }
        "start" => {
            let request = hypervisor::StartVmRequest { id: text("id") };
            // No shim: that this process ends says nothing of the sandbox.
            let no_shim = vec![KeyValue { key: peerpod_gateway::SHIM_PID.into(), value: "0".into() }];
            let payload = encode(&request);
            client
                .request(hypervisor::SERVICE, hypervisor::START_VM, payload, timeout, no_shim)
                .await
                .map_err(refused)?;
            field("started", request.id);
        }
        "stop" => {
            let request = hypervisor::StopVmRequest { id: text("id") };
            let _: hypervisor::StopVmResponse = client
                .call(hypervisor::SERVICE, hypervisor::STOP_VM, &request, timeout)
                .await
                .map_err(refused)?;
            field("stopped", request.id);
        }
        "info" => {
            let request = podvminfo::GetInfoRequest {
                pod_name: text("pod"),
                pod_namespace: text("namespace"),
                wait: args.get_flag("wait"),
            };
            let reply: podvminfo::GetInfoResponse = client
                .call(podvminfo::SERVICE, podvminfo::GET_INFO, &request, timeout)
                .await
                .map_err(refused)?;
            field("vmId", reply.vm_id);
        }
        "journal" => {
            let reply = client
                .request(NODE_SERVICE, NODE_JOURNAL, Bytes::new(), timeout.or(Some(LOOK_LIMIT)), Vec::new())
                .await
                .map_err(|status| unanswered(status, socket))?;
            lines = pretty(&serde_json::from_slice::<Vec<_>>(&reply).context("read the daemon's journal")?)?;
        }
        _ => {
            let reply = client
                .request(NODE_SERVICE, NODE_LIST, Bytes::new(), timeout.or(Some(LOOK_LIMIT)), Vec::new())
                .await
                .map_err(|status| unanswered(status, socket))?;
            if json {
                lines = format!("{}\n", String::from_utf8_lossy(&reply));
            } else {
                lines = table(&serde_json::from_slice(&reply).context("read the daemon's list")?);
            }
        }
    }
    Ok(lines)
}

fn pretty(records: &[serde_json::Value]) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(records)?))
}

async fn diagnose(socket: &Path, args: &ArgMatches, json: bool) -> Result<String> {
    let path = |key: &str| args.get_one::<PathBuf>(key).cloned();
    let state_dirs = match path("state-dir") {
        Some(dir) => vec![dir],
        None => vec![DEFAULT_STATE_DIR.into(), STATE_IN_RUN.into()],
    };
    let request = diagnose::Request {
        sandbox: args.get_one::<String>("sandbox").cloned(),
        socket: socket.to_owned(),
        gateway: path("gateway-socket").context("--gateway-socket has a default")?,
        state_dirs,
        output: path("output"),
    };
    let (path, summary) = diagnose::run(request).await?;
    let path = path.display();
    Ok(match json {
        true => format!("{}\n", serde_json::json!({ "file": path.to_string(), "summary": summary })),
        false => format!("{summary}\n{path}\n"),
    })
}

fn refused(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{} ({:?}, {})", status.message, status.code(), Code::from(status.code) as i32)
}

/// As [`refused`]; a look is answered at once by a daemon that is there.
fn unanswered(status: Status, socket: &Path) -> anyhow::Error {
    match status.code() {
        Code::DeadlineExceeded | Code::Unavailable => refused(status).context(Unreachable(socket.to_owned())),
        _ => refused(status),
    }
}

/// Makes the nine annotations that a shim always sends, with the given ones among them.
fn annotations(args: &ArgMatches) -> Result<HashMap<String, String>> {
    const SENT: [&str; 9] = [
        keys::SANDBOX_NAME,
        keys::SANDBOX_NAMESPACE,
        keys::MACHINE_TYPE,
        keys::IMAGE,
        keys::VCPUS,
        keys::MEMORY,
        keys::INIT_DATA,
        keys::GPUS,
        keys::GPU_MODEL,
    ];
    let mut map: HashMap<String, String> = SENT.iter().map(|k| ((*k).to_owned(), String::new())).collect();
    for pair in args.get_many::<String>("annotation").unwrap_or_default() {
        let Some((key, value)) = pair.split_once('=') else {
            bail!("--annotation {pair:?} is not KEY=VALUE");
        };
        let short = format!("io.katacontainers.config.hypervisor.{key}");
        let key = if map.contains_key(&short) { short } else { key.to_owned() };
        map.insert(key, value.to_owned());
    }
    for (key, arg) in [(keys::SANDBOX_NAME, "pod"), (keys::SANDBOX_NAMESPACE, "namespace")] {
        map.insert(key.to_owned(), args.get_one::<String>(arg).cloned().unwrap_or_default());
    }
    Ok(map)
}

fn table(sandboxes: &Vec<SandboxInfo>) -> String {
    let mut rows =
        vec![["SANDBOX", "POD", "PHASE", "TUNNEL", "INSTANCE", "ADDRESS", "AGE", "NOTE"].map(str::to_owned)];
    for s in sandboxes {
        rows.push([
            s.id.chars().take(13).collect(),
            format!("{}/{}", s.pod_namespace, s.pod_name),
            format!("{:?}", s.phase).to_lowercase(),
            s.tunnel_id.to_string(),
            s.instance_id.clone().unwrap_or_else(|| "-".into()),
            s.addresses.first().map_or_else(|| "-".into(), ToString::to_string),
            format!("{}s", s.age_seconds),
            // One line each, whatever a cloud wrote.
            s.failure
                .iter()
                .chain(&s.trouble)
                .map(|text| text.replace('\n', " "))
                .collect::<Vec<_>>()
                .join("; "),
        ]);
    }
    let widths: Vec<usize> =
        (0..8).map(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 8]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn create_sends_what_a_shim_sends() {
        let args = [
            "caactl",
            "create",
            "s1",
            "--pod=web",
            "--netns=/x",
            "--annotation",
            "default_vcpus=1.5",
            "--annotation",
            "a/b=c=d",
        ];
        let matches = command().try_get_matches_from(args).unwrap();
        let map = annotations(matches.subcommand().unwrap().1).unwrap();
        assert_eq!(map.len(), 10);
        assert_eq!(map[keys::VCPUS], "1.5");
        assert_eq!(map["a/b"], "c=d");
        assert_eq!(map[keys::SANDBOX_NAMESPACE], "default");
    }
}

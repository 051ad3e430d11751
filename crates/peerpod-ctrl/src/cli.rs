//! The command line of `peerpod-ctrl`.

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use anyhow::{Context as _, Result};
use cloud_providers::{EnvSource, Error, ErrorKind, Scope, Settings, provider_list, registered};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    drain::{self, DrainSettings},
    options::{DRAIN_OPTIONS, OPTIONS, Options},
    program::{self, Setting},
};

const PROGRAM: &str = "peerpod-ctrl";

const DONE: (u8, &str) =
    (0, "a text, a graceful end after one SIGINT or SIGTERM, or a `drain` that leaves nothing");
const FAILED: (u8, &str) = (1, "it could not begin, it could not go on, or a second signal");
const USAGE: (u8, &str) = (2, "wrong command line, or a value that cannot be used");
/// What [`drain`] ends with when something is there still.
pub(crate) const LEFT: (u8, &str) =
    (3, "`drain`: something is left; each with its reason, `-json` for programs");
/// What [`drain`] ends with when it could not look everywhere.
pub(crate) const UNKNOWN: (u8, &str) =
    (4, "`drain`: nothing is known to be left, but an account or the cluster could not be looked at");

/// Every exit code with its meaning.
pub const EXITS: [(u8, &str); 5] = [DONE, FAILED, USAGE, LEFT, UNKNOWN];

enum Command {
    Text(String),
    Run(Box<Options>),
    Drain { options: Box<Options>, how: DrainSettings, json: bool },
}

/// Runs the program with the providers that are linked into it. `args` is without the program's name.
///
/// Exit codes are [`EXITS`].
pub fn main(args: &[OsString], env: &dyn EnvSource) -> ExitCode {
    let command = match parse(args, env) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("{PROGRAM}: {}", error.report());
            return ExitCode::from(USAGE.0);
        }
    };
    let result = match command {
        Command::Text(text) => {
            // A closed pipe, as in `peerpod-ctrl crd | head`, is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::from(DONE.0);
        }
        Command::Run(options) => log(&options.log_level, options.log_json)
            .and_then(|()| block_on(|stop| program::run(*options, env, stop)))
            .map(|()| DONE.0),
        Command::Drain { options, how, json } => log(&options.log_level, options.log_json)
            .and_then(|()| block_on(|stop| run_drain(*options, how, json, env, stop))),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{PROGRAM}: {error:#}");
            ExitCode::from(FAILED.0)
        }
    }
}

fn parse(args: &[OsString], env: &dyn EnvSource) -> cloud_providers::Result<Command> {
    let first = args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    match first.as_str() {
        "version" | "-version" | "--version" => return Ok(Command::Text(version())),
        "help" | "-h" | "-help" | "--help" => return Ok(Command::Text(usage())),
        "crd" if args.len() == 1 => return Ok(Command::Text(crd()?)),
        "crd" => return Err(Error::config("crd takes no arguments")),
        _ => {}
    }
    if registered().is_empty() {
        return Err(Error::config(format!("no provider: none was compiled in, see {PROGRAM} help")));
    }
    let draining = first == "drain";
    if !draining && !first.is_empty() && !first.starts_with('-') {
        return Err(Error::config(format!("unknown command {first:?}, see {PROGRAM} help")));
    }
    let args = if draining { &args[1..] } else { args };
    let (mut main, mut more) = (Settings::new(OPTIONS), Settings::new(DRAIN_OPTIONS));
    let command = clap::Command::new(if draining { "peerpod-ctrl drain" } else { PROGRAM })
        .about(match draining {
            true => "Deletes everything of a cluster, and says what is left",
            false => "Deletes every VM of peer pods whose pod is gone, and never one whose pod lives",
        })
        .disable_version_flag(true);
    let parsed = match draining {
        // The flags of both: the second set is added to the command that the first one parses.
        true => main.parse_cmd(more.add_flags(command), args),
        false => main.parse_cmd(command, args),
    };
    let matches = match parsed {
        Err(error) if error.code() == Some("help") => return Ok(Command::Text(help_text(&error))),
        other => other?,
    };
    main.load_env(env);
    let (values, mut problems) = main.parse_all();
    let (mut options, found) = Options::check(&values, env);
    problems.extend(found);
    let drain = match draining {
        true => {
            more.take(&matches);
            let (values, found) = more.parse_all();
            problems.extend(found);
            let mut how = DrainSettings::new(values.duration("timeout"));
            how.dry_run = values.bool("dry-run");
            // Told to a person, unless a flag says otherwise.
            options.log_json &= main_says_json(args);
            Some((how, values.bool("json")))
        }
        false => None,
    };
    if let Some(error) = Error::all(ErrorKind::Config, problems) {
        return Err(error);
    }
    Ok(match drain {
        Some((how, json)) => Command::Drain { options: Box::new(options), how, json },
        None => Command::Run(Box::new(options)),
    })
}

fn main_says_json(args: &[OsString]) -> bool {
    args.iter().any(|a| a.to_string_lossy().contains("zap-encoder"))
}

/// The help text travels as an error's message, since parsing ends with it.
fn help_text(error: &Error) -> String {
    let text = error.to_string();
    format!("{}\n", text.split(" (code: help").next().unwrap_or_default().trim_end())
}

fn crd() -> cloud_providers::Result<String> {
    // JSON is YAML too, so that it can be piped into `kubectl apply -f -`.
    let text = serde_json::to_string_pretty(&peerpod_api::crd())
        .map_err(|e| Error::internal("write the definition").with_source(e))?;
    Ok(text + "\n")
}

fn log(filter: &str, json: bool) -> Result<()> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .with_context(|| format!("-log-level or LOG_LEVEL is {filter:?}"))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
    Ok(())
}

fn block_on<T, F: Future<Output = Result<T>>>(work: impl FnOnce(CancellationToken) -> F) -> Result<T> {
    // One provider of cryptography for the process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = watch_signals(stop.clone())?;
        let result = work(stop).await;
        signals.abort();
        result
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// The first SIGINT or SIGTERM ends gracefully, the second at once.
fn watch_signals(stop: CancellationToken) -> Result<tokio::task::JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    Ok(tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                tracing::info!("signal received, ending; a second one ends at once");
                stop.cancel();
            } else {
                eprintln!("{PROGRAM}: second signal, ending at once");
                std::process::exit(FAILED.0.into());
            }
        }
    }))
}

async fn run_drain(
    options: Options,
    how: DrainSettings,
    json: bool,
    env: &dyn EnvSource,
    stop: CancellationToken,
) -> Result<u8> {
    let setting = Setting::new(&options, env).await?;
    let scope = match &options.cluster_id {
        Some(id) => id.clone(),
        None => setting.cluster.cluster_uid().await.context("read the cluster's id (or give -cluster-id)")?,
    };
    setting.profiles.reload().await;
    let dry_run = how.dry_run;
    let drained = drain::drain(setting.parts(), options.settings(Scope::Cluster(scope)), how, stop).await;
    let text = match json {
        true => serde_json::to_string_pretty(&drained).context("write the report")? + "\n",
        false => drain::text(&drained, dry_run),
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(drained.exit_code())
}

fn version() -> String {
    format!(
        "{PROGRAM} version {}\n  commit: {}\n  rust: {}\n",
        env!("CARGO_PKG_VERSION"),
        option_env!("CAA_COMMIT").unwrap_or("unknown"),
        env!("CARGO_PKG_RUST_VERSION"),
    )
}

fn usage() -> String {
    format!(
        "Usage: {PROGRAM} [options]         runs the controller\n\
         \x20      {PROGRAM} drain [options]   deletes everything of a cluster, exit code 0 when nothing is left\n\
         \x20      {PROGRAM} crd               prints the definition of PeerPod\n\
         \x20      {PROGRAM} version | help\n\n\
         {}\n{PROGRAM} -h and {PROGRAM} drain -h show the options.\n",
        provider_list()
    )
}

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;
    use cloud_providers_bundle as _;

    use super::*;

    fn run(args: &[&str]) -> cloud_providers::Result<Command> {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        parse(&args, &MapEnv::new([("POD_NAMESPACE", "n")]))
    }

    fn text(args: &[&str]) -> String {
        match run(args) {
            Ok(Command::Text(text)) => text,
            Ok(_) => panic!("{args:?} gives no text"),
            Err(error) => panic!("{args:?}: {error}"),
        }
    }

    #[test]
    fn texts_are_texts() {
        assert!(text(&["version"]).starts_with("peerpod-ctrl version "));
        assert!(text(&["help"]).contains("drain"));
        let crd: serde_json::Value = serde_json::from_str(&text(&["crd"])).unwrap();
        assert_eq!(crd["metadata"]["name"], "peerpods.confidentialcontainers.org");
        for part in ["--leader-elect", "--sweep-cap", "[default: :8081]"] {
            assert!(text(&["-metrics-bind-address=:1", "-h"]).contains(part), "{part}");
        }
        let help = text(&["drain", "-h"]);
        assert!(help.contains("--dry-run") && help.contains("--kubeconfig"), "{help}");
    }

    #[test]
    fn commands_are_told_apart() {
        assert!(matches!(run(&[]), Ok(Command::Run(_))));
        assert!(matches!(run(&["--leader-elect"]), Ok(Command::Run(o)) if o.leader_elect));
        let Ok(Command::Drain { how, json, options }) =
            run(&["drain", "-dry-run", "-json", "-timeout=2m", "-cluster-id", "c"])
        else {
            panic!()
        };
        assert!(how.dry_run && json && how.timeout.as_secs() == 120 && !options.log_json);
        assert_eq!(options.cluster_id.as_deref(), Some("c"));
    }

    #[test]
    fn a_wrong_command_line_is_refused_with_everything_that_is_wrong() {
        let error = |args: &[&str]| match run(args) {
            Err(error) => error.report(),
            Ok(_) => panic!("{args:?} was accepted"),
        };
        assert!(error(&["drian"]).contains("drian"));
        assert!(error(&["crd", "x"]).contains("no arguments"));
        assert!(error(&["-dry-run"]).contains("dry-run"), "only drain has it");
        let both = error(&["-sweep=x", "-daemon-grace=5"]);
        assert!(both.contains("sweep") && both.contains("daemon-grace"), "{both}");
    }
}

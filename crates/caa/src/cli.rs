//! The command line of `cloud-api-adaptor`.

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use anyhow::{Context as _, Result};
use cloud_providers::{
    Cloud, EnvSource, Error, ErrorKind, Registration, Settings, Values, lookup, provider_list,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, DaemonConfig, OPTIONS},
    daemon, log, trace, validate,
};

const PROGRAM: &str = "cloud-api-adaptor";

/// It did what it was asked for.
const DONE: (u8, &str) = (0, "`help`, `version`, or a graceful end after one SIGINT or SIGTERM");
/// It could not.
const FAILED: (u8, &str) = (
    1,
    "wrong command line, configuration that cannot work, a journal that cannot be read, a failure while running, or a \
     second signal",
);

/// Every exit code of the daemon with its meaning; `validate` has [its own](crate::validate::EXITS).
pub const EXITS: [(u8, &str); 2] = [DONE, FAILED];

/// What the command line asks for.
pub(crate) enum Command {
    Text(String),
    Run(Box<Read>),
    Validate { read: Box<Read>, live: bool, json: bool },
}

/// Everything that was typed and loaded. It can run when there are no problems.
pub(crate) struct Read {
    pub(crate) registration: &'static Registration,
    pub(crate) cloud: Box<dyn Cloud>,
    /// The daemon's options as they were given.
    pub(crate) values: Values,
    pub(crate) config: DaemonConfig,
    pub(crate) problems: Vec<String>,
}

/// Runs the daemon with the providers that are linked into the program. `args` is without the program's name.
///
/// Exit codes are [`EXITS`], and [`validate::EXITS`] for that command.
pub fn main(args: &[OsString], env: &dyn EnvSource) -> ExitCode {
    let prepared = match parse(args, env) {
        Ok(Command::Text(text)) => {
            // A closed pipe, as in `cloud-api-adaptor help | head`, is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::from(DONE.0);
        }
        Ok(Command::Run(read)) => *read,
        Ok(Command::Validate { read, live, json }) => return validate::run(*read, live, json),
        Err(error) => {
            eprintln!("{PROGRAM}: {}", error.report());
            if names_no_provider(args) {
                eprint!("{}", usage());
            }
            if args.iter().take(2).any(|arg| arg == validate::WORD) {
                return ExitCode::from(validate::USAGE.0);
            }
            return ExitCode::from(FAILED.0);
        }
    };
    match serve(prepared) {
        Ok(()) => ExitCode::from(DONE.0),
        Err(error) => {
            eprintln!("{PROGRAM}: {error:#}");
            ExitCode::from(FAILED.0)
        }
    }
}

pub(crate) fn parse(args: &[OsString], env: &dyn EnvSource) -> cloud_providers::Result<Command> {
    let Some(first) = args.first().map(|a| a.to_string_lossy()) else {
        return Err(Error::config("no provider is given"));
    };
    match &*first {
        "version" | "-version" | "--version" => return Ok(Command::Text(version())),
        "help" | "-h" | "-help" | "--help" => return Ok(Command::Text(usage())),
        flag if flag.starts_with('-') => {
            return Err(Error::config(format!("the provider comes first, before {flag}")));
        }
        validate::WORD => {
            return Err(Error::config(format!(
                "the provider comes first: {PROGRAM} <provider> {}",
                validate::WORD
            )));
        }
        _ => {}
    }
    let registration = lookup(&first)?;
    let mut cloud = (registration.new)();
    let mut daemon = Settings::new(OPTIONS);
    let validates = args.get(1).is_some_and(|arg| arg == validate::WORD);
    let mut own = Settings::new(if validates { validate::OPTIONS } else { &[] });
    let (about, usage, skipped) = match validates {
        true => ("Reports what is wrong with a configuration", "validate [-live] [-json] [options]", 2),
        false => ("Gives every Kata pod of this node its own VM", "[options]", 1),
    };
    let command = clap::Command::new(PROGRAM)
        .about(format!("{about} ({})", registration.summary))
        .override_usage(format!("{PROGRAM} {} {usage}", registration.name))
        .disable_version_flag(true);
    let matches = match cloud.parse_cmd(own.add_flags(daemon.add_flags(command)), &args[skipped..]) {
        Err(error) if error.code() == Some("help") => return Ok(Command::Text(help_text(&error))),
        other => other?,
    };
    daemon.take(&matches);
    daemon.load_env(env);
    cloud.load_env(env)?;
    let (values, mut problems) = daemon.parse_all();
    let (mut config, more) = DaemonConfig::check(&values, env);
    problems.extend(more);
    config.provider = registration.name.to_owned();
    config.shown.extend(config::shown(&cloud.settings().parse_all().0));
    problems.extend(cloud.problems());
    if validates {
        own.take(&matches);
        let (own, more) = own.parse_all();
        problems.extend(more);
        let read = Box::new(Read { registration, cloud, values, config, problems });
        return Ok(Command::Validate { read, live: own.bool("live"), json: own.bool("json") });
    }
    match Error::all(ErrorKind::Config, problems) {
        Some(error) => Err(error),
        None => {
            Ok(Command::Run(Box::new(Read { registration, cloud, values, config, problems: Vec::new() })))
        }
    }
}

/// Whether the first argument leaves open which provider is meant, so that the list of providers helps.
fn names_no_provider(args: &[OsString]) -> bool {
    args.first().is_none_or(|first| lookup(&first.to_string_lossy()).is_err())
}

/// The help text travels as an error's message, since parsing ends with it.
fn help_text(error: &Error) -> String {
    let text = error.to_string();
    let text = text.split(" (code: help").next().unwrap_or_default();
    format!("{}\n", text.trim_end())
}

fn serve(mut prepared: Read) -> Result<()> {
    let config = &prepared.config;
    let (traces, sender) = trace::set_up(config.trace.clone(), &config.spans)?;
    log::init(&config.log_level, config.log_json, traces, &config.recent)?;
    let name = prepared.registration.name;
    // Nobody may read the banner: a closed pipe, as after `| head`, must not end the daemon.
    let banner = format!("{}{PROGRAM}: starting Cloud API Adaptor daemon for \"{name}\"\n", version());
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(banner.as_bytes()).and_then(|()| stdout.flush());
    // One provider of cryptography for the process; its random source takes 20 ms to wake up, which no pod waits for.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    peerpod_proto::tls::warm_up();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if prepared.config.gateway_socket.is_some() {
        // What pods say to their guests passes through the gateway. What is left waits nearly all the time, and handing
        // tasks from thread to thread takes longer than running them.
        runtime.worker_threads(1);
    }
    let runtime = runtime.enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = watch_signals(stop.clone())?;
        // After everything that it has spans of.
        let silence = CancellationToken::new();
        let sending = tokio::spawn(sender(silence.clone()));
        let provider = match prepared.config.verify {
            true => validate::at_start(&mut prepared).await?,
            false => {
                let made = prepared.cloud.new_provider().await;
                made.map_err(|e| anyhow::anyhow!("provider {name}: {}", e.report()))?
            }
        };
        let served = daemon::run(prepared.config, provider, name, stop).await;
        signals.abort();
        silence.cancel();
        let _ = sending.await;
        served
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

/// Three lines, as the existing program prints them, with the compiler in place of Go's version.
fn version() -> String {
    format!(
        "{PROGRAM} version {}\n  commit: {}\n  rust: {}\n",
        env!("CARGO_PKG_VERSION"),
        option_env!("CAA_COMMIT").unwrap_or("unknown"),
        env!("CARGO_PKG_RUST_VERSION"),
    )
}

fn usage() -> String {
    let mut text = format!(
        "Usage: {PROGRAM} <provider> [options]\n       {PROGRAM} <provider> validate [-live] [-json] [options]\n       \
         {PROGRAM} help | version\n\n{}",
        provider_list()
    );
    text.push_str(&format!("\n{PROGRAM} <provider> -help shows the options.\n"));
    text
}

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;
    use cloud_providers_bundle as _;

    use super::*;

    fn run(args: &[&str], env: &[(&str, &str)]) -> cloud_providers::Result<Command> {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        parse(&args, &MapEnv::new(env.iter().copied()))
    }

    fn error(args: &[&str], env: &[(&str, &str)]) -> String {
        match run(args, env) {
            Err(error) => error.report(),
            Ok(_) => panic!("{args:?} was accepted"),
        }
    }

    #[test]
    fn version_and_help_are_texts() {
        for args in [&["version"][..], &["--version"], &["help"], &["--help"], &["local", "-help"]] {
            assert!(matches!(run(args, &[]), Ok(Command::Text(_))), "{args:?}");
        }
        let Ok(Command::Text(help)) = run(&["local", "-help"], &[]) else { panic!() };
        for part in
            ["--proxy-timeout", "[default: 5m0s]", "[variable: REMOTE_HYPERVISOR_ENDPOINT]", "--data-dir"]
        {
            assert!(help.contains(part), "{help}");
        }
        assert!(!help.contains("code: help"), "{help}");
    }

    #[test]
    fn an_unknown_provider_lists_the_known_ones() {
        let text = error(&["nowhere"], &[]);
        assert!(text.contains("nowhere") && text.contains("local"), "{text}");
        assert!(error(&[], &[]).contains("no provider"));
        assert!(error(&["-socket", "/x"], &[]).contains("provider comes first"));
    }

    #[test]
    fn problems_of_daemon_and_provider_are_reported_together() {
        let text = error(
            &["local", "-tls-skip-verify", "-pod-subnet-cidrs=10.0.0.0/99", "-ca-cert-file=/nonexistent"],
            &[
                ("PROXY_TIMEOUT", "5"),
                ("VXLAN_PORT", "70000"),
                ("LOCAL_SUBNET", "nonsense"),
                ("TLS_MIN_VERSION", "VersionTLS10"),
                ("CERT_FILE", "/nonexistent"),
            ],
        );
        for part in [
            "tls-skip-verify",
            "10.0.0.0/99",
            "-ca-cert-file",
            "PROXY_TIMEOUT",
            "VXLAN_PORT",
            "TLS_MIN_VERSION",
            "-cert-key",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn a_right_command_line_in_go_syntax_is_accepted() {
        let env = [("PROXY_TIMEOUT", "2m"), ("DISABLECVM", "")];
        let Ok(Command::Run(prepared)) =
            run(&["local", "-socket", "/tmp/x.sock", "-vxlan-port=4790", "--disable-tls=false"], &env)
        else {
            panic!()
        };
        assert_eq!(prepared.config.vxlan_port, 4790);
        assert_eq!(prepared.config.proxy_timeout.as_secs(), 120);
        assert!(!prepared.config.in_cluster);
    }
}

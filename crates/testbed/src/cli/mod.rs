//! The program `testbed`.

pub(crate) mod args;
pub(crate) mod exits;
mod failure;
mod look;
mod machines;
mod network;
mod open;
mod output;
mod run;
mod start;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, sync::Arc};

use clap::ArgMatches;
use cloud_providers::{CancellationToken, EnvSource, Error, OpContext, ProcessEnv};
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::{find::Search, life::Interrupt};
use failure::Failure;
use output::Ui;

/// The whole program: reads the arguments and the environment of the process.
///
/// This is all that a program with a testbed of its own needs:
///
/// ```no_run
/// # mod my_testbed {}
/// // A crate that only the manifest names is dropped by the linker, and its registration with it.
/// use my_testbed as _;
///
/// fn main() -> std::process::ExitCode {
///     testbed::main()
/// }
/// ```
///
/// `testbed --help` lists the exit codes.
pub fn main() -> ExitCode {
    // This program is also the first one of machines that are made on this host.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == crate::machine::COMMAND) {
        return crate::machine::main(&args.collect::<Vec<_>>());
    }
    let cwd = match std::env::current_dir() {
        Ok(cwd) => cwd,
        Err(error) => {
            eprintln!("testbed: the current folder is gone: {error}");
            return ExitCode::from(exits::FAILED.0);
        }
    };
    run(std::env::args_os(), Arc::new(ProcessEnv), cwd)
}

/// What a command works with.
struct App {
    ui: Ui,
    env: Arc<dyn EnvSource>,
    search: Search,
    cwd: PathBuf,
    file: Option<PathBuf>,
    folder: Option<PathBuf>,
    op: OpContext,
}

impl App {
    /// Returns the document: the one that is named, or `reservation.yaml` here.
    fn document(&self) -> PathBuf {
        self.cwd.join(self.file.as_deref().unwrap_or(std::path::Path::new("reservation.yaml")))
    }
}

/// Runs one command.
fn run(args: impl IntoIterator<Item = OsString>, env: Arc<dyn EnvSource>, cwd: PathBuf) -> ExitCode {
    let matches = match args::command().try_get_matches_from(args) {
        Ok(matches) => matches,
        // Help and version come this way, too.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exits::WRONG.0 } else { exits::DONE.0 });
        }
    };
    let ui = Ui::new(matches.get_flag("json"), matches.get_flag("quiet"), matches.get_count("verbose") > 0);
    let result = logging(&matches, env.as_ref(), &ui).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(4).build();
        let runtime =
            runtime.map_err(|error| Error::internal("cannot start the runtime").with_source(error))?;
        let done = runtime.block_on(Box::pin(guarded(&matches, ui.clone(), env, cwd)));
        // A probe that hangs must not hold the end of the program.
        runtime.shutdown_background();
        done
    });
    ui.finish();
    match result {
        Ok(()) => ExitCode::from(exits::DONE.0),
        Err(failure) => {
            tell(&ui, &failure);
            ExitCode::from(failure.code)
        }
    }
}

/// Starts the log, on standard error.
fn logging(matches: &ArgMatches, env: &dyn EnvSource, ui: &Ui) -> Result<(), Failure> {
    let level = match (matches.get_flag("quiet"), matches.get_count("verbose")) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let chosen = env.variable("TESTBED_LOG");
    let filter = EnvFilter::builder().parse(chosen.as_deref().unwrap_or(level)).map_err(|error| {
        Error::config("the filter of the log does not parse")
            .with("variable", "TESTBED_LOG")
            .with_source(error)
    })?;
    let ui = ui.clone();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || ui.log());
    let _ = builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init();
    Ok(())
}

/// Runs the command with the signals watched: ending early has its own exit code.
async fn guarded(matches: &ArgMatches, ui: Ui, env: Arc<dyn EnvSource>, cwd: PathBuf) -> Result<(), Failure> {
    let cancel = CancellationToken::new();
    let voice = ui.clone();
    let interrupt = Interrupt::watch(cancel.clone(), move |name| {
        voice
            .warn(&format!("{name}: undoing what is half done and saving the state; once more ends at once"));
    })
    .map_err(|error| Error::internal("cannot watch for signals").with_source(error))?;
    let file = matches.get_one::<PathBuf>("file").cloned();
    let folder = matches.get_one::<PathBuf>("env").cloned();
    let folder = folder.or_else(|| env.variable("TESTBED_ENV").map(PathBuf::from));
    let op = OpContext::new().with_cancel(cancel);
    let app = App { ui, search: Search::new(env.clone()), env, cwd, file, folder, op };
    let result = run::command(&app, matches).await;
    match (result, interrupt.signal()) {
        (Err(failure), Some(signal)) if !failure.silent => Err(Failure {
            code: exits::SIGNAL + u8::try_from(signal).unwrap_or_default(),
            ..failure.hint("`testbed up` goes on, `testbed destroy` gives everything back")
        }),
        (result, _) => result,
    }
}

/// Tells a failure: for people on standard error, for programs as the last document, too.
fn tell(ui: &Ui, failure: &Failure) {
    if failure.silent {
        return;
    }
    eprintln!("error: {}", failure.error.report());
    if let Some(hint) = &failure.hint {
        eprintln!("hint: {hint}");
    }
    if ui.json() {
        ui.line(&json!({
            "result": "error",
            "code": failure.code,
            "kind": failure.error.kind().label(),
            "error": failure.error.report(),
            "hint": failure.hint,
            "leftovers": failure.error.leftovers(),
        }));
    }
}

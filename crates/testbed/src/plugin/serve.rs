//! The provider's end.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io::IsTerminal as _,
    os::fd::AsFd as _,
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cloud_providers::{Error, ErrorKind, OpContext, Result};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    CallContext, Hello, Limits, Method, Opened, ToHost, ToProvider, VERSIONS, fault, lines, message::Params,
};
use crate::{
    Context, Event, Keep, Progress, ProviderConfig, Registration, Testbed, async_trait, registrations,
};

type Opening = Pin<Box<dyn Future<Output = Result<Arc<dyn Testbed>>> + Send>>;

/// What an executable offers.
pub struct Served {
    hello: Hello,
    open: Box<dyn Fn(ProviderConfig) -> Opening + Send + Sync>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl Served {
    /// Offers a testbed that is there already and reads no extra variable.
    pub fn testbed(name: impl Into<String>, testbed: Arc<dyn Testbed>) -> Self {
        let hello = Hello { name: name.into(), features: testbed.features(), ..Hello::default() };
        Self { hello, open: Box::new(move |_| Box::pin(std::future::ready(Ok(testbed.clone())))) }
    }
}

impl From<&'static Registration> for Served {
    fn from(registration: &'static Registration) -> Self {
        let hello = Hello {
            name: registration.name.to_owned(),
            release: registration.version.to_owned(),
            summary: registration.summary.to_owned(),
            keys: registration.keys.to_vec(),
            ..Hello::default()
        };
        let open = move |config: ProviderConfig| -> Opening {
            Box::pin(async move { (registration.new)(&config).await })
        };
        Self { hello, open: Box::new(open) }
    }
}

/// Makes the program of a provider: serves the one testbed that is linked in, over the standard streams.
///
/// What anything else prints goes to standard error, so that it never breaks the protocol.
pub fn main() -> ExitCode {
    let all = registrations();
    let own: Vec<_> = all.iter().filter(|r| r.name != "static").collect();
    let [registration] = own[..] else {
        let names = own.iter().map(|r| r.name).collect::<Vec<_>>().join(", ");
        eprintln!("error: an executable serves one testbed, and here are {}: {names}", own.len());
        return ExitCode::FAILURE;
    };
    if std::io::stdin().is_terminal() {
        let name = registration.name;
        eprintln!(
            "This program provides testbeds and is started by `testbed`, when a reservation says `provider: {name}`"
        );
        eprintln!(
            "and this file stands in a folder of TESTBED_PROVIDER_PATH or PATH as testbed-provider-{name}."
        );
        return ExitCode::FAILURE;
    }
    match run(Served::from(*registration)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.report());
            ExitCode::FAILURE
        }
    }
}

fn run(served: Served) -> Result<()> {
    let system = |what: &'static str| move |e: std::io::Error| Error::internal(what).with_source(e);
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(system("no standard input"))?;
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().map_err(system("no standard output"))?;
    nix::unistd::dup2_stdout(std::io::stderr()).map_err(|e| system("no standard error")(e.into()))?;
    let runtime = tokio::runtime::Runtime::new().map_err(system("cannot start"))?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(system("cannot wait for signals"))?;
        let ended = stop.clone();
        tokio::spawn(async move {
            term.recv().await;
            ended.cancel();
        });
        let output = tokio::fs::File::from_std(stdout.into());
        serve(served, tokio::fs::File::from_std(stdin.into()), output, stop).await
    });
    // The thread that reads standard input cannot be interrupted.
    runtime.shutdown_background();
    result
}

/// Serves a testbed until `input` ends, or until `stop`, which cancels the calls and waits for them.
///
/// The end of the input means that nobody is there any more: calls are dropped as they are, as if both had been killed
/// together. Undoing would race with whoever comes next and finds the machines.
///
/// # Errors
///
/// When the other end does not keep to the protocol, or nothing can be written to it.
pub async fn serve(
    served: Served,
    input: impl AsyncRead + Send + Unpin + 'static,
    output: impl AsyncWrite + Send + Unpin + 'static,
    stop: CancellationToken,
) -> Result<()> {
    let (to, messages) = mpsc::unbounded_channel();
    let writer = tokio::spawn(write(output, messages));
    let server = Arc::new(Server {
        served,
        testbed: Mutex::default(),
        calls: Mutex::default(),
        keeps: Mutex::default(),
        last_keep: AtomicU64::new(0),
        to,
    });
    let (lines_to, mut lines) = mpsc::channel(16);
    let reader = tokio::spawn(async move {
        let mut input = BufReader::new(input);
        loop {
            let line = lines::next(&mut input, Limits::default().line).await.transpose();
            let last = !matches!(line, Some(Ok(_)));
            if let Some(line) = line
                && lines_to.send(line).await.is_err()
            {
                return;
            }
            if last {
                return;
            }
        }
    });
    let mut tasks = JoinSet::new();
    let mut greeted = false;
    let result = loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            () = stop.cancelled() => {
                for call in lock(&server.calls).values() {
                    call.cancel();
                }
                let all = async { while tasks.join_next().await.is_some() {} };
                _ = timeout(Limits::default().cancel, all).await;
                break Ok(());
            }
        };
        match line {
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
            Some(Ok(line)) => {
                if let Err(error) = server.take(&line, &mut greeted, &mut tasks) {
                    server.send(&ToHost::Error { id: None, error: fault::write(&error) });
                    break Err(error);
                }
            }
        }
        // Those that are done are forgotten.
        while tasks.try_join_next().is_some() {}
    };
    reader.abort();
    tasks.shutdown().await;
    drop(server);
    // What was said last still goes out.
    _ = timeout(Duration::from_secs(5), writer).await;
    result
}

async fn write(mut output: impl AsyncWrite + Unpin, mut messages: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = messages.recv().await {
        let written = output.write_all(format!("{line}\n").as_bytes()).await;
        // Nobody reads any more: the end of the input comes as well.
        if written.is_err() || output.flush().await.is_err() {
            return;
        }
    }
}

struct Server {
    served: Served,
    testbed: Mutex<Option<Arc<dyn Testbed>>>,
    calls: Mutex<HashMap<u64, CancellationToken>>,
    keeps: Mutex<HashMap<u64, oneshot::Sender<Result<()>>>>,
    last_keep: AtomicU64,
    to: mpsc::UnboundedSender<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    fn send(&self, message: &ToHost) {
        if let Ok(line) = serde_json::to_string(message) {
            // When nobody writes any more, nobody reads either.
            _ = self.to.send(line);
        }
    }

    fn take(self: &Arc<Self>, line: &str, greeted: &mut bool, tasks: &mut JoinSet<()>) -> Result<()> {
        let message: ToProvider =
            serde_json::from_str(line).map_err(|e| Error::internal("a line is no message").with_source(e))?;
        match message {
            ToProvider::Hello { versions, .. } => {
                let Some(version) = VERSIONS.iter().rev().find(|version| versions.contains(version)) else {
                    return Err(Error::unsupported("no version of the protocol that both speak")
                        .with("offered", format!("{versions:?}"))
                        .with("ours", format!("{VERSIONS:?}")));
                };
                *greeted = true;
                self.send(&ToHost::Hello(Hello { version: *version, ..self.served.hello.clone() }));
            }
            _ if !*greeted => return Err(Error::internal("hello comes first")),
            ToProvider::Call { id, method, params } => {
                let cancel = CancellationToken::new();
                if lock(&self.calls).insert(id, cancel.clone()).is_some() {
                    return Err(Error::internal("a call with the id of one that is open").with("id", id));
                }
                tasks.spawn(self.clone().answer(id, method, *params, cancel));
            }
            ToProvider::Kept { keep, error, .. } => {
                if let Some(waiting) = lock(&self.keeps).remove(&keep) {
                    _ = waiting.send(error.map_or(Ok(()), |error| Err(fault::read(error))));
                }
            }
            ToProvider::Cancel { id } => {
                // It may have been answered meanwhile.
                if let Some(call) = lock(&self.calls).get(&id) {
                    call.cancel();
                }
            }
        }
        Ok(())
    }

    async fn answer(self: Arc<Self>, id: u64, method: Method, params: Params, cancel: CancellationToken) {
        // In a task of its own, so that a panic is an answer too. It ends with this one.
        let mut work = JoinSet::new();
        work.spawn(self.clone().call(id, method, params, cancel));
        let result = match work.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(e)) => {
                Err(Error::internal("the provider panicked").with("call", method.label()).with_source(e))
            }
            None => Err(Error::internal("the call was not made")),
        };
        lock(&self.calls).remove(&id);
        self.send(&match result {
            Ok(value) => ToHost::Result { id, value },
            Err(error) => ToHost::Error { id: Some(id), error: fault::write(&error) },
        });
    }

    async fn call(
        self: Arc<Self>,
        id: u64,
        method: Method,
        params: Params,
        cancel: CancellationToken,
    ) -> Result<Value> {
        if method == Method::Open {
            let config = needed("config", params.config)?;
            let testbed = (self.served.open)(config).await?;
            let opened = Opened { features: Some(testbed.features()) };
            *lock(&self.testbed) = Some(testbed);
            return value(opened);
        }
        let testbed = lock(&self.testbed).clone();
        let testbed = testbed.ok_or_else(|| Error::internal("`open` comes before other calls"))?;
        let ctx = self.context(id, params.context.unwrap_or_default(), cancel);
        match method {
            Method::Open => Err(Error::internal("open is answered above")),
            Method::Init => value(testbed.init(&ctx, &needed("reservation", params.reservation)?).await?),
            Method::Plan => value(testbed.plan(&ctx, &needed("reservation", params.reservation)?).await?),
            Method::Status => value(testbed.status(&ctx, &needed("environment", params.environment)?).await?),
            Method::Destroy => {
                value(testbed.destroy(&ctx, &needed("environment", params.environment)?).await?)
            }
            Method::GiveBack => {
                let machines = needed("machines", params.machines)?;
                value(testbed.give_back(&ctx, &needed("environment", params.environment)?, &machines).await?)
            }
            Method::BeforePreinstall => {
                value(testbed.before_preinstall(&ctx, &needed("environment", params.environment)?).await?)
            }
            Method::AfterPreinstall => {
                value(testbed.after_preinstall(&ctx, &needed("environment", params.environment)?).await?)
            }
        }
    }

    fn context(self: &Arc<Self>, id: u64, given: CallContext, cancel: CancellationToken) -> Context {
        let mut op = OpContext::new().with_cancel(cancel);
        if let Some(left) = given.deadline_ms {
            op = op.with_timeout(Duration::from_millis(left));
        }
        let link = Arc::new(Link { server: self.clone(), id });
        Context {
            op,
            progress: link.clone(),
            keep: link,
            state: given.state,
            force: given.force,
            dir: given.dir,
        }
    }
}

fn needed<T>(name: &str, given: Option<T>) -> Result<T> {
    given.ok_or_else(|| Error::internal(format!("params without {name}")))
}

fn value(answer: impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|e| Error::internal("the answer cannot be written").with_source(e))
}

/// Takes what a call tells and keeps to the other end.
struct Link {
    server: Arc<Server>,
    id: u64,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Progress for Link {
    fn tell(&self, machine: &str, event: &Event) {
        let (machine, event) = (machine.to_owned(), event.clone());
        self.server.send(&ToHost::Progress { id: self.id, machine, event });
    }
}

#[async_trait]
impl Keep for Link {
    async fn keep(&self, key: &str, value: Option<Value>) -> Result<()> {
        let keep = self.server.last_keep.fetch_add(1, Ordering::Relaxed) + 1;
        let (done, kept) = oneshot::channel();
        lock(&self.server.keeps).insert(keep, done);
        self.server.send(&ToHost::Keep { id: self.id, keep, key: key.to_owned(), value });
        kept.await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "nobody is there to keep anything")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_from_a_call_is_named() {
        let text = needed::<()>("reservation", None).unwrap_err().to_string();
        assert_eq!(text, "params without reservation");
        assert_eq!(value(()).unwrap(), Value::Null);
    }
}

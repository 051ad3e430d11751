//! The provider's program: started, talked to, watched, ended.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_providers::{Error, ErrorKind, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Hello, Limits, ToHost, ToProvider, VERSIONS, fault, lines,
    message::{Method, Params},
};
use crate::{Context, Event};

/// How many of the last lines on standard error an error shows.
const TAIL: usize = 20;

/// Where a line on standard error is cut in two.
const LONGEST_WORDS: u64 = 64 << 10;

/// How much of a line an error shows.
const EXCERPT: usize = 200;

/// A running program. It is ended when the last handle is dropped.
#[derive(Clone, Debug)]
pub(super) struct Process {
    shared: Arc<Shared>,
    to: mpsc::UnboundedSender<String>,
}

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    limits: Limits,
    calls: Mutex<Calls>,
    tail: Mutex<VecDeque<String>>,
    secrets: Mutex<Vec<String>>,
    group: Mutex<Group>,
    kill: CancellationToken,
}

#[derive(Debug, Default)]
struct Calls {
    last: u64,
    /// Calls without an answer.
    open: HashMap<u64, mpsc::Sender<Answer>>,
    hello: Option<oneshot::Sender<Result<Hello>>>,
    ended: Option<Error>,
    /// It was killed because a call was dropped.
    dropped: bool,
}

#[derive(Debug)]
enum Answer {
    Result(Value),
    Error(Error),
    Progress(String, Event),
    Keep { keep: u64, key: String, value: Option<Value> },
}

/// Why the program is not listened to any more.
enum End {
    /// Nobody needs it.
    Unused,
    /// It closed its output.
    Closed,
    /// It did not keep to the protocol.
    Broken(Error),
    /// It did not end a call that was cancelled.
    Stuck,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Starts the program and waits until it has said hello.
    pub(super) async fn start(file: &Path, limits: Limits) -> Result<(Self, Hello)> {
        let mut child = spawn(file, limits).await?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(
                Error::internal("the program has no standard streams").with("program", file.display())
            );
        };
        let (to, lines) = mpsc::unbounded_channel();
        let (said, hello) = oneshot::channel();
        let calls = Calls { hello: Some(said), ..Calls::default() };
        let shared = Arc::new(Shared {
            file: file.to_owned(),
            limits,
            calls: Mutex::new(calls),
            tail: Mutex::default(),
            secrets: Mutex::default(),
            group: Mutex::new(Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))),
            kill: CancellationToken::new(),
        });
        let process = Self { shared: shared.clone(), to };
        tokio::spawn(supervise(shared.clone(), child, stdin, lines, stdout, stderr));
        let host = concat!("testbed ", env!("CARGO_PKG_VERSION")).to_owned();
        process.send(&ToProvider::Hello { versions: VERSIONS.to_vec(), host });
        match timeout(limits.hello, hello).await {
            Ok(Ok(Ok(hello))) => Ok((process, hello)),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(shared.ended()),
            Err(_) => {
                shared.kill.cancel();
                let waited = format!("{:?}", limits.hello);
                let error = Error::new(ErrorKind::Transient, "the provider's program did not say hello");
                Err(shared.with_tail(error.with("program", file.display()).with("waited", waited)))
            }
        }
    }

    /// Keeps these texts out of whatever the program says.
    pub(super) fn hide(&self, secrets: Vec<String>) {
        *lock(&self.shared.secrets) = secrets;
    }

    /// Calls, and answers what the provider asks meanwhile.
    pub(super) async fn call(&self, ctx: &Context, method: Method, params: Params) -> Result<Value> {
        let (id, mut answers) = self.begin()?;
        let mut guard = Guard { process: self, answered: false };
        self.send(&ToProvider::Call { id, method, params: Box::new(params) });
        let mut cancelled = false;
        let grace = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(grace);
        loop {
            tokio::select! {
                biased;
                answer = answers.recv() => match answer {
                    None => {
                        guard.answered = true;
                        return Err(self.shared.ended());
                    }
                    Some(Answer::Progress(machine, event)) => ctx.tell(&machine, event),
                    Some(Answer::Keep { keep, key, value }) => {
                        let kept = ctx.keep.keep(&key, value).await;
                        let error = kept.err().map(|error| fault::write(&error));
                        self.send(&ToProvider::Kept { id, keep, error });
                    }
                    Some(Answer::Result(value)) => {
                        guard.answered = true;
                        return Ok(value);
                    }
                    Some(Answer::Error(error)) => {
                        guard.answered = true;
                        return Err(error);
                    }
                },
                () = end_of(ctx), if !cancelled => {
                    cancelled = true;
                    self.send(&ToProvider::Cancel { id });
                    grace.as_mut().reset(tokio::time::Instant::now() + self.shared.limits.cancel);
                }
                // The supervisor ends the program and answers every call.
                () = &mut grace, if cancelled && !self.shared.kill.is_cancelled() => self.shared.kill.cancel(),
            }
        }
    }

    /// Says whether it was stopped because a call was dropped.
    pub(super) fn was_dropped(&self) -> bool {
        lock(&self.shared.calls).dropped
    }

    fn begin(&self) -> Result<(u64, mpsc::Receiver<Answer>)> {
        let mut calls = lock(&self.shared.calls);
        if let Some(error) = &calls.ended {
            return Err(error.clone());
        }
        calls.last += 1;
        let id = calls.last;
        let (to, answers) = mpsc::channel(256);
        calls.open.insert(id, to);
        Ok((id, answers))
    }

    fn send(&self, message: &ToProvider) {
        match serde_json::to_string(message) {
            // Nobody takes it when the program has ended: then every call was answered with the reason.
            Ok(line) => _ = self.to.send(line),
            Err(e) => warn!(error = %e, "a message to a provider cannot be written"),
        }
    }
}

/// Waits until a call should end early.
async fn end_of(ctx: &Context) {
    let deadline = async {
        match ctx.op.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ctx.op.cancel.cancelled() => {}
        () = deadline => {}
    }
}

/// Kills the program when a call's future is dropped: what is made then is what was recorded, as with a provider that is
/// linked in. Told to cancel instead, it would undo beside whoever comes next.
struct Guard<'a> {
    process: &'a Process,
    answered: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let shared = &self.process.shared;
            let mut calls = lock(&shared.calls);
            calls.dropped = true;
            calls.ended.get_or_insert_with(|| {
                Error::new(
                    ErrorKind::Cancelled,
                    "the provider's program was stopped with a call that was dropped",
                )
            });
            drop(calls);
            lock(&shared.group).signal(Signal::SIGKILL);
        }
    }
}

impl Shared {
    /// Takes one line of the program.
    async fn take(&self, line: &str) -> Result<()> {
        let message: ToHost = serde_json::from_str(line).map_err(|e| {
            Error::internal("the provider's program wrote a line that is no message")
                .with("line", self.shown(line))
                .with_source(e)
        })?;
        let (id, answer) = match message {
            ToHost::Hello(hello) => return self.greeted(hello),
            ToHost::Error { id: None, error } => return Err(fault::read(error)),
            ToHost::Result { id, value } => (id, Answer::Result(value)),
            ToHost::Error { id: Some(id), error } => (id, Answer::Error(self.redact(fault::read(error)))),
            ToHost::Progress { id, machine, event } => (id, Answer::Progress(machine, event)),
            ToHost::Keep { id, keep, key, value } => (id, Answer::Keep { keep, key, value }),
        };
        let slot = {
            let mut calls = lock(&self.calls);
            if calls.hello.is_some() {
                return Err(Error::internal("the provider's program spoke before it said hello"));
            }
            match answer {
                Answer::Result(_) | Answer::Error(_) => calls.open.remove(&id),
                _ => calls.open.get(&id).cloned(),
            }
        };
        let Some(slot) = slot else {
            return Err(Error::internal("the provider's program answered a call that is not open")
                .with("id", id)
                .with("line", self.shown(line)));
        };
        // Nobody takes it when the call was dropped, and the program with it.
        _ = slot.send(answer).await;
        Ok(())
    }

    fn greeted(&self, hello: Hello) -> Result<()> {
        if !VERSIONS.contains(&hello.version) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the provider speaks another version of the protocol",
            )
            .with("its version", hello.version)
            .with("ours", format!("{VERSIONS:?}")));
        }
        match lock(&self.calls).hello.take() {
            Some(said) => {
                // Whoever asked may have given up.
                _ = said.send(Ok(hello));
                Ok(())
            }
            None => Err(Error::internal("the provider's program said hello twice")),
        }
    }

    /// Answers everything that is open, now and from now on.
    fn end(&self, error: Error) {
        let error = self.redact(error);
        let (open, hello) = {
            let mut calls = lock(&self.calls);
            calls.ended.get_or_insert_with(|| error.clone());
            (std::mem::take(&mut calls.open), calls.hello.take())
        };
        if let Some(hello) = hello {
            _ = hello.send(Err(error));
        }
        // Each caller sees its channel closed and reads the reason.
        drop(open);
    }

    fn ended(&self) -> Error {
        let ended = lock(&self.calls).ended.clone();
        ended.unwrap_or_else(|| Error::internal("the provider's program is not listened to any more"))
    }

    fn redact(&self, error: Error) -> Error {
        lock(&self.secrets).iter().fold(error, |error, secret| error.redact(secret))
    }

    /// Returns a line of the program as it may be shown.
    fn shown(&self, line: &str) -> String {
        // First the secrets: a cut one is not found any more.
        let clean = |line: String, secret: &String| line.replace(secret, "[redacted]");
        excerpt(&lock(&self.secrets).iter().fold(line.to_owned(), clean))
    }

    /// Adds what the program said last on standard error.
    fn with_tail(&self, error: Error) -> Error {
        let tail = lock(&self.tail).iter().cloned().collect::<Vec<_>>().join(" | ");
        self.redact(if tail.is_empty() { error } else { error.with("it said last", tail) })
    }
}

/// Cuts a line to what fits a message, without what would move a terminal's cursor.
fn excerpt(line: &str) -> String {
    let line = line.replace(char::is_control, "\u{fffd}");
    match line.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Starts the program as the leader of a group of its own: Ctrl-C at the terminal reaches it as a message and not as a
/// signal, and whatever it starts can be ended with it.
async fn spawn(file: &Path, limits: Limits) -> Result<Child> {
    let mut command = Command::new(file);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let end = tokio::time::Instant::now() + limits.hello;
    loop {
        match command.spawn() {
            Ok(child) => return Ok(child),
            // Somebody still has it open for writing: it was installed a moment ago.
            Err(e)
                if e.kind() == std::io::ErrorKind::ExecutableFileBusy
                    && tokio::time::Instant::now() < end =>
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(e) => {
                let error =
                    Error::config("the provider's program cannot be started").with("program", file.display());
                return Err(error.with_source(e));
            }
        }
    }
}

/// Kills the group when the program is not waited for any more.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // The group may be gone already.
            _ = killpg(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

async fn supervise(
    shared: Arc<Shared>,
    mut child: Child,
    stdin: ChildStdin,
    lines: mpsc::UnboundedReceiver<String>,
    stdout: ChildStdout,
    stderr: ChildStderr,
) {
    let mut said = tokio::spawn(listen(shared.clone(), stderr));
    let end = {
        let write = write(stdin, lines);
        let read = read(&shared, stdout);
        tokio::pin!(write, read);
        tokio::select! {
            end = &mut read => end,
            () = &mut write => End::Unused,
            () = shared.kill.cancelled() => End::Stuck,
        }
    };
    let limit = shared.limits.end;
    let file = shared.file.display().to_string();
    let error = match end {
        End::Unused => {
            // Its input is closed: it ends by itself. What it leaves running, such as machines, is its own affair.
            if timeout(limit, child.wait()).await.is_ok() {
                lock(&shared.group).0 = None;
            } else {
                stop(&mut child, &shared.group, limit).await;
            }
            Error::internal("the provider's program was ended")
        }
        End::Closed => {
            let status = match timeout(limit, child.wait()).await {
                Ok(Ok(status)) => {
                    lock(&shared.group).0 = None;
                    describe(status)
                }
                _ => {
                    stop(&mut child, &shared.group, limit).await;
                    "it closed its output and did not end".to_owned()
                }
            };
            finish(&mut said).await;
            let error = Error::internal("the provider's program ended before it answered");
            shared.with_tail(error.with("program", &file).with("status", status))
        }
        End::Broken(error) => {
            stop(&mut child, &shared.group, limit).await;
            finish(&mut said).await;
            shared.with_tail(error.with("program", &file))
        }
        End::Stuck => {
            stop(&mut child, &shared.group, limit).await;
            finish(&mut said).await;
            let error = Error::new(
                ErrorKind::Cancelled,
                "the provider's program did not end a call that was cancelled, and was stopped: `destroy` gives back what it made",
            );
            shared
                .with_tail(error.with("program", &file).with("waited", format!("{:?}", shared.limits.cancel)))
        }
    };
    shared.end(error);
}

fn describe(status: ExitStatus) -> String {
    status.to_string()
}

/// Waits a moment for the last words.
async fn finish(said: &mut JoinHandle<()>) {
    // A grandchild may hold the stream open for ever.
    if timeout(Duration::from_millis(500), &mut *said).await.is_err() {
        said.abort();
    }
}

/// Asks the whole group to end, and kills it when it does not.
async fn stop(child: &mut Child, group: &Mutex<Group>, limit: Duration) {
    lock(group).signal(Signal::SIGTERM);
    _ = timeout(limit, child.wait()).await;
    lock(group).signal(Signal::SIGKILL);
    if let Err(e) = child.wait().await {
        warn!(error = %e, "the provider's program cannot be waited for");
    }
    // The number may be another group's from now on.
    lock(group).0 = None;
}

/// Writes what is sent, until the last handle is dropped.
async fn write(mut stdin: ChildStdin, mut lines: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = lines.recv().await {
        // A program that reads no more has ended, or is about to: who reads its output says so.
        _ = stdin.write_all(format!("{line}\n").as_bytes()).await;
        _ = stdin.flush().await;
    }
}

/// Reads messages until something is wrong.
async fn read(shared: &Shared, stdout: ChildStdout) -> End {
    let mut stdout = BufReader::new(stdout);
    loop {
        let taken = match lines::next(&mut stdout, shared.limits.line).await {
            Ok(Some(line)) => shared.take(&line).await,
            Ok(None) => return End::Closed,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            return End::Broken(error);
        }
    }
}

/// Passes standard error on to the log, and remembers its end.
async fn listen(shared: Arc<Shared>, stderr: ChildStderr) {
    let mut stderr = BufReader::new(stderr);
    let program = shared.file.display().to_string();
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut stderr).take(LONGEST_WORDS).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = shared.shown(String::from_utf8_lossy(&line).trim_end());
        info!(%program, "{text}");
        let mut tail = lock(&shared.tail);
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(text);
    }
}

//! Runs what a session asks for, and carries bytes between it and its channel.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{Winsize, openpty},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use russh::{
    Channel, ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, unix::pipe},
    process::{Child, Command},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{COMMAND, THIS_PROGRAM, session::Session};

/// How long what a command left in the background may go on writing to its channel.
const DRAIN: Duration = Duration::from_millis(500);
/// Between the polite and the other way of ending what a client left behind.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes that wait for a slow program before its client is slowed down.
const QUEUE: usize = 8 << 20;
/// The window of a client that sends faster than its program reads.
const SLOW: u32 = 64 << 10;

/// A terminal that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Pty {
    pub(super) term: String,
    pub(super) size: Winsize,
}

/// Returns a size as the kernel wants it.
pub(super) fn winsize(columns: u32, rows: u32, width: u32, height: u32) -> Winsize {
    let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Winsize { ws_row: short(rows), ws_col: short(columns), ws_xpixel: short(width), ws_ypixel: short(height) }
}

/// What somebody's channel leads to.
#[derive(Debug)]
pub(super) struct Running {
    input: Option<mpsc::UnboundedSender<Vec<u8>>>,
    queued: Arc<AtomicUsize>,
    group: Option<Pid>,
    master: Option<OwnedFd>,
    gone: CancellationToken,
}

impl Running {
    /// Hands bytes of the client on. They wait where the program is slow; see [`Running::window`].
    pub(super) fn feed(&self, data: &[u8]) {
        if let Some(input) = &self.input {
            self.queued.fetch_add(data.len(), Ordering::Relaxed);
            // A program that reads no more is told by its end.
            let _ = input.send(data.to_vec());
        }
    }

    /// The client sends no more.
    pub(super) fn end_of_input(&mut self) {
        self.input = None;
    }

    /// Returns how much the client may send on, of `whole`.
    pub(super) fn window(&self, whole: u32) -> u32 {
        if self.queued.load(Ordering::Relaxed) > QUEUE { SLOW } else { whole }
    }

    pub(super) fn resize(&self, size: Winsize) {
        if let Some(master) = &self.master {
            let size = rustix::termios::Winsize {
                ws_row: size.ws_row,
                ws_col: size.ws_col,
                ws_xpixel: size.ws_xpixel,
                ws_ypixel: size.ws_ypixel,
            };
            let _ = rustix::termios::tcsetwinsize(master, size);
        }
    }

    pub(super) fn signal(&self, signal: &Sig) {
        if let (Some(group), Some(signal)) = (self.group, signal_of(signal)) {
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The channel or the connection is gone: what runs in it ends, too.
        self.gone.cancel();
    }
}

fn signal_of(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::SIGABRT,
        Sig::ALRM => Signal::SIGALRM,
        Sig::FPE => Signal::SIGFPE,
        Sig::HUP => Signal::SIGHUP,
        Sig::ILL => Signal::SIGILL,
        Sig::INT => Signal::SIGINT,
        Sig::KILL => Signal::SIGKILL,
        Sig::PIPE => Signal::SIGPIPE,
        Sig::QUIT => Signal::SIGQUIT,
        Sig::SEGV => Signal::SIGSEGV,
        Sig::TERM => Signal::SIGTERM,
        Sig::USR1 => Signal::SIGUSR1,
        Sig::Custom(name) => return format!("SIG{name}").parse().ok(),
    })
}

/// Names a signal as the protocol does.
fn name_of(number: i32) -> Option<Sig> {
    Some(match Signal::try_from(number).ok()? {
        Signal::SIGABRT => Sig::ABRT,
        Signal::SIGALRM => Sig::ALRM,
        Signal::SIGFPE => Sig::FPE,
        Signal::SIGHUP => Sig::HUP,
        Signal::SIGILL => Sig::ILL,
        Signal::SIGINT => Sig::INT,
        Signal::SIGKILL => Sig::KILL,
        Signal::SIGPIPE => Sig::PIPE,
        Signal::SIGQUIT => Sig::QUIT,
        Signal::SIGSEGV => Sig::SEGV,
        Signal::SIGTERM => Sig::TERM,
        Signal::SIGUSR1 => Sig::USR1,
        other => Sig::Custom(other.as_str().trim_start_matches("SIG").to_owned()),
    })
}

/// Starts a session's program and the tasks that carry its bytes.
pub(super) fn run(
    session: &Session,
    env: &[(String, String)],
    pty: Option<&Pty>,
    channel: Channel<Msg>,
    handle: Handle,
) -> io::Result<Running> {
    let mut command = Command::new(THIS_PROGRAM);
    command.arg(COMMAND).args(session.args()).env_clear().envs(env.iter().map(|(k, v)| (k, v)));
    let queued = Arc::new(AtomicUsize::new(0));
    let (input, fed) = mpsc::unbounded_channel();
    let gone = CancellationToken::new();
    // Nobody reads that half: what the client sends comes by `feed`, which never holds up the connection.
    let (_, writer) = channel.split();
    let writer = Arc::new(writer);
    let (child, master, pumps) = match pty {
        Some(pty) => {
            let pair = openpty(Some(&pty.size), None)?;
            let slave = || pair.slave.try_clone().map(Stdio::from);
            command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
            let child = command.spawn()?;
            // Held by the command as well: with it open the end of the terminal would never be seen.
            drop(command);
            drop(pair.slave);
            let (reader, sender) = (asynchronous(&pair.master)?, asynchronous(&pair.master)?);
            let reader = pipe::Receiver::from_owned_fd_unchecked(reader)?;
            let sender = pipe::Sender::from_owned_fd_unchecked(sender)?;
            tokio::spawn(feed(fed, sender, queued.clone()));
            let pump = tokio::spawn(pump(reader, writer.make_writer()));
            (child, Some(pair.master), vec![pump])
        }
        None => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn()?;
            let mut pumps = Vec::new();
            if let Some(stdin) = child.stdin.take() {
                tokio::spawn(feed(fed, stdin, queued.clone()));
            }
            if let Some(stdout) = child.stdout.take() {
                pumps.push(tokio::spawn(pump(stdout, writer.make_writer())));
            }
            if let Some(stderr) = child.stderr.take() {
                pumps.push(tokio::spawn(pump(stderr, writer.make_writer_ext(Some(1)))));
            }
            (child, None, pumps)
        }
    };
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    tokio::spawn(end(child, group, pumps, writer, handle, gone.clone()));
    Ok(Running { input: Some(input), queued, group, master, gone })
}

/// Carries bytes between a connection and a channel.
pub(super) fn forward(stream: TcpStream, channel: Channel<Msg>) -> Running {
    let queued = Arc::new(AtomicUsize::new(0));
    let (input, fed) = mpsc::unbounded_channel();
    let gone = CancellationToken::new();
    let (_, writer) = channel.split();
    let (reader, sender) = stream.into_split();
    tokio::spawn(feed(fed, sender, queued.clone()));
    let ended = gone.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = pump(reader, writer.make_writer()) => {}
            () = ended.cancelled() => {}
        }
        let _ = writer.eof().await;
        let _ = writer.close().await;
    });
    Running { input: Some(input), queued, group: None, master: None, gone }
}

/// Returns another descriptor of the terminal's end, for use without waiting in calls.
fn asynchronous(master: &OwnedFd) -> io::Result<OwnedFd> {
    let copy = master.try_clone()?;
    let flags = OFlag::from_bits_truncate(fcntl(copy.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(copy.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(File::from(copy).into())
}

async fn feed(
    mut fed: mpsc::UnboundedReceiver<Vec<u8>>,
    mut to: impl AsyncWrite + Unpin,
    queued: Arc<AtomicUsize>,
) {
    let mut open = true;
    while let Some(data) = fed.recv().await {
        // Once the program reads no more the rest is taken and dropped, so that nothing waits for it.
        open = open && to.write_all(&data).await.is_ok() && to.flush().await.is_ok();
        queued.fetch_sub(data.len(), Ordering::Relaxed);
    }
    let _ = to.shutdown().await;
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; 32 << 10];
    // A terminal whose programs are gone answers with an error instead of an end.
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

/// Waits for the end of the program, or ends it when its client is gone, and tells how it ended.
async fn end(
    mut child: Child,
    group: Option<Pid>,
    pumps: Vec<tokio::task::JoinHandle<()>>,
    writer: Arc<ChannelWriteHalf<Msg>>,
    handle: Handle,
    gone: CancellationToken,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        () = gone.cancelled() => {
            if let Some(group) = group {
                let _ = killpg(group, Signal::SIGHUP);
                if timeout(GRACE, child.wait()).await.is_err() {
                    let _ = killpg(group, Signal::SIGKILL);
                }
            }
            let _ = child.wait().await;
            for pump in pumps {
                pump.abort();
            }
            return;
        }
    };
    // Everything that was written before the end belongs to it; what went to the background does not hold it up.
    let limit = Instant::now() + DRAIN;
    for pump in pumps {
        let abort = pump.abort_handle();
        let mut pump = pump;
        tokio::select! {
            _ = &mut pump => {}
            () = quiet(limit, group) => abort.abort(),
            () = gone.cancelled() => abort.abort(),
        }
    }
    let id = writer.id();
    match status {
        Ok(status) => tell(&handle, id, status).await,
        Err(error) => super::log(format!("cannot wait for a session: {error}")),
    }
    let _ = writer.eof().await;
    let _ = writer.close().await;
}

/// Returns when what a session left in the background has had its time.
async fn quiet(limit: Instant, group: Option<Pid>) {
    let left = group.is_some_and(|group| killpg(group, None).is_ok());
    // Where nothing is left there is an end; only what was written before may still be on its way to a slow client.
    if left { sleep_until(limit).await } else { std::future::pending().await }
}

async fn tell(handle: &Handle, id: russh::ChannelId, status: ExitStatus) {
    match (status.code(), status.signal()) {
        (Some(code), _) => {
            let _ = handle.exit_status_request(id, u32::try_from(code).unwrap_or(255)).await;
        }
        (None, Some(number)) => {
            let signal = name_of(number).unwrap_or(Sig::TERM);
            let _ = handle
                .exit_signal_request(id, signal, status.core_dumped(), String::new(), String::new())
                .await;
        }
        (None, None) => {
            let _ = handle.exit_status_request(id, 255).await;
        }
    }
}

//! How one daemon of a node follows another while both run, as in a rolling update.
//!
//! Whoever holds the journal is the daemon of the node. It offers to give the journal away over a private socket in
//! `-state-dir`; a daemon that finds the journal held asks for it there.
//!
//! ```text
//!   new daemon                                old daemon
//!       │ Hello: levels, journal's version        │
//!       │ ───────────────────────────────────────▶│ answers the same
//!       │ HandOver                                │
//!       │ ───────────────────────────────────────▶│ is bound to it, and serves on
//!       │ takes the paths of the sockets:         │
//!       │ who connects from now on waits for it   │
//!       │ Placed                                  │
//!       │ ───────────────────────────────────────▶│ ends what is under way, and itself (exit code 0)
//!       │ waits for the lock, opens the journal,  ┴
//!       ▼ serves
//! ```
//!
//! Until Placed nothing has changed: a new daemon that ends before that leaves the old one as it was. Every step is
//! bounded. A socket without a holder of the lock is that of a crash and is not asked; a holder that does not answer ends
//! the start with its process id. A daemon that took the journal over keeps it for a while, so that an old one that is
//! started again, as the kubelet does until it deletes the pod, does not take it back.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use peerpod_proto::{
    CallContext, Client, Code, Server, Service, Status, messages::peer::common_level, server::Connection,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{journal, socket::BoundSocket, store::lock};

/// Name of the socket in `-state-dir`.
pub const SOCKET: &str = "handover.sock";
/// Name of the service on it.
const SERVICE: &str = "peerpod.HandOver";
/// The lowest and the highest level of its protocol that this version speaks.
const LEVELS: (u32, u32) = (1, 1);

const HELLO: &str = "Hello";
const HAND_OVER: &str = "HandOver";
const PLACED: &str = "Placed";

/// How long a daemon may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the journal is waited for: by a daemon that finds nobody to ask, and by one that was promised it.
const FREE_LIMIT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(20);
/// How long calls of other daemons may take when this one ends.
const GRACE: Duration = Duration::from_millis(500);

/// Both ends introduce themselves with this. Unknown keys are ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hello {
    version: String,
    /// As the process sees itself.
    pid: u32,
    min_level: u32,
    max_level: u32,
    /// The version of the journal's schema.
    journal: u32,
}

impl Hello {
    fn ours() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            min_level: LEVELS.0,
            max_level: LEVELS.1,
            journal: journal::schema(),
        }
    }
}

/// The answer to HandOver.
#[derive(Debug, Serialize, Deserialize)]
struct Promise {
    /// Sockets whose paths the new daemon may take.
    serves: Vec<PathBuf>,
}

/// Nothing to say.
#[derive(Debug, Serialize, Deserialize)]
struct Nothing {}

/// A daemon that promised its journal.
#[derive(Debug)]
pub struct Predecessor {
    client: Client,
    state_dir: PathBuf,
    who: String,
    serves: Vec<PathBuf>,
}

/// Asks the daemon that holds the journal in `state_dir` for it. Returns `None` when nobody holds it.
///
/// # Errors
///
/// When a daemon holds it and does not answer in time, refuses, or must not be asked: it belongs to another user, or
/// wrote a journal that this program cannot read. Nothing has changed then.
pub async fn ask(state_dir: &Path) -> Result<Option<Predecessor>> {
    let begun = Instant::now();
    loop {
        if is_free(state_dir)? {
            return Ok(None);
        }
        let missing = match UnixStream::connect(state_dir.join(SOCKET)).await {
            Ok(stream) => match Predecessor::ask(state_dir, stream).await {
                Ok(predecessor) => return Ok(Some(predecessor)),
                // It ended meanwhile.
                Err(_) if is_free(state_dir)? => return Ok(None),
                Err(Refusal::Ended) => "it ends every connection".to_owned(),
                Err(Refusal::Final(error)) => return Err(error),
            },
            Err(error) => format!("it takes no request for it at {SOCKET}: {error}"),
        };
        if begun.elapsed() >= FREE_LIMIT {
            bail!(
                "another daemon ({}) holds {}, and {missing}: end it, or give this one a -state-dir of its own",
                holder(state_dir),
                journal::lock_path(state_dir).display()
            );
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Why the journal was not promised.
enum Refusal {
    /// The connection ended: another attempt may find it free.
    Ended,
    Final(anyhow::Error),
}

impl Predecessor {
    async fn ask(state_dir: &Path, stream: UnixStream) -> Result<Self, Refusal> {
        let peer = stream.peer_cred().context("look at who holds the journal").map_err(Refusal::Final)?;
        // What the kernel says is seen from here; what the file says is what that process saw.
        let who = match peer.pid().filter(|pid| *pid > 0) {
            Some(pid) => format!("process {pid}"),
            None => holder(state_dir),
        };
        let path = journal::lock_path(state_dir);
        if peer.uid() != geteuid().as_raw() {
            return Err(Refusal::Final(anyhow::anyhow!(
                "the daemon that holds {} ({who}) runs as user {} and this one as user {}: it is not asked for the \
                 journal; end it, or run both as one user",
                path.display(),
                peer.uid(),
                geteuid()
            )));
        }
        let client = Client::connect(stream);
        let asked = async {
            let theirs: Hello = call(&client, HELLO, &Hello::ours()).await?;
            check(&theirs).map_err(|why| Status::new(Code::FailedPrecondition, why))?;
            Ok::<_, Status>((theirs, call::<_, Promise>(&client, HAND_OVER, &Nothing {}).await?))
        };
        match tokio::time::timeout(ANSWER_LIMIT, asked).await {
            Ok(Ok((theirs, promise))) => {
                tracing::info!(
                    holder = who,
                    version = theirs.version,
                    "the daemon that runs hands the journal over"
                );
                Ok(Self { client, state_dir: state_dir.to_owned(), who, serves: promise.serves })
            }
            Ok(Err(status)) if status == Status::closed() => Err(Refusal::Ended),
            Ok(Err(status)) => Err(Refusal::Final(anyhow::anyhow!(
                "the daemon that holds {} ({who}) keeps it: {}",
                path.display(),
                status.message
            ))),
            Err(_) => Err(Refusal::Final(anyhow::anyhow!(
                "the daemon that holds {} ({who}) does not answer within {ANSWER_LIMIT:?}: it is stopped or hangs; \
                 end it (kill -KILL), and this one takes on its sandboxes, or let it go on (kill -CONT)",
                path.display()
            ))),
        }
    }

    /// Whether the path of a socket is one that it serves, so that it may be taken.
    pub fn serves(&self, path: &Path) -> bool {
        self.serves.iter().any(|served| served == path)
    }

    /// Says that the paths of the sockets are taken, and waits until the journal is free.
    ///
    /// # Errors
    ///
    /// When the other daemon does not answer, or does not end in time.
    pub async fn end(self) -> Result<()> {
        let begun = Instant::now();
        let told = call::<_, Nothing>(&self.client, PLACED, &Nothing {});
        // One that ended by itself answers nothing and leaves the journal free.
        let answered = matches!(tokio::time::timeout(ANSWER_LIMIT, told).await, Ok(Ok(_)));
        while !is_free(&self.state_dir)? {
            if begun.elapsed() >= FREE_LIMIT || (!answered && begun.elapsed() >= ANSWER_LIMIT) {
                bail!(
                    "the daemon that promised {} ({}) did not end within {:?}: look at its log, and end it (kill -KILL)",
                    journal::lock_path(&self.state_dir).display(),
                    self.who,
                    begun.elapsed()
                );
            }
            tokio::time::sleep(STEP).await;
        }
        tracing::info!(holder = self.who, waited = ?begun.elapsed(), "the journal is free");
        Ok(())
    }
}

/// Says what keeps this program from following the other one.
fn check(theirs: &Hello) -> Result<(), String> {
    let ours = Hello::ours();
    if common_level((ours.min_level, ours.max_level), (theirs.min_level, theirs.max_level)).is_none() {
        return Err(format!(
            "it has version {} and speaks levels {} to {} of the hand-over, this one {} to {}: end it first",
            theirs.version, theirs.min_level, theirs.max_level, ours.min_level, ours.max_level
        ));
    }
    if theirs.journal > ours.journal {
        return Err(format!(
            "its journal has version {} and this program knows versions up to {}: start version {} or a newer one",
            theirs.journal, ours.journal, theirs.version
        ));
    }
    Ok(())
}

async fn call<Req: Serialize, Resp: DeserializeOwned>(
    client: &Client,
    method: &str,
    request: &Req,
) -> Result<Resp, Status> {
    let payload = to_json(request)?;
    from_json(&client.request(SERVICE, method, payload, None, Vec::new()).await?)
}

fn to_json<T: Serialize>(value: &T) -> Result<Bytes, Status> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Status::internal(error.to_string()))
}

fn from_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(payload)
        .map_err(|error| Status::invalid_argument(format!("this is not the JSON expected: {error}")))
}

/// Whether nobody holds the journal. The lock is not kept.
pub(crate) fn is_free(state_dir: &Path) -> Result<bool> {
    let path = journal::lock_path(state_dir);
    let file = match fs::OpenOptions::new().write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(true),
        Err((_, Errno::EWOULDBLOCK)) => Ok(false),
        Err((_, errno)) => Err(errno).with_context(|| format!("look at the lock {}", path.display())),
    }
}

/// The process that holds the journal, in words.
pub(crate) fn holder(state_dir: &Path) -> String {
    match fs::read_to_string(journal::lock_path(state_dir)) {
        Ok(text) if !text.trim().is_empty() => format!("process {} as it sees itself", text.trim()),
        _ => "its process is not known".to_owned(),
    }
}

/// What became of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The one named has the sockets and waits for the journal.
    By(String),
    /// The one named took the sockets and went away: nobody reaches this daemon any more.
    Lost(String),
}

/// The offer of a daemon that holds the journal. Dropping it takes it back.
#[derive(Debug)]
pub struct Offer {
    taken: watch::Receiver<Option<Taken>>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    _socket: BoundSocket,
}

/// What is offered.
#[derive(Debug)]
pub struct Terms {
    /// Folder of the journal, which this process holds.
    pub state_dir: PathBuf,
    /// Sockets that this daemon serves.
    pub sockets: Vec<(PathBuf, Arc<BoundSocket>)>,
    /// Until then the journal is kept.
    pub kept_until: Option<Instant>,
}

impl Offer {
    /// Offers the journal to the next daemon.
    ///
    /// # Errors
    ///
    /// When the socket cannot be bound.
    pub async fn make(terms: Terms) -> Result<Self> {
        let path = terms.state_dir.join(SOCKET);
        let (socket, listener) = BoundSocket::bind(&path, true).await?;
        // For people, and for a daemon that cannot see whose socket it is. The lock counts, not what it says.
        let told = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(journal::lock_path(&terms.state_dir))
            .and_then(|mut file| {
                io::Write::write_all(&mut file, format!("{}\n", std::process::id()).as_bytes())
            });
        if let Err(error) = told {
            tracing::debug!(%error, "the process id is not written beside the journal");
        }
        let (tell, taken) = watch::channel(None);
        let service = Giving { terms, promised: Mutex::default(), tell };
        // Whoever asks after this one gave its journal away has nothing to wait for.
        let server = Server::new(Arc::new(service))
            .with_allowed_uids([0, geteuid().as_raw()])
            .with_grace(GRACE)
            .with_linger(Duration::ZERO);
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let serving = tokio::spawn(async move { server.serve_unix(listener, stopping).await });
        Ok(Self { taken, stop, serving, _socket: socket })
    }

    /// Waits until another daemon has the sockets.
    pub async fn taken(&self) -> Taken {
        let mut taken = self.taken.clone();
        let known = taken.wait_for(Option::is_some).await.ok().and_then(|taken| taken.clone());
        match known {
            Some(taken) => taken,
            // The offer ended before.
            None => std::future::pending().await,
        }
    }

    /// Ends the offer, after what is being answered.
    pub async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.serving.await {
            tracing::warn!(%error, "the offer of the journal ended badly");
        }
    }
}

/// The old daemon's side.
struct Giving {
    terms: Terms,
    /// The connection that the journal is promised to, and who is at its other end.
    promised: Mutex<Option<(u64, String)>>,
    tell: watch::Sender<Option<Taken>>,
}

impl Giving {
    fn promise(&self, connection: &Connection) -> Result<Promise, Status> {
        let left = self.terms.kept_until.and_then(|until| until.checked_duration_since(Instant::now()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            return Err(Status::new(
                Code::FailedPrecondition,
                format!(
                    "it took the journal over a short while ago and keeps it for another {} s (-handover-rest); a \
                     daemon that was just replaced is not needed any more",
                    left.as_secs() + 1
                ),
            ));
        }
        let mut promised = lock(&self.promised);
        if let Some((other, who)) = &*promised
            && *other != connection.id
        {
            return Err(Status::new(Code::FailedPrecondition, format!("it is promised to {who}")));
        }
        let who = match connection.peer.and_then(|peer| peer.pid).filter(|pid| *pid > 0) {
            Some(pid) => format!("process {pid}"),
            None => "a daemon whose process is not seen from here".to_owned(),
        };
        tracing::info!(successor = who, "another daemon asks for the journal: it is promised");
        *promised = Some((connection.id, who));
        Ok(Promise { serves: self.terms.sockets.iter().map(|(path, _)| path.clone()).collect() })
    }

    fn placed(&self, connection: u64) -> Result<Nothing, Status> {
        match &*lock(&self.promised) {
            Some((promised, who)) if *promised == connection => {
                self.tell.send_replace(Some(Taken::By(who.clone())));
                Ok(Nothing {})
            }
            _ => Err(Status::new(Code::FailedPrecondition, "HandOver comes first")),
        }
    }
}

#[async_trait]
impl Service for Giving {
    async fn call(
        &self,
        ctx: CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status> {
        if service != SERVICE {
            return Err(Status::unknown_service(service));
        }
        match method {
            // The one who asks judges it, so that the message reaches its log.
            HELLO => {
                let _: Hello = from_json(&payload)?;
                to_json(&Hello::ours())
            }
            HAND_OVER => to_json(&self.promise(&ctx.connection)?),
            PLACED => to_json(&self.placed(ctx.connection.id)?),
            _ => Err(Status::unknown_method(method)),
        }
    }

    fn disconnected(&self, connection: &Connection) {
        let mut promised = lock(&self.promised);
        if self.tell.borrow().is_some() {
            return;
        }
        let Some((_, who)) = promised.take_if(|(promised, _)| *promised == connection.id) else { return };
        if self.terms.sockets.iter().all(|(_, socket)| socket.is_ours()) {
            tracing::warn!(
                successor = who,
                "the daemon that asked for the journal went away: this one goes on"
            );
            return;
        }
        self.tell.send_replace(Some(Taken::Lost(who)));
    }
}

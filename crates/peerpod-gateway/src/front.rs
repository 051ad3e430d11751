//! The socket that shims call for their sandboxes' life, kept open while daemons come and go.
//!
//! A shim of runtime-rs keeps one connection to it for the whole life of its pod and takes its end for the end of the
//! VM. So the gateway owns the socket, and carries each call to the daemon of the moment over a connection of its own:
//! when the shim hangs up, that connection ends and the daemon sees its call cancelled, as if the shim had called it.
//!
//! While no daemon is there, calls wait for one, and a StopVM is answered and kept. What is kept is told until a daemon
//! has taken it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::unistd::geteuid;
use peerpod_proto::envelope::KeyValue;
use peerpod_proto::messages::hypervisor;
use peerpod_proto::server::Connection;
use peerpod_proto::server::{decode, encode};
use peerpod_proto::{CallContext, Client, Code, Server, Service, Status};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::{GatewayError, GatewayErrorKind};
use crate::gateway::Socket;
use crate::shims::{SHIM_PID, ShimConnections};

/// How long a call waits for a daemon.
const DAEMON_TIME: Duration = Duration::from_secs(60);
/// How long a StopVM waits for one before it is kept.
const STOP_TIME: Duration = Duration::from_millis(100);
/// How long a daemon may take to answer a StopVM before it is kept: a shim waits a second, and one daemon that follows
/// another takes calls before it can answer them.
const STOP_ANSWER_TIME: Duration = Duration::from_millis(500);
/// The pause between attempts to reach the daemon.
const PAUSE: Duration = Duration::from_millis(20);
/// The pause between attempts to hand a kept StopVM over.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(500);
/// How long the daemon may take to answer a StopVM that is handed over.
const HAND_OVER_TIME: Duration = Duration::from_secs(10);
/// How long calls under way may take when the gateway ends.
const GRACE: Duration = Duration::from_millis(500);

/// The shims' socket, once a daemon asked for it.
#[derive(Default)]
pub(crate) struct Front {
    served: tokio::sync::Mutex<Option<Served>>,
    daemon: Arc<Daemon>,
}

struct Served {
    socket: Socket,
    path: PathBuf,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Front {
    /// Serves shims at `path` and carries their calls to the daemon at `daemon` from now on.
    ///
    /// # Errors
    ///
    /// When a live program listens at `path`, or the gateway serves another path already.
    pub(crate) async fn serve(&self, path: &Path, daemon: &Path) -> Result<(), GatewayError> {
        let mut served = self.served.lock().await;
        match &*served {
            Some(served) if served.path != path => {
                let message = format!(
                    "the gateway serves shims at {} already: give the daemon that -socket, or restart the gateway",
                    served.path.display()
                );
                return Err(GatewayError::new(GatewayErrorKind::Conflict, message));
            }
            Some(_) => {}
            None => {
                let mut socket = Socket::bind(path).await?;
                let listener = socket.take_listener().ok_or_else(|| {
                    GatewayError::new(GatewayErrorKind::Internal, "the socket of the shims has no listener")
                })?;
                let stop = CancellationToken::new();
                let server = Server::new(Arc::clone(&self.daemon) as _)
                    .with_allowed_uids([0, geteuid().as_raw()])
                    .with_grace(GRACE);
                let stopping = stop.clone();
                let task = tokio::spawn(async move { server.serve_unix(listener, stopping).await });
                let (handing, stopping) = (Arc::clone(&self.daemon), stop.clone());
                tokio::spawn(async move { stopping.run_until_cancelled(handing.hand_over()).await });
                info!(socket = %path.display(), "shims are served");
                *served = Some(Served { socket, path: path.to_owned(), stop, task });
            }
        }
        self.daemon.path.send_replace(Some(daemon.to_owned()));
        Ok(())
    }

    /// Returns the sandboxes whose shim kept its connection and lost it.
    pub(crate) fn closed_shims(&self) -> BTreeSet<String> {
        self.daemon.shims.closed()
    }

    /// Ends the connections of the shims and removes the socket.
    pub(crate) async fn end(&self) -> Result<(), GatewayError> {
        let Some(served) = self.served.lock().await.take() else { return Ok(()) };
        served.stop.cancel();
        if let Err(error) = served.task.await {
            warn!(%error, "the server of the shims ended badly");
        }
        served.socket.remove()
    }
}

/// The daemon of the moment, as the service that shims see.
#[derive(Default)]
struct Daemon {
    path: watch::Sender<Option<PathBuf>>,
    shims: ShimConnections,
    /// Sandboxes whose StopVM no daemon has taken yet.
    stops: Mutex<BTreeSet<String>>,
    /// Told when one is kept.
    kept: Notify,
}

impl Daemon {
    /// Connects to the daemon, and waits for one until `deadline`.
    async fn connect(&self, deadline: Instant) -> Result<Client, Status> {
        let mut path = self.path.subscribe();
        loop {
            let current = path.borrow_and_update().clone();
            let error = match current {
                Some(current) => match Client::connect_unix(&current).await {
                    Ok(client) => return Ok(client),
                    Err(error) => format!("{}: {error}", current.display()),
                },
                None => "none has come yet".to_owned(),
            };
            if Instant::now() >= deadline {
                let message =
                    format!("no daemon answers on this node ({error}): is cloud-api-adaptor running?");
                return Err(Status::new(Code::Unavailable, message));
            }
            sleep(PAUSE).await;
        }
    }

    /// Carries one call to the daemon. Dropping the future closes the connection, which cancels the call there.
    async fn carry(
        &self,
        ctx: &CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
        wait: Duration,
    ) -> Result<Bytes, Status> {
        let wait_end = Instant::now() + wait;
        let client = self.connect(ctx.deadline.map_or(wait_end, |end| end.min(wait_end))).await?;
        let left = ctx.deadline.map(|end| end.saturating_duration_since(Instant::now()));
        client.request(service, method, payload, left, ctx.metadata.clone()).await
    }

    async fn stop(&self, ctx: &CallContext, payload: Bytes) -> Result<Bytes, Status> {
        let hypervisor::StopVmRequest { id } = decode(payload.clone())?;
        self.shims.forget(&id);
        let carried = self.carry(ctx, hypervisor::SERVICE, hypervisor::STOP_VM, payload, STOP_TIME);
        let carried = timeout(STOP_ANSWER_TIME, carried).await;
        match carried.unwrap_or_else(|_| Err(Status::deadline_exceeded())) {
            // Refused by nobody: there is no daemon, or it ended before it answered.
            // One that is stopped or hangs may end before it sees the call: told twice is better than lost.
            Err(status)
                if status == Status::closed()
                    || matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) =>
            {
                warn!(
                    sandbox_id = id,
                    reason = status.message,
                    "no daemon takes this StopVM: it is kept for the next one"
                );
                self.stops().insert(id);
                self.kept.notify_one();
                Ok(encode(&hypervisor::StopVmResponse {}))
            }
            answer => answer,
        }
    }

    /// Tells the daemon what was stopped while none took it, for as long as the shims are served.
    async fn hand_over(&self) {
        loop {
            let Some(id) = self.stops().first().cloned() else {
                self.kept.notified().await;
                continue;
            };
            let request = hypervisor::StopVmRequest { id: id.clone() };
            let end = Instant::now() + HAND_OVER_TIME;
            let told = async {
                let client = self.connect(end).await?;
                let (service, method) = (hypervisor::SERVICE, hypervisor::STOP_VM);
                client.call::<_, hypervisor::StopVmResponse>(service, method, &request, None).await
            };
            match timeout_at(end, told).await.unwrap_or_else(|_| Err(Status::deadline_exceeded())) {
                Ok(_) => {
                    info!(sandbox_id = id, "the daemon has taken a StopVM that was kept");
                    self.stops().remove(&id);
                }
                Err(status) => {
                    warn!(sandbox_id = id, error = %status, "a StopVM cannot be handed over yet");
                    sleep(HAND_OVER_PAUSE).await;
                }
            }
        }
    }

    fn stops(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Service for Daemon {
    async fn call(
        &self,
        mut ctx: CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status> {
        if (service, method) == (hypervisor::SERVICE, hypervisor::STOP_VM) {
            // Not ended with its caller: a shim that is killed in the middle still means it.
            return self.stop(&ctx, payload).await;
        }
        let starts = (service, method) == (hypervisor::SERVICE, hypervisor::START_VM);
        let started = starts.then(|| decode::<hypervisor::StartVmRequest>(payload.clone())).transpose()?;
        if started.is_some() && !ctx.metadata.iter().any(|pair| pair.key == SHIM_PID) {
            // The daemon sees only us at the other end.
            let pid = ctx.connection.peer.and_then(|peer| peer.pid).unwrap_or(0);
            ctx.metadata.push(KeyValue { key: SHIM_PID.into(), value: pid.to_string() });
        }
        let end = Instant::now() + DAEMON_TIME;
        let carried = async {
            loop {
                let left = end.saturating_duration_since(Instant::now());
                let result = self.carry(&ctx, service, method, payload.clone(), left).await;
                // A daemon that hands over may end between the connection and the answer. Asking the next one makes
                // nothing happen twice, and a shim need not hear of it.
                let again = (service, method) == (hypervisor::SERVICE, hypervisor::VERSION)
                    && result == Err(Status::closed())
                    && !left.is_zero();
                if !again {
                    break result;
                }
                sleep(PAUSE).await;
            }
        };
        let result = tokio::select! {
            result = carried => result,
            () = ctx.cancel.cancelled() => return Err(Status::new(Code::Canceled, "the caller went away")),
        };
        if let (Ok(_), Some(request)) = (&result, started) {
            self.shims.started(ctx.connection.id, &request.id);
        }
        result.map_err(|status| {
            if status == Status::closed() {
                return Status::new(
                    Code::Unavailable,
                    format!("the daemon of this node ended during {method}"),
                );
            }
            status
        })
    }

    fn disconnected(&self, connection: &Connection) {
        self.shims.ended(connection.id);
    }
}

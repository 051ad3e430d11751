//! The private socket over which a daemon in another process uses the gateway.
//!
//! The calls are those of [`AgentProxies`], as JSON in the frames of ttrpc. A daemon says hello first and learns
//! the levels this gateway speaks, so that a gateway serves the daemon before and after its own version. Within
//! a level, unknown keys are ignored and new keys have defaults.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::unistd::geteuid;
use peerpod_proto::{CallContext, Server, Service, Status};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::error::GatewayError;
use crate::front::Front;
use crate::gateway::{Gateway, Socket};
use crate::spec::ProxySpec;
use crate::{AgentProxies, GatewayErrorKind};

/// Name of the service on the control socket.
pub const SERVICE: &str = "peerpod.Gateway";

/// The lowest and the highest level of the control protocol that this version speaks.
///
/// | level | what it added |
/// |---|---|
/// | 1 | registering sandboxes |
/// | 2 | serving the socket of the shims |
pub const LEVELS: (u32, u32) = (1, 2);

/// The level from which a gateway serves the socket of the shims.
pub(crate) const LEVEL_FRONT: u32 = 2;

/// How long calls under way may take at the end; a daemon that waits for a guest finds out itself.
const GRACE: Duration = Duration::from_millis(500);

/// Names of the methods.
pub(crate) mod method {
    pub(crate) const HELLO: &str = "Hello";
    pub(crate) const REGISTER: &str = "Register";
    pub(crate) const WAIT_READY: &str = "WaitReady";
    pub(crate) const UNREGISTER: &str = "Unregister";
    pub(crate) const LIST: &str = "List";
    pub(crate) const SERVE_SHIMS: &str = "ServeShims";
    pub(crate) const CLOSED_SHIMS: &str = "ClosedShims";
}

/// Both ends introduce themselves with this.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) min_level: u32,
    pub(crate) max_level: u32,
}

impl Hello {
    /// Introduces the program called `name`.
    pub(crate) fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            min_level: LEVELS.0,
            max_level: LEVELS.1,
        }
    }

    /// The level to speak with the other end.
    pub(crate) fn level_with(&self, other: &Self) -> Result<u32, GatewayError> {
        let (ours, theirs) = ((self.min_level, self.max_level), (other.min_level, other.max_level));
        peerpod_proto::messages::peer::common_level(ours, theirs).ok_or_else(|| {
            GatewayError::new(
                GatewayErrorKind::Unavailable,
                format!(
                    "{} {} speaks levels {} to {} of the control protocol and {} {} levels {} to {}: update the older one",
                    self.name, self.version, ours.0, ours.1, other.name, other.version, theirs.0, theirs.1,
                ),
            )
        })
    }
}

/// The request of a registration.
#[derive(Serialize, Deserialize)]
pub(crate) struct Register<S = ProxySpec> {
    pub(crate) spec: S,
}

/// The request about one sandbox.
#[derive(Serialize, Deserialize)]
pub(crate) struct Sandbox<S = String> {
    pub(crate) sandbox_id: S,
}

/// The request to serve the socket of the shims.
#[derive(Serialize, Deserialize)]
pub(crate) struct ServeShims {
    /// Where shims call.
    pub(crate) socket: PathBuf,
    /// Where the daemon takes their calls.
    pub(crate) daemon: PathBuf,
}

/// A request or an answer without content.
#[derive(Serialize, Deserialize)]
pub(crate) struct Nothing {}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Bytes, Status> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Status::internal(error.to_string()))
}

pub(crate) fn from_json<T: DeserializeOwned>(what: &str, payload: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(payload)
        .map_err(|error| Status::invalid_argument(format!("{what} is not the JSON expected: {error}")))
}

/// Offers a gateway to the daemon.
pub struct ControlServer {
    listener: UnixListener,
    server: Server,
    socket: Socket,
    front: Arc<Front>,
}

impl ControlServer {
    /// Binds the control socket, for root and our own user only. A socket that nobody listens at is replaced.
    ///
    /// # Errors
    ///
    /// When a live program listens at the path, or the system refuses.
    pub async fn bind(gateway: Gateway, path: &Path) -> Result<Self, GatewayError> {
        let mut socket = Socket::bind(path).await?;
        let listener = socket.take_listener().ok_or_else(|| {
            GatewayError::new(GatewayErrorKind::Internal, "the control socket has no listener")
        })?;
        let front = Arc::new(Front::default());
        let server = Server::new(Arc::new(Control { gateway, front: Arc::clone(&front) }))
            .with_allowed_uids([0, geteuid().as_raw()])
            .with_grace(GRACE);
        Ok(Self { listener, server, socket, front })
    }

    /// Serves daemons, and shims once a daemon asked for it, until `stop` is cancelled; then removes both sockets. The
    /// sandboxes live on.
    ///
    /// # Errors
    ///
    /// When a socket file cannot be removed.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), GatewayError> {
        self.server.serve_unix(self.listener, stop).await;
        let front = self.front.end().await;
        self.socket.remove().and(front)
    }
}

struct Control {
    gateway: Gateway,
    front: Arc<Front>,
}

#[async_trait::async_trait]
impl Service for Control {
    async fn call(
        &self,
        ctx: CallContext,
        service: &str,
        called: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status> {
        if service != SERVICE {
            return Err(Status::unknown_service(service));
        }
        match called {
            method::HELLO => {
                // The daemon judges the levels, so that the message reaches its log.
                let daemon: Hello = from_json("hello", &payload)?;
                tracing::info!(name = daemon.name, version = daemon.version, "a daemon is connected");
                to_json(&Hello::of(env!("CARGO_PKG_NAME")))
            }
            method::REGISTER => {
                let Register { spec } = from_json("specification", &payload)?;
                self.gateway.register(spec).await?;
                to_json(&Nothing {})
            }
            method::WAIT_READY => {
                let Sandbox { sandbox_id } = from_json::<Sandbox>("request", &payload)?;
                to_json(&self.gateway.wait_ready(&sandbox_id, ctx.cancel).await?)
            }
            method::UNREGISTER => {
                let Sandbox { sandbox_id } = from_json::<Sandbox>("request", &payload)?;
                self.gateway.unregister(&sandbox_id).await?;
                to_json(&Nothing {})
            }
            method::SERVE_SHIMS => {
                let ServeShims { socket, daemon } = from_json("request", &payload)?;
                self.front.serve(&socket, &daemon).await?;
                to_json(&Nothing {})
            }
            method::CLOSED_SHIMS => to_json(&self.front.closed_shims()),
            method::LIST => to_json(&self.gateway.list().await?),
            unknown => Err(Status::unknown_method(unknown)),
        }
    }
}

//! The gateway of another process, as its daemon sees it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use peerpod_proto::{Client, Status};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::AgentProxies;
use crate::control::{
    Hello, LEVEL_FRONT, Nothing, Register, SERVICE, Sandbox, ServeShims, from_json, method, to_json,
};
use crate::error::{GatewayError, GatewayErrorKind};
use crate::spec::{ProxySpec, ProxyStatus, ReadyInfo};

/// How long a gateway that restarts is waited for, unless said otherwise.
const RECONNECT_TIME: Duration = Duration::from_secs(10);

/// The pause between attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a call is made whose connection breaks each time.
const REPEATS: u32 = 5;

/// How long a gateway may take to say hello.
const HELLO_TIME: Duration = Duration::from_secs(5);

/// Uses the gateway of another process over its control socket.
///
/// The connection is made at the first call and again when it broke. All calls can be repeated, so a call that
/// was under way is repeated too.
#[derive(Debug)]
pub struct RemoteGateway {
    socket: PathBuf,
    name: String,
    reconnect_time: Duration,
    client: Mutex<Option<(Client, u32)>>,
}

impl RemoteGateway {
    /// Uses the gateway whose control socket is at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            name: "daemon".to_owned(),
            reconnect_time: RECONNECT_TIME,
            client: Mutex::new(None),
        }
    }

    /// Sets how the gateway's log calls this program.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets how long a gateway that cannot be reached is waited for; 10 s else.
    #[must_use]
    pub fn with_reconnect_time(mut self, time: Duration) -> Self {
        self.reconnect_time = time;
        self
    }

    /// Has the gateway serve shims at `socket` and carry their calls to this daemon, which takes them at `daemon`.
    ///
    /// The gateway goes on doing so when the daemon ends, until another one takes its place. Returns whether the gateway
    /// can do it: one of an earlier version cannot.
    ///
    /// # Errors
    ///
    /// When the gateway cannot be reached, serves another path, or a live program listens at `socket`.
    pub async fn serve_shims(&self, socket: &Path, daemon: &Path) -> Result<bool, GatewayError> {
        if self.connected().await?.1 < LEVEL_FRONT {
            return Ok(false);
        }
        let request = ServeShims { socket: socket.to_owned(), daemon: daemon.to_owned() };
        self.call::<_, Nothing>(method::SERVE_SHIMS, &request).await?;
        Ok(true)
    }

    /// Says which gateway answers, on a connection of its own, and waits for one as any call does.
    ///
    /// # Errors
    ///
    /// When no gateway answers in time, or none that speaks a level of ours.
    pub async fn describe(&self) -> Result<GatewayInfo, GatewayError> {
        let deadline = Instant::now() + self.reconnect_time;
        loop {
            let error = match self.connect().await {
                Ok((_, info)) => return Ok(info),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Failed(error)) => error,
            };
            if Instant::now() >= deadline {
                return Err(self.unreached(&error));
            }
            sleep(PAUSE).await;
        }
    }

    /// Returns what is cancelled when the connection of this moment breaks, as it does when the gateway restarts.
    ///
    /// Take it before the gateway is told what it serves. One that restarts in between, and that another call has
    /// connected to since, knows nothing then, and this says so.
    ///
    /// # Errors
    ///
    /// When the gateway cannot be reached at all.
    pub async fn connection(&self) -> Result<CancellationToken, GatewayError> {
        // The client is not held: it closes the connection with its last holder.
        Ok(self.connected().await?.0.on_close())
    }

    /// Makes a call, and makes it again when the connection breaks.
    async fn call<Req, Resp>(&self, called: &str, request: &Req) -> Result<Resp, GatewayError>
    where
        Req: Serialize + Sync,
        Resp: DeserializeOwned,
    {
        let payload = to_json(request)?;
        for _ in 0..REPEATS {
            let (client, _) = self.connected().await?;
            let result = client.request(SERVICE, called, payload.clone(), None, Vec::new()).await;
            match result {
                Ok(answer) => return Ok(from_json("answer of the gateway", &answer)?),
                // The code of a closed connection is no code of the gateway's own.
                Err(status) if status == Status::closed() => {
                    debug!(called, "connection to the gateway broke, the call is made again");
                }
                Err(status) => return Err(status.into()),
            }
            sleep(PAUSE).await;
        }
        let message = format!("the gateway at {} closes every connection", self.socket.display());
        Err(GatewayError::new(GatewayErrorKind::Unavailable, message))
    }

    /// The connection and the level spoken on it, made anew where it is gone.
    async fn connected(&self) -> Result<(Client, u32), GatewayError> {
        // Counted from here, so that calls which queue behind a vain attempt do not wait all over again.
        let deadline = Instant::now() + self.reconnect_time;
        let mut client = self.client.lock().await;
        if let Some(client) = client.as_ref().filter(|(client, _)| !client.is_closed()) {
            return Ok(client.clone());
        }
        loop {
            let error = match self.connect().await {
                Ok((connected, info)) => return Ok(client.insert((connected, info.level)).clone()),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Failed(error)) => error,
            };
            if Instant::now() >= deadline {
                return Err(self.unreached(&error));
            }
            sleep(PAUSE).await;
        }
    }

    fn unreached(&self, error: &str) -> GatewayError {
        let message = format!(
            "no gateway answers at {} within {:?}: {error}; is peerpod-gateway running?",
            self.socket.display(),
            self.reconnect_time,
        );
        GatewayError::new(GatewayErrorKind::Unavailable, message)
    }

    async fn connect(&self) -> Result<(Client, GatewayInfo), Attempt> {
        let failed = |error: &dyn std::fmt::Display| Attempt::Failed(error.to_string());
        let client = Client::connect_unix(&self.socket).await.map_err(|error| failed(&error))?;
        let ours = Hello::of(&self.name);
        let hello = to_json(&ours).map_err(|status| Attempt::Final(status.into()))?;
        let answer = client
            .request(SERVICE, method::HELLO, hello, Some(HELLO_TIME), Vec::new())
            .await
            .map_err(|status| failed(&status))?;
        let theirs: Hello =
            from_json("hello of the gateway", &answer).map_err(|status| Attempt::Final(status.into()))?;
        let level = ours.level_with(&theirs).map_err(Attempt::Final)?;
        debug!(level, version = theirs.version, "gateway is connected");
        Ok((client, GatewayInfo { version: theirs.version, level, serves_shims: level >= LEVEL_FRONT }))
    }
}

/// What a gateway says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GatewayInfo {
    /// Its version.
    pub version: String,
    /// The level of the control protocol that both ends speak.
    pub level: u32,
    /// Whether it can serve the socket of the shims.
    pub serves_shims: bool,
}

/// Why an attempt to connect failed.
enum Attempt {
    /// Another one may succeed.
    Failed(String),
    /// Another one would fail in the same way.
    Final(GatewayError),
}

#[async_trait::async_trait]
impl AgentProxies for RemoteGateway {
    async fn register(&self, spec: ProxySpec) -> Result<(), GatewayError> {
        self.call::<_, Nothing>(method::REGISTER, &Register { spec: &spec }).await.map(drop)
    }

    async fn wait_ready(
        &self,
        sandbox_id: &str,
        cancel: CancellationToken,
    ) -> Result<ReadyInfo, GatewayError> {
        let request = Sandbox { sandbox_id };
        tokio::select! {
            ready = self.call(method::WAIT_READY, &request) => ready,
            () = cancel.cancelled() => Err(GatewayError::new(
                GatewayErrorKind::Cancelled,
                format!("waiting for the guest of sandbox {sandbox_id} was cancelled"),
            )),
        }
    }

    async fn unregister(&self, sandbox_id: &str) -> Result<(), GatewayError> {
        self.call::<_, Nothing>(method::UNREGISTER, &Sandbox { sandbox_id }).await.map(drop)
    }

    async fn list(&self) -> Result<Vec<ProxyStatus>, GatewayError> {
        self.call(method::LIST, &Nothing {}).await
    }

    async fn closed_shims(&self) -> Result<BTreeSet<String>, GatewayError> {
        match self.connected().await?.1 {
            level if level < LEVEL_FRONT => Ok(BTreeSet::new()),
            _ => self.call(method::CLOSED_SHIMS, &Nothing {}).await,
        }
    }
}

#![doc = include_str!("../README.md")]

pub mod cli;
mod control;
mod dial;
mod error;
mod front;
mod gateway;
mod proxy;
mod remote;
mod rewrite;
mod shims;
mod spec;
mod thread;

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

pub use control::{ControlServer, LEVELS, SERVICE};
pub use error::{GatewayError, GatewayErrorKind};
pub use gateway::Gateway;
pub use remote::{GatewayInfo, RemoteGateway};
pub use shims::{SHIM_PID, ShimConnections};
pub use spec::{
    DIRECT_VOLUMES, ProxySpec, ProxyState, ProxyStatus, ReadyInfo, SecretPem, TlsSpec, VolumeEntry,
};

/// The agent proxies of a node, in this process or in another one.
#[async_trait::async_trait]
pub trait AgentProxies: Send + Sync {
    /// Binds the agent socket of a sandbox and begins to dial its guest. Returns once the socket is there.
    ///
    /// The same specification again is no error and changes nothing. One that differs in the TLS identity alone, for a
    /// guest of the same name, renews it: the connection that stands goes on, and the next one shows the new identity.
    /// A gateway of an earlier version calls that a conflict.
    ///
    /// # Errors
    ///
    /// [`GatewayErrorKind::Invalid`] names what is wrong with the specification, [`GatewayErrorKind::Conflict`]
    /// says that the sandbox has another one, [`GatewayErrorKind::SocketInUse`] that a live program listens at
    /// the path. Nothing is left behind.
    async fn register(&self, spec: ProxySpec) -> Result<(), GatewayError>;

    /// Waits until the guest of a sandbox is connected. Dropping the future, or cancelling the token, ends the
    /// waiting and nothing else.
    ///
    /// # Errors
    ///
    /// [`GatewayErrorKind::Tls`] or [`GatewayErrorKind::Timeout`] when the guest will not be reached,
    /// [`GatewayErrorKind::NotFound`] when the sandbox is not registered or goes away meanwhile.
    async fn wait_ready(
        &self,
        sandbox_id: &str,
        cancel: CancellationToken,
    ) -> Result<ReadyInfo, GatewayError>;

    /// Ends the proxy of a sandbox: the guest's connection first, then those of the shim, then the socket file.
    /// Takes two seconds at most. A sandbox that is not registered is fine.
    ///
    /// # Errors
    ///
    /// When the gateway cannot be reached, or the socket file cannot be removed.
    async fn unregister(&self, sandbox_id: &str) -> Result<(), GatewayError>;

    /// Lists the registered sandboxes, by id.
    ///
    /// # Errors
    ///
    /// When the gateway cannot be reached.
    async fn list(&self) -> Result<Vec<ProxyStatus>, GatewayError>;

    /// Returns the sandboxes whose shim kept its connection to the socket that the gateway serves, and lost it.
    ///
    /// # Errors
    ///
    /// When the gateway cannot be reached.
    async fn closed_shims(&self) -> Result<BTreeSet<String>, GatewayError> {
        Ok(BTreeSet::new())
    }
}

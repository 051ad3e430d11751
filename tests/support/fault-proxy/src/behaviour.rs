//! What stands between the faults and the server: how the real service differs from an emulator of it.

use anyhow::{Result, bail};
use async_trait::async_trait;
use serde_json::Value;

use crate::message::{Answer, Request};
use crate::upstream::Upstream;

/// Answers calls with the help of what is behind the proxy.
#[async_trait]
pub trait Behaviour: Send + Sync + 'static {
    /// Answers one call.
    ///
    /// It is run to its end also when the client has gone away, as a real service does.
    ///
    /// # Errors
    ///
    /// When what is behind the proxy does not answer; the client gets 502.
    async fn answer(&self, request: &Request, upstream: &Upstream) -> Result<Answer>;

    /// What can be set, as it is now.
    fn settings(&self) -> Value {
        Value::Null
    }

    /// Sets it.
    ///
    /// # Errors
    ///
    /// Names what is wrong.
    fn set(&self, _settings: Value) -> Result<()> {
        bail!("this proxy passes calls on as they are: there is nothing to set")
    }
}

/// Passes every call on as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward;

#[async_trait]
impl Behaviour for Forward {
    async fn answer(&self, request: &Request, upstream: &Upstream) -> Result<Answer> {
        upstream.send(request).await
    }
}

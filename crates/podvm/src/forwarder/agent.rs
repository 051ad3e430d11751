//! Reaches the agent, also when it has removed its own socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use peerpod_proto::relay::{BoxedStream, Dial, DialError};
use tokio::net::UnixStream;
use tracing::{debug, warn};

/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(20);
/// Second name of the agent's socket, beside the configuration.
const KEPT: &str = "agent-kept.sock";

/// Dials the agent's socket.
///
/// On CreateSandbox the Kata agent empties `/run/kata-containers`, where images commonly put its socket. The agent
/// still listens, but a forwarder that is started again would have no name to reach it by. So the socket gets a second
/// name while it has the first.
pub(super) struct AgentDial {
    socket: PathBuf,
    kept: PathBuf,
}

impl AgentDial {
    /// Dials `socket` and keeps a name of it in the folder of `config`.
    pub(super) fn new(socket: &Path, config: &Path) -> Self {
        Self { socket: socket.to_owned(), kept: config.with_file_name(KEPT) }
    }

    /// An agent that was started again made another socket, so the name is always made anew.
    fn keep(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::hard_link(&self.socket, &self.kept)
    }
}

#[async_trait]
impl Dial for AgentDial {
    async fn dial(&self) -> Result<BoxedStream, DialError> {
        let refused = match UnixStream::connect(&self.socket).await {
            Ok(stream) => {
                if let Err(error) = self.keep() {
                    debug!(%error, kept = %self.kept.display(), "the agent's socket has one name only");
                }
                return Ok(Box::new(stream));
            }
            Err(error) => error,
        };
        match UnixStream::connect(&self.kept).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(_) => {
                let path = self.socket.display();
                Err(DialError::again(RETRY, format!("agent at {path}: {refused}")))
            }
        }
    }

    fn peer(&self) -> String {
        format!("the agent at {}", self.socket.display())
    }

    fn lost(&self) {
        warn!(socket = %self.socket.display(), "the agent closed its connection");
    }
}

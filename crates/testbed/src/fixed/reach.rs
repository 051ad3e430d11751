//! Whether something answers as an SSH server.

use std::{net::SocketAddr, time::Duration};

use cloud_providers::{Error, ErrorKind, Result};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{TcpStream, lookup_host},
    time::{Instant, timeout_at},
};

/// A server may say something before its version. Nobody says this much.
const GREETING: u64 = 64 * 1024;

/// Connects, reads the version of the SSH server, and returns the address that answered.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when the name has no address, [`ErrorKind::Transient`] when nothing answers within `limit`, or
/// something else than SSH does.
pub(super) async fn ssh(place: &(String, u16), limit: Duration) -> Result<SocketAddr> {
    let end = Instant::now() + limit;
    let (name, port) = place;
    let told = |error: Error| error.with("host", name).with("port", port);
    let late = || {
        told(
            Error::new(ErrorKind::Transient, "the host does not answer").with("waited", format!("{limit:?}")),
        )
    };
    let found = timeout_at(end, lookup_host((name.as_str(), *port))).await.map_err(|_| late())?;
    let addresses: Vec<SocketAddr> = found
        .map_err(|e| told(Error::new(ErrorKind::NotFound, "the host's name has no address").with_source(e)))?
        .collect();
    let mut last = None;
    for address in addresses {
        match timeout_at(end, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let said = timeout_at(end, version(stream)).await;
                return match said {
                    Ok(Ok(true)) => Ok(SocketAddr::new(address.ip().to_canonical(), address.port())),
                    Ok(Err(e)) => {
                        let message = "the connection broke before the SSH server said its version";
                        Err(told(Error::new(ErrorKind::Transient, message).with_source(e)))
                    }
                    Ok(Ok(false)) | Err(_) => {
                        let message = "something listens at the port, and it does not greet as an SSH server";
                        Err(told(Error::new(ErrorKind::Transient, message)))
                    }
                };
            }
            Ok(Err(e)) => last = Some(e),
            Err(_) => break,
        }
    }
    Err(match last {
        Some(e) => told(Error::new(ErrorKind::Transient, "cannot connect to the host").with_source(e)),
        None => late(),
    })
}

/// Reads lines until one is the version.
async fn version(stream: TcpStream) -> std::io::Result<bool> {
    let mut lines = BufReader::new(stream).take(GREETING);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).await? == 0 {
            return Ok(false);
        }
        if line.starts_with(b"SSH-") {
            return Ok(true);
        }
    }
}

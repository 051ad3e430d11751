//! A client for one request, run inside a network namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use test_support::Netns;

const LIMIT: Duration = Duration::from_secs(5);

/// Fetches `path` from a server that is reached from `netns`, and returns the body.
///
/// # Errors
///
/// When the server does not answer in time or answers anything but 200.
pub(crate) fn get(netns: &Netns, server: SocketAddr, path: &str) -> Result<String> {
    netns.run(|| exchange(server, path)).with_context(|| format!("cannot fetch http://{server}{path}"))
}

fn exchange(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    // In one piece: a server may answer and close as soon as it has read something.
    let request = format!("GET {path} HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of its head")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "the server answers {status:?}");
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answer(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0; 1];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(text.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn the_body_is_returned() {
        let server = answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
        assert_eq!(exchange(server, "/").unwrap(), "hi");
    }

    #[test]
    fn another_status_is_an_error() {
        let server = answer("HTTP/1.1 404 Not Found\r\n\r\n");
        assert!(exchange(server, "/").unwrap_err().to_string().contains("404"));
    }
}

//! The small web server that a demonstration runs in the pod.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};

/// Largest body that `/echo` takes.
const MAX_ECHO: u64 = 64 << 20;

/// Serves until the process is ended.
pub(crate) fn serve(listen: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                std::thread::spawn(move || {
                    // A visitor who leaves early is no trouble of ours.
                    let _ = answer(&stream);
                });
            }
            Err(error) => eprintln!("a visitor is lost: {error}"),
        }
    }
    Ok(())
}

fn answer(stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.take(MAX_ECHO + 65_536));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
    let mut length = 0u64;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("content-length")?;
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    match path {
        "/" => reply(stream, "200 OK", "application/json", page(stream)?.as_bytes()),
        "/echo" if length <= MAX_ECHO => {
            let mut body = vec![0; length as usize];
            reader.read_exact(&mut body)?;
            reply(stream, "200 OK", "application/octet-stream", &body)
        }
        "/echo" => reply(stream, "413 Content Too Large", "text/plain", b"too large\n"),
        "/big" => match query.strip_prefix("bytes=").map(str::parse) {
            Some(Ok(size)) => big(stream, size),
            _ => reply(stream, "400 Bad Request", "text/plain", b"give bytes=N\n"),
        },
        _ => reply(stream, "404 Not Found", "text/plain", b"there are /, /echo and /big?bytes=N\n"),
    }
}

/// Tells where this process is.
fn page(stream: &TcpStream) -> Result<String> {
    let netns = std::fs::read_link("/proc/self/ns/net")?;
    let netns = netns.to_string_lossy();
    let inode = netns.trim_start_matches("net:[").trim_end_matches(']').parse::<u64>()?;
    let hostname = nix::unistd::gethostname()?;
    // Every start of a kernel makes another one: it tells a machine from a namespace.
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(serde_json::json!({
        "netns": inode,
        "hostname": hostname.to_string_lossy(),
        "boot_id": boot_id.trim(),
        "pid": std::process::id(),
        "peer": stream.peer_addr()?.to_string(),
        "local": stream.local_addr()?.to_string(),
    })
    .to_string()
        + "\n")
}

fn head(mut stream: &TcpStream, status: &str, kind: &str, length: u64) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    Ok(stream.write_all(head.as_bytes())?)
}

fn reply(mut stream: &TcpStream, status: &str, kind: &str, body: &[u8]) -> Result<()> {
    head(stream, status, kind, body.len() as u64)?;
    Ok(stream.write_all(body)?)
}

fn big(mut stream: &TcpStream, size: u64) -> Result<()> {
    head(stream, "200 OK", "application/octet-stream", size)?;
    let block = [b'x'; 65_536];
    let mut left = size;
    while left > 0 {
        let part = left.min(block.len() as u64);
        stream.write_all(&block[..part as usize])?;
        left -= part;
    }
    Ok(())
}

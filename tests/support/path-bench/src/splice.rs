//! A relay that copies bytes and knows no frames: the least that a hop can cost.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use peerpod_proto::relay::BoxedStream;
use peerpod_proto::tls::{self, TlsAcceptor, TlsConnector, TlsProfile};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

pub(crate) fn command() -> Command {
    Command::new("splice")
        .about("Copies bytes from each connection it takes to one that it makes")
        .arg(end("listen", "Where connections are taken: unix:PATH, tcp:ADDRESS or tls:ADDRESS"))
        .arg(end("connect", "Where to they are made, in the same way"))
        .arg(
            Arg::new("certificates")
                .long("certificates")
                .value_parser(value_parser!(PathBuf))
                .help("Folder with the certificates, for tls"),
        )
        .arg(
            Arg::new("name")
                .long("name")
                .default_value("podvm-path-bench")
                .help("Name of the server, for tls"),
        )
}

fn end(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).required(true).help(help)
}

/// One end of a splice.
#[derive(Clone)]
enum End {
    Unix(PathBuf),
    Tcp(String),
    Tls(String),
}

impl End {
    fn parse(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => Ok(Self::Tcp(address.to_owned())),
            Some(("tls", address)) => Ok(Self::Tls(address.to_owned())),
            _ => bail!("{text:?} is none of unix:PATH, tcp:ADDRESS and tls:ADDRESS"),
        }
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

impl Listener {
    async fn accept(&self) -> Result<BoxedStream> {
        match self {
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Tcp(listener, tls) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                match tls {
                    None => Ok(Box::new(stream)),
                    Some(tls) => Ok(Box::new(tls.accept(stream).await?)),
                }
            }
        }
    }
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| matches.get_one::<String>(name).expect("clap demands it");
    let (from, to) = (End::parse(text("listen"))?, End::parse(text("connect"))?);
    let read = |name: &str| -> Result<Vec<u8>> {
        let folder = matches.get_one::<PathBuf>("certificates").context("tls needs --certificates")?;
        let path = folder.join(name);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let profile = TlsProfile::default();
    let connector = match to {
        End::Tls(_) => {
            let (ca, cert, key) = (read("ca.pem")?, read("client.pem")?, read("client-key.pem")?);
            Some(TlsConnector::from(tls::client_config(&ca, &cert, &key, &profile)?))
        }
        _ => None,
    };
    let name = ServerName::try_from(text("name").clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = match from {
            End::Unix(path) => Listener::Unix(UnixListener::bind(path)?),
            End::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?, None),
            End::Tls(address) => {
                let (cert, key, ca) = (read("server.pem")?, read("server-key.pem")?, read("client.pem")?);
                let config = tls::server_config(&cert, &key, &ca, &profile)?;
                Listener::Tcp(TcpListener::bind(address).await?, Some(config.into()))
            }
        };
        let to = Arc::new((to, connector, name));
        println!("ready");
        std::io::stdout().flush()?;
        loop {
            let Ok(mut near) = listener.accept().await else { continue };
            let to = Arc::clone(&to);
            tokio::spawn(async move {
                if let Ok(mut far) = connect(&to.0, to.1.as_ref(), &to.2).await {
                    // Either end may leave at any time.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    })
}

async fn connect(to: &End, tls: Option<&TlsConnector>, name: &ServerName<'static>) -> Result<BoxedStream> {
    let tcp = async |address: &str| {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        anyhow::Ok(stream)
    };
    match (to, tls) {
        (End::Unix(path), _) => Ok(Box::new(UnixStream::connect(path).await?)),
        (End::Tls(address), Some(tls)) => Ok(Box::new(tls.connect(name.clone(), tcp(address).await?).await?)),
        (End::Tcp(address) | End::Tls(address), _) => Ok(Box::new(tcp(address).await?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_say_what_they_are() {
        assert!(matches!(End::parse("unix:/a:b"), Ok(End::Unix(path)) if path.ends_with("a:b")));
        assert!(matches!(End::parse("tls:127.0.0.1:1"), Ok(End::Tls(address)) if address == "127.0.0.1:1"));
        let error = End::parse("/a").err().unwrap().to_string();
        assert!(error.contains("unix:PATH"), "{error}");
    }
}

//! Guests that begin to listen at a random moment, and how much later each was reached.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};
use peerpod_gateway::{AgentProxies as _, ProxySpec, RemoteGateway, TlsSpec};
use peerpod_proto::tls::{self, TlsAcceptor, TlsProfile};
use peerpod_proto::{CallContext, Server, Service, Status};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What drops the first packets of connections, in the namespace in which this runs.
const TABLE: &str = "path_bench";

pub(crate) fn command() -> Command {
    Command::new("dial")
        .about("Has a gateway dial guests that are not there yet; run it in a network namespace of its own")
        .arg(crate::path("control", "Control socket of the gateway"))
        .arg(crate::path("folder", "Where the agent sockets go"))
        .arg(crate::path("certificates", "Folder with the certificates"))
        .arg(
            Arg::new("until")
                .long("until")
                .required(true)
                .value_parser(["refused", "dropped"])
                .help("What the network does to packets until the guest listens"),
        )
        .arg(crate::number("samples", "40", "How many guests, all at the same time"))
        .arg(crate::number("port", "20000", "The first of their ports"))
        .arg(crate::number("from-millis", "500", "The soonest that one listens"))
        .arg(crate::number("to-millis", "20000", "The latest"))
        .arg(crate::number("seed", "1", "Where the random moments begin"))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let samples = crate::given_number(matches, "samples");
    let (from, to) = (crate::given_number(matches, "from-millis"), crate::given_number(matches, "to-millis"));
    ensure!(from <= to && samples > 0, "there is nothing to sample");
    let first = u16::try_from(crate::given_number(matches, "port"))?;
    let dropped = matches.get_one::<String>("until").is_some_and(|until| until == "dropped");
    let certificates = crate::given_path(matches, "certificates");
    let acceptor = acceptor(&certificates)?;
    let spec = crate::register::tls(matches)?;
    let folder = crate::given_path(matches, "folder");
    let mut random = Random(crate::given_number(matches, "seed"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if dropped {
            drop_all(first, u16::try_from(samples)?).await?;
        }
        let gateway =
            Arc::new(RemoteGateway::new(crate::given_path(matches, "control")).with_name("path-bench"));
        let mut tasks = Vec::new();
        for index in 0..u16::try_from(samples)? {
            let phase = Duration::from_millis(from + random.below(to - from + 1));
            let guest = Guest { port: first + index, phase, dropped, acceptor: acceptor.clone() };
            tasks.push(tokio::spawn(guest.sample(Arc::clone(&gateway), folder.clone(), spec.clone())));
        }
        let mut lost = Vec::new();
        for task in tasks {
            lost.push(task.await??);
        }
        lost.sort_by(f64::total_cmp);
        let at = |part: f64| lost[((lost.len() - 1) as f64 * part).round() as usize];
        let mean = lost.iter().sum::<f64>() / lost.len() as f64;
        println!(
            "{}",
            json!({ "samples": lost.len(), "mean_ms": mean, "p50_ms": at(0.5), "p90_ms": at(0.9),
                    "p99_ms": at(0.99), "max_ms": at(1.0) })
        );
        Ok(())
    })
}

fn acceptor(certificates: &Path) -> Result<TlsAcceptor> {
    let read = |name: &str| std::fs::read(certificates.join(name)).with_context(|| format!("read {name}"));
    let (cert, key, ca) = (read("server.pem")?, read("server-key.pem")?, read("client.pem")?);
    // The first random number takes longer than all that is measured here.
    tls::warm_up();
    Ok(tls::server_config(&cert, &key, &ca, &TlsProfile::default())?.into())
}

/// One guest.
struct Guest {
    port: u16,
    phase: Duration,
    dropped: bool,
    acceptor: TlsAcceptor,
}

impl Guest {
    /// Registers the guest, listens after its phase, and returns how many milliseconds later it was reached.
    async fn sample(self, gateway: Arc<RemoteGateway>, folder: PathBuf, tls: TlsSpec) -> Result<f64> {
        let id = format!("dial-{}", self.port);
        // A guest whose packets are dropped listens already: that it is reached begins with the rule's end.
        let early = if self.dropped { Some(listen(self.port)?) } else { None };
        let spec =
            ProxySpec::new(&id, folder.join(format!("{id}.sock")), [format!("127.0.0.1:{}", self.port)])
                .with_connect_timeout(self.phase + Duration::from_secs(60))
                .with_tls(tls);
        gateway.register(spec).await?;
        let waiting = tokio::spawn({
            let (gateway, id) = (Arc::clone(&gateway), id.clone());
            async move {
                let ready = gateway.wait_ready(&id, CancellationToken::new()).await;
                (Instant::now(), ready)
            }
        });
        tokio::time::sleep(self.phase).await;
        let begin = Instant::now();
        let listener = match early {
            Some(listener) => {
                let element = format!("{{ {} }}", self.port);
                nft(&["delete", "element", "inet", TABLE, "ports", &element]).await?;
                listener
            }
            None => listen(self.port)?,
        };
        let serving = tokio::spawn(serve(listener, self.acceptor));
        let (end, ready) = waiting.await?;
        ready.with_context(|| format!("the guest at port {}", self.port))?;
        gateway.unregister(&id).await?;
        serving.abort();
        ensure!(end > begin, "the guest at port {} was reached before it listened", self.port);
        Ok((end - begin).as_secs_f64() * 1e3)
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    Ok(socket.listen(16)?)
}

/// Shakes hands and answers as a guest of an earlier version does: it knows no levels.
async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                let stop = CancellationToken::new();
                Server::new(Arc::new(Nothing)).serve_connection(stream, None, &stop).await;
            }
        });
    }
}

struct Nothing;

#[async_trait]
impl Service for Nothing {
    async fn call(&self, _: CallContext, service: &str, _: &str, _: Bytes) -> Result<Bytes, Status> {
        Err(Status::unknown_service(service))
    }
}

async fn drop_all(first: u16, count: u16) -> Result<()> {
    let ports: Vec<_> = (first..first + count).map(|port| port.to_string()).collect();
    let rules = format!(
        "table inet {TABLE} {{\n set ports {{ type inet_service; elements = {{ {} }} }}\n \
         chain in {{ type filter hook input priority 0; tcp dport @ports drop; }}\n}}",
        ports.join(", ")
    );
    // One that is left of an earlier measurement in this namespace.
    let _ = nft(&["delete", "table", "inet", TABLE]).await;
    nft(&[&rules]).await
}

async fn nft(args: &[&str]) -> Result<()> {
    let out = tokio::process::Command::new("nft").args(args).output().await.context("cannot start nft")?;
    if !out.status.success() {
        bail!("nft {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spread_and_repeat_with_their_seed() {
        let draw = |seed| {
            let mut random = Random(seed);
            (0..64).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().any(|value| *value < 300) && draw(7).iter().any(|value| *value > 700));
    }
}

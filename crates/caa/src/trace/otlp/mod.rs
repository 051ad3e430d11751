//! Sends spans to a collector: OTLP over HTTP, in batches, beside the work.
//!
//! What is traced never waits: a span goes into a queue of a fixed length or is dropped, and one task sends what is in
//! it. A collector that is away costs spans, which are counted by the reason, and one line of the log.

mod message;

use std::{future::Future, io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message as _;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{EndedSpan, Sampler, TraceSettings, TraceSink};
use crate::metrics::SpanCounts;

/// How often a batch is sent before it is dropped.
const TRIES: u32 = 3;
/// The pause before the second time; it doubles, or is what the collector says.
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long the last spans may take at the end of the program.
const FLUSH: Duration = Duration::from_secs(2);
/// The most bytes of an answer that are read.
const ANSWER: usize = 64 * 1024;

/// Takes spans into the queue.
struct Queue {
    sender: mpsc::Sender<EndedSpan>,
    counts: SpanCounts,
    sampler: Sampler,
}

impl TraceSink for Queue {
    fn take(&self, span: EndedSpan) {
        let wanted = match self.sampler {
            Sampler::Parent => span.context.is_sampled(),
            Sampler::All => true,
            Sampler::Nothing => false,
        };
        if wanted && self.sender.try_send(span).is_err() {
            self.counts.dropped("queue_full", 1);
        }
    }
}

/// Sends what is in the queue.
pub struct Exporter {
    queue: mpsc::Receiver<EndedSpan>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    settings: TraceSettings,
    counts: SpanCounts,
    /// Whether the last batch did not get through, which has been said.
    failing: bool,
}

/// Why a request did not get through.
struct Refused {
    why: String,
    /// Whether and when it is worth another try.
    again: Option<Duration>,
}

/// Makes the queue for the log, and what sends it. Nothing is sent before [`Exporter::run`].
///
/// # Errors
///
/// When the address is none, or the certificate cannot be read.
pub fn exporter(settings: TraceSettings, counts: SpanCounts) -> Result<(Arc<dyn TraceSink>, Exporter)> {
    let uri: Uri = settings.endpoint.parse().context("the address of the collector is none")?;
    let (sender, queue) = mpsc::channel(settings.queue);
    let sink = Arc::new(Queue { sender, counts: counts.clone(), sampler: settings.sampler });
    let client = Client::builder(TokioExecutor::new()).build(connector(&settings)?);
    Ok((sink, Exporter { queue, client, uri, settings, counts, failing: false }))
}

fn connector(settings: &TraceSettings) -> Result<HttpsConnector<HttpConnector>> {
    let builder = HttpsConnectorBuilder::new();
    let builder = match &settings.certificate {
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            let named = || format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).with_context(named)? {
                roots.add(certificate.with_context(named)?).with_context(named)?;
            }
            if roots.is_empty() {
                bail!("{} holds no certificate", named());
            }
            builder.with_tls_config(provided()?.with_root_certificates(roots).with_no_client_auth())
        }
        None if settings.endpoint.starts_with("https:") => {
            let mut roots = rustls::RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            builder.with_tls_config(provided()?.with_root_certificates(roots).with_no_client_auth())
        }
        // No certificate is looked at on the way.
        None => builder.with_tls_config(
            provided()?.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth(),
        ),
    };
    Ok(builder.https_or_http().enable_http1().build())
}

fn provided() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    builder.with_safe_default_protocol_versions().context("set up TLS to the collector")
}

impl Exporter {
    /// Sends until `stop` fires, and then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(batch) = self.batch(&stop).await {
            if !batch.is_empty() {
                // What is under way at the end has as long as what is still to be sent.
                let over = async {
                    stop.cancelled().await;
                    sleep(FLUSH).await;
                };
                let count = batch.len();
                let sent = tokio::select! {
                    () = self.send(&batch, &stop) => true,
                    () = over => false,
                };
                if !sent {
                    self.counts.dropped("not_sent", count);
                }
            }
            if stop.is_cancelled() {
                break;
            }
        }
        let end = Instant::now() + FLUSH;
        loop {
            let mut rest = Vec::new();
            self.queue.close();
            if self.queue.recv_many(&mut rest, self.settings.batch).await == 0 {
                return;
            }
            let sent = timeout_at(end, self.once(&rest)).await;
            match sent.unwrap_or_else(|_| Err(Refused { why: "the program ends".into(), again: None })) {
                Ok(rejected) => self.counts.sent(rest.len(), rejected),
                Err(_) => self.counts.dropped("not_sent", rest.len()),
            }
        }
    }

    /// Waits for a span, and for others for as long as it may.
    async fn batch(&mut self, stop: &CancellationToken) -> Option<Vec<EndedSpan>> {
        let mut batch = Vec::new();
        stop.run_until_cancelled(self.queue.recv_many(&mut batch, self.settings.batch)).await?;
        let end = Instant::now() + self.settings.pause;
        while batch.len() < self.settings.batch && !stop.is_cancelled() {
            let room = self.settings.batch - batch.len();
            let more = stop.run_until_cancelled(timeout_at(end, self.queue.recv_many(&mut batch, room)));
            match more.await {
                Some(Ok(count)) if count > 0 => {}
                _ => break,
            }
        }
        Some(batch)
    }

    async fn send(&mut self, batch: &[EndedSpan], stop: &CancellationToken) {
        let mut pause = RETRY;
        let mut tries = 0;
        let why = loop {
            tries += 1;
            match self.once(batch).await {
                Ok(rejected) => {
                    self.counts.sent(batch.len(), rejected);
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("the collector takes spans again");
                    }
                    return;
                }
                Err(Refused { why, again: None }) => break why,
                Err(Refused { why, .. }) if tries == TRIES || stop.is_cancelled() => break why,
                Err(Refused { again: Some(wish), .. }) => {
                    stop.run_until_cancelled(sleep(pause.max(wish).min(RETRY_MAX))).await;
                    pause *= 2;
                }
            }
        };
        self.counts.dropped("not_sent", batch.len());
        // Once, and not for each batch.
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                why,
                "the collector does not take spans (OTEL_EXPORTER_OTLP_ENDPOINT): they are dropped"
            );
        }
    }

    /// Makes one request. Returns how many spans the collector refused.
    async fn once(&self, batch: &[EndedSpan]) -> Result<usize, Refused> {
        let later = |why: String| Refused { why, again: Some(Duration::ZERO) };
        let never = |why: String| Refused { why, again: None };
        let request = self.request(batch).map_err(|error| never(format!("{error:#}")))?;
        let asked = async {
            let answer = self.client.request(request).await.map_err(|error| later(chain(&error)))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            match head.status {
                status if status.is_success() => {
                    let partial = message::Response::decode(body).unwrap_or_default().partial_success;
                    let partial = partial.unwrap_or_default();
                    if partial.rejected_spans > 0 {
                        tracing::debug!(why = partial.error_message, "the collector refused spans");
                    }
                    Ok(usize::try_from(partial.rejected_spans).unwrap_or(0).min(batch.len()))
                }
                status @ (StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT) => {
                    let after =
                        head.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
                    let again = Some(Duration::from_secs(after.unwrap_or(0)));
                    Err(Refused { why: format!("it answers {status}"), again })
                }
                status => Err(never(format!("it answers {status}"))),
            }
        };
        let asked: std::pin::Pin<Box<dyn Future<Output = _> + Send + '_>> = Box::pin(asked);
        timeout(self.settings.timeout, asked)
            .await
            .unwrap_or_else(|_| Err(later(format!("no answer came within {:?}", self.settings.timeout))))
    }

    fn request(&self, batch: &[EndedSpan]) -> Result<hyper::Request<Full<Bytes>>> {
        let mut body = message::request(&self.settings.resource, batch).encode_to_vec();
        let mut request =
            hyper::Request::post(&self.uri).header(header::CONTENT_TYPE, "application/x-protobuf");
        if self.settings.gzip {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&body)?;
            body = gzip.finish()?;
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        for (name, value) in &self.settings.headers {
            let mut value = header::HeaderValue::from_str(value.expose_secret())
                .with_context(|| format!("the value of the header {name} is none"))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        Ok(request.body(Full::new(body.into()))?)
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

//! What is behind the proxy: a server, or a recorded conversation.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;

use crate::message::{Answer, Request};
use crate::record::{Conversation, Recorder};

/// What calls are passed on to.
#[derive(Debug)]
pub struct Upstream {
    behind: Behind,
    recorder: Option<Recorder>,
}

#[derive(Debug)]
enum Behind {
    Server { base: String, client: Box<Client<HttpConnector, Full<Bytes>>> },
    Replay(Conversation),
}

impl Upstream {
    /// A server, such as `http://127.0.0.1:5000`.
    ///
    /// # Errors
    ///
    /// When it is no `http` address: calls are signed for the address that the client knows, which is the proxy's, so that
    /// a real cloud behind it would refuse each of them.
    pub fn server(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").unwrap_or_default();
        let host = rest.trim_end_matches('/');
        ensure!(
            !host.is_empty() && !host.contains('/'),
            "the address behind the proxy is {url:?}; it has to be http://HOST:PORT"
        );
        let client = Client::builder(TokioExecutor::new()).build_http();
        let base = format!("http://{host}");
        Ok(Self { behind: Behind::Server { base, client: Box::new(client) }, recorder: None })
    }

    /// A recorded conversation.
    pub fn replay(conversation: Conversation) -> Self {
        Self { behind: Behind::Replay(conversation), recorder: None }
    }

    /// Writes what is said to a file, without secrets.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub fn recording(mut self, path: &std::path::Path) -> Result<Self> {
        self.recorder = Some(Recorder::create(path)?);
        Ok(self)
    }

    /// The conversation that is played again, if that is what is behind.
    pub fn conversation(&self) -> Option<&Conversation> {
        match &self.behind {
            Behind::Server { .. } => None,
            Behind::Replay(conversation) => Some(conversation),
        }
    }

    /// Passes a call on and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// When there is no answer; an answer that says no is none.
    pub async fn send(&self, request: &Request) -> Result<Answer> {
        let answer = match &self.behind {
            Behind::Server { base, client } => send(base, client, request).await?,
            Behind::Replay(conversation) => conversation.answer(request)?,
        };
        if let Some(recorder) = &self.recorder {
            recorder.note(request, &answer)?;
        }
        Ok(answer)
    }
}

async fn send(base: &str, client: &Client<HttpConnector, Full<Bytes>>, request: &Request) -> Result<Answer> {
    let question = if request.query.is_empty() { "" } else { "?" };
    let uri = format!("{base}{}{question}{}", request.path, request.query);
    let mut builder = hyper::Request::builder().method(request.method.clone()).uri(uri);
    for (name, value) in &request.headers {
        // Those of the next hop are made anew. An answer that is packed could not be looked at.
        let hop = [
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::EXPECT,
            header::ACCEPT_ENCODING,
        ];
        if !hop.contains(name) {
            builder = builder.header(name, value);
        }
    }
    let request = builder.body(Full::new(request.body.clone()))?;
    let answer = client.request(request).await.with_context(|| format!("no answer from {base}"))?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.with_context(|| format!("no whole answer from {base}"))?.to_bytes();
    let text = |(name, value): (&header::HeaderName, &header::HeaderValue)| {
        Some((name.to_string(), value.to_str().ok()?.to_owned()))
    };
    let headers = head.headers.iter().filter_map(text).collect();
    Ok(Answer { status: head.status.as_u16(), headers, body })
}

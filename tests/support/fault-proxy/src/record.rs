//! Conversations in a file, one exchange a line, without secrets; and how they are played again.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::message::{Answer, Form, Request};
use crate::redact;

/// A request with its answer, without secrets.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Exchange {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The query, or nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub query: String,
    /// The headers that say something about the call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(default, with = "crate::message::body", skip_serializing_if = "Bytes::is_empty")]
    pub body: Bytes,
    /// What was answered.
    pub answer: Answer,
}

impl Exchange {
    fn new(request: &Request, answer: &Answer) -> Self {
        Self {
            method: request.method.to_string(),
            path: request.path.clone(),
            query: redact::form(Form::parse(request.query.as_bytes())).encode(),
            headers: redact::headers(&request.headers),
            body: redact::request_body(request),
            answer: redact::answer(&request.path, answer),
        }
    }

    /// What two requests have in common that are the same call.
    fn key(&self, ignored: &[String]) -> (String, String, Form, Option<String>, Bytes) {
        let header = |wanted: &str| {
            let found = self.headers.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone())
        };
        let sorted = |text: &[u8]| {
            let mut form = Form::parse(text);
            form.remove(|name| ignored.iter().any(|ignored| ignored == name));
            form.sorted()
        };
        let mut form = sorted(self.query.as_bytes());
        let mut body = self.body.clone();
        if header("content-type").is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
            form.0.extend(sorted(&body).0);
            body = Bytes::new();
        }
        (self.method.clone(), self.path.clone(), form, header("x-amz-target"), body)
    }
}

/// Writes exchanges to a file as they happen.
#[derive(Debug)]
pub(crate) struct Recorder(Mutex<File>);

impl Recorder {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot record to {}", path.display()))?;
        Ok(Self(Mutex::new(file)))
    }

    pub(crate) fn note(&self, request: &Request, answer: &Answer) -> Result<()> {
        let mut line = serde_json::to_string(&Exchange::new(request, answer))?;
        line.push('\n');
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.write_all(line.as_bytes()).context("cannot record")
    }
}

/// A recorded conversation, to be played again.
///
/// Each recorded answer is given once, to the first request that is the same call. Requests are the same call when
/// method, path, operation, fields in any order and body are equal, secrets aside.
#[derive(Debug)]
pub struct Conversation {
    exchanges: Mutex<Vec<Option<Exchange>>>,
    ignored: Vec<String>,
}

impl Conversation {
    /// Reads a file that was recorded.
    ///
    /// # Errors
    ///
    /// Names the file, and the line that is no exchange.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot replay {}", path.display()))?;
        let parse = |(index, line): (usize, &str)| {
            serde_json::from_str(line)
                .map(Some)
                .with_context(|| format!("{}:{} is no recorded exchange", path.display(), index + 1))
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        Ok(Self { exchanges: Mutex::new(lines.map(parse).collect::<Result<_>>()?), ignored: Vec::new() })
    }

    /// Leaves fields out of the comparison, such as tokens that are made anew each time.
    #[must_use]
    pub fn ignoring(mut self, fields: &[String]) -> Self {
        self.ignored.extend_from_slice(fields);
        self
    }

    /// How many recorded exchanges were not asked for yet.
    pub fn remaining(&self) -> usize {
        let exchanges = self.exchanges.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        exchanges.iter().flatten().count()
    }

    pub(crate) fn answer(&self, request: &Request) -> Result<Answer> {
        let asked = Exchange::new(request, &Answer::new(200, "")).key(&self.ignored);
        let mut exchanges = self.exchanges.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = exchanges
            .iter_mut()
            .find(|exchange| exchange.as_ref().is_some_and(|exchange| exchange.key(&self.ignored) == asked));
        let exchange = found.and_then(Option::take);
        let missing = || format!("nothing like this call is recorded, or no more of it: {}", request.label());
        exchange.map(|exchange| exchange.answer).with_context(missing)
    }
}

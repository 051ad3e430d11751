//! EC2 where its emulator is not faithful.
//!
//! moto knows the calls and the data; this supplies how the service behaves: tokens that are remembered, images and types
//! that are looked at, states that move, resources that are seen a moment later, interfaces that go with their instance,
//! and capacity that is not there. The page `docs/development/aws-emulator.md` lists each with its reason.

mod gone;
mod images;
mod launch;
mod probe;
mod seen;
mod settings;
mod tokens;
mod xml;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use hyper::Method;
use serde_json::Value;
use tokio::time::Instant;

use crate::behaviour::Behaviour;
use crate::message::{Answer, Form, Request};
use crate::upstream::Upstream;

pub use probe::{Probe, texts};
pub use settings::{Settings, Shortage};

/// The service EC2 over an emulator of it.
#[derive(Debug)]
pub struct Ec2 {
    settings: Mutex<Settings>,
    world: Mutex<World>,
    tokens: tokens::Tokens,
    /// One call at a time: the emulator walks over its lists without a lock while others change them.
    emulator: tokio::sync::Mutex<()>,
}

/// What the emulator does not remember.
#[derive(Debug, Default)]
struct World {
    lives: HashMap<String, Life>,
    /// When interfaces and addresses were made.
    made: HashMap<String, Instant>,
    /// Whether an interface goes when its instance goes.
    goes_with: HashMap<String, bool>,
    /// What is known of subnets: their zone.
    zones: HashMap<String, String>,
    images: HashMap<String, images::Image>,
    known: std::collections::HashSet<String>,
}

/// The times of an instance.
#[derive(Clone, Copy, Debug)]
struct Life {
    launched: Instant,
    terminated: Option<Instant>,
}

/// The states of instances, with their codes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
}

impl State {
    fn code(self) -> &'static str {
        match self {
            Self::Pending => "0",
            Self::Running => "16",
            Self::ShuttingDown => "32",
            Self::Terminated => "48",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
        }
    }
}

impl Life {
    fn state(self, now: Instant, settings: &Settings) -> State {
        let after = |time: Instant, ms: u64| now.duration_since(time) >= Duration::from_millis(ms);
        match self.terminated {
            Some(time) if after(time, settings.shutting_down_ms) => State::Terminated,
            Some(_) => State::ShuttingDown,
            None if after(self.launched, settings.pending_ms) => State::Running,
            None => State::Pending,
        }
    }

    /// Whether the service does not show it yet, or no longer.
    fn is_unseen(self, now: Instant, settings: &Settings) -> bool {
        let forgotten = settings.forget_ms.map(Duration::from_millis).zip(self.terminated);
        now.duration_since(self.launched) < Duration::from_millis(settings.hidden_ms)
            || forgotten.is_some_and(|(time, terminated)| now.duration_since(terminated) >= time)
    }
}

impl Ec2 {
    /// EC2 with these settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Mutex::new(settings),
            world: Mutex::default(),
            tokens: tokens::Tokens::default(),
            emulator: tokio::sync::Mutex::default(),
        }
    }

    /// Shows the settings; shortages count down in them.
    pub fn current(&self) -> Settings {
        self.lock_settings().clone()
    }

    /// Changes the settings.
    pub fn change(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.lock_settings());
    }

    fn lock_settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the emulator, one call at a time.
    async fn send(&self, upstream: &Upstream, request: &Request) -> Result<Answer> {
        let _turn = self.emulator.lock().await;
        upstream.send(request).await
    }

    /// Asks the emulator something else than what the client asked, as the client.
    async fn ask(
        &self,
        upstream: &Upstream,
        like: &Request,
        action: &str,
        fields: &[(String, String)],
    ) -> Result<Answer> {
        let mut form = Form::default();
        form.push("Action", action);
        form.push("Version", like.form().get("Version").unwrap_or("2016-11-15"));
        form.0.extend_from_slice(fields);
        self.send(upstream, &like.with_form(&form)).await
    }
}

#[async_trait]
impl Behaviour for Ec2 {
    async fn answer(&self, request: &Request, upstream: &Upstream) -> Result<Answer> {
        let form = request.form();
        let action = form.get("Action").unwrap_or_default().to_owned();
        if action.is_empty() && request.method == Method::POST && request.path == "/snapshots" {
            return self.start_snapshot(request, upstream).await;
        }
        // A trial makes nothing, so that there is nothing to add to what the emulator says of it.
        if action.is_empty() || form.get("DryRun") == Some("true") {
            return self.send(upstream, request).await;
        }
        let work = async {
            match action.as_str() {
                "RunInstances" => self.run(request, &form, upstream).await,
                "TerminateInstances" => self.terminate(request, &form, upstream).await,
                "DescribeInstances" => self.describe_instances(request, form.clone(), upstream).await,
                "CreateNetworkInterface" | "AllocateAddress" => self.make(request, upstream).await,
                "DescribeNetworkInterfaces" | "DescribeAddresses" => {
                    self.describe_made(request, &form, upstream).await
                }
                "ModifyNetworkInterfaceAttribute" => self.modify_interface(request, &form, upstream).await,
                "DeleteNetworkInterface" => self.delete_interface(request, &form, upstream).await,
                "ReleaseAddress" => self.release_address(request, &form, upstream).await,
                "RegisterImage" => self.register_image(request, &form, upstream).await,
                "DescribeImages" => self.describe_images(request, upstream).await,
                _ => self.send(upstream, request).await,
            }
        };
        match form.get("ClientToken").filter(|token| !token.is_empty()) {
            Some(token) => self.tokens.once(&action, token, &form, work).await,
            None => work.await,
        }
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self.current()).unwrap_or_default()
    }

    fn set(&self, settings: Value) -> Result<()> {
        *self.lock_settings() = serde_json::from_value(settings).context("these are no settings of EC2")?;
        Ok(())
    }
}

/// EC2 with what is usual in tests: states that move and resources that are seen a moment later.
pub fn realistic() -> Arc<Ec2> {
    Arc::new(Ec2::new(Settings::realistic()))
}

/// An answer of EC2 that says no.
pub fn error(status: u16, code: &str, message: &str) -> Answer {
    let message = xml::escape(message);
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code>\
         <Message>{message}</Message></Error></Errors><RequestID>{}</RequestID></Response>",
        request_id()
    );
    Answer::new(status, body).with_header("content-type", "text/xml;charset=UTF-8")
}

/// What EC2 answers to an account that calls too often.
pub fn throttled() -> Answer {
    error(503, "RequestLimitExceeded", "Request limit exceeded.")
}

/// What EC2 answers when something in it broke.
pub fn internal_error() -> Answer {
    error(500, "InternalError", "An internal error has occurred")
}

fn success(action: &str, body: &str) -> Answer {
    let namespace = "http://ec2.amazonaws.com/doc/2016-11-15/";
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response xmlns=\"{namespace}\"><requestId>{}</requestId>\
         {body}</{action}Response>",
        request_id()
    );
    Answer::new(200, body).with_header("content-type", "text/xml;charset=UTF-8")
}

fn request_id() -> String {
    let bits: u128 = rand::random();
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        bits >> 96,
        (bits >> 80) & 0xffff,
        (bits >> 64) & 0xffff,
        (bits >> 48) & 0xffff,
        bits & 0xffff_ffff_ffff
    )
}

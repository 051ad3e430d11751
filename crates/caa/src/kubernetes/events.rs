//! Events on pods, at a rate that a cluster bears.
//!
//! What happens again to the same sandbox is the same Event with a count, and is written less and less often. A task of
//! its own writes them: nobody who has news waits for the API server.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use peerpod_api::names;
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use super::{
    api::{Api, ApiError},
    record::Identity,
};
use crate::cluster::{Notice, SandboxRef};

/// How many notices may wait.
const QUEUE: usize = 256;
/// Bounds of the pause between two writes of the same Event.
const REPEAT_MIN: Duration = Duration::from_secs(15);
const REPEAT_MAX: Duration = Duration::from_secs(600);
/// How many Events a daemon may write at once, and how soon it may write one more.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_millis(500);
/// How long one that was written is remembered; the server forgets it after an hour, too.
const REMEMBERED: Duration = Duration::from_secs(3000);
/// How long nothing is written after a right was missing.
const SILENCE: Duration = Duration::from_secs(600);
/// The most characters of a message, and of a pod's name in that of an Event.
const MESSAGE_MAX: usize = 1024;
const NAME_MAX: usize = 230;

/// News of a sandbox.
pub(super) struct Told {
    pub(super) sandbox: SandboxRef,
    pub(super) notice: Notice,
}

/// Starts the task that writes Events; it ends when the sender is dropped.
pub(super) fn spawn(api: Arc<dyn Api>, who: &Identity) -> mpsc::Sender<Told> {
    let (sender, mut receiver) = mpsc::channel::<Told>(QUEUE);
    let mut writer = Writer { api, node: who.node.clone(), written: HashMap::new(), bucket: Bucket::new() };
    let mut silent_until = None;
    tokio::spawn(async move {
        while let Some(told) = receiver.recv().await {
            if silent_until.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            match writer.write(&told).await {
                Ok(()) => {}
                Err(ApiError::Forbidden(text)) => {
                    tracing::warn!(
                        text,
                        "Events cannot be written: the service account may not create and patch them"
                    );
                    silent_until = Some(Instant::now() + SILENCE);
                }
                Err(error) => {
                    tracing::debug!(sandbox_id = %told.sandbox.sandbox_id, %error, "an Event is lost")
                }
            }
        }
    });
    sender
}

struct Writer {
    api: Arc<dyn Api>,
    node: String,
    /// What was written, by sandbox and reason.
    written: HashMap<(String, &'static str), Written>,
    bucket: Bucket,
}

struct Written {
    name: String,
    count: i32,
    at: Instant,
    pause: Duration,
}

impl Writer {
    async fn write(&mut self, told: &Told) -> Result<(), ApiError> {
        let now = Instant::now();
        self.written.retain(|_, written| now.duration_since(written.at) < REMEMBERED);
        let (sandbox, notice) = (&told.sandbox, &told.notice);
        let key = (sandbox.sandbox_id.clone(), notice.reason);
        if let Some(written) = self.written.get_mut(&key) {
            written.count = written.count.saturating_add(1);
            if now.duration_since(written.at) < written.pause {
                return Ok(());
            }
        }
        if !self.bucket.take(now) {
            return Ok(());
        }
        if let Some(written) = self.written.get_mut(&key) {
            (written.at, written.pause) = (now, (written.pause * 2).min(REPEAT_MAX));
            let patch = json!({
                "count": written.count,
                "lastTimestamp": Time(Timestamp::now()),
                "message": cut(&notice.message, MESSAGE_MAX),
            });
            match self.api.patch_event(&sandbox.pod_namespace, &written.name, &patch).await {
                // The server forgot it: it is written anew.
                Err(ApiError::NotFound(_)) => {}
                other => return other,
            }
        }
        let event = self.event(sandbox, notice);
        self.api.create_event(&event).await?;
        let name = event.metadata.name.unwrap_or_default();
        self.written.insert(key, Written { name, count: 1, at: now, pause: REPEAT_MIN });
        Ok(())
    }

    fn event(&self, sandbox: &SandboxRef, notice: &Notice) -> Event {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
        let now = Time(Timestamp::now());
        let some = |text: &str| Some(text.to_owned());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{nanos:x}", cut(&sandbox.pod_name, NAME_MAX))),
                namespace: some(&sandbox.pod_namespace),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: some("v1"),
                kind: some("Pod"),
                name: some(&sandbox.pod_name),
                namespace: some(&sandbox.pod_namespace),
                uid: sandbox.pod_uid.clone(),
                ..ObjectReference::default()
            },
            type_: some(if notice.warning { "Warning" } else { "Normal" }),
            reason: some(notice.reason),
            message: Some(cut(&notice.message, MESSAGE_MAX).to_owned()),
            source: Some(EventSource { component: some(names::DAEMON), host: some(&self.node) }),
            reporting_component: some(names::DAEMON),
            reporting_instance: some(&self.node),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        }
    }
}

/// Returns the first `max` bytes of `text`, or a few less.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// So many at once, and then one in each interval.
struct Bucket {
    left: u32,
    since: Instant,
}

impl Bucket {
    fn new() -> Self {
        Self { left: BURST, since: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.since).as_millis() / REFILL.as_millis();
        if let Ok(more @ 1..) = u32::try_from(passed) {
            self.left = self.left.saturating_add(more).min(BURST);
            self.since = now;
        }
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
        assert_eq!(cut("", 3), "");
    }

    #[test]
    fn a_burst_ends_and_comes_back_slowly() {
        let mut bucket = Bucket::new();
        let now = bucket.since;
        assert_eq!((0..100).filter(|_| bucket.take(now)).count(), BURST as usize);
        assert_eq!((0..100).filter(|_| bucket.take(now + REFILL * 3)).count(), 3);
    }
}

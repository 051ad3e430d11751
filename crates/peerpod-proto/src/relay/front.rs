//! One front connection of a relay.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use super::flow::{Flow, Place};
use super::link::until;
use super::pending::{Call, GREETING, Reply};
use super::session::{Seat, Sessions};
use super::{BoxedStream, InterceptContext, Relay, Rewrite, Shared};
use crate::conn::{self, IdRule, Line, Opened, Outbox, Requests};
use crate::envelope::{REQUEST_PAYLOAD, RequestView, Response};
use crate::frame::{Frame, FrameReader, Inbound, Kind, MAX_PAYLOAD};
use crate::messages::agent;
use crate::messages::peer::{self, LevelRequest, LevelResponse};
use crate::server::{caught, deadline, encode};
use crate::status::Status;
use crate::wire::Editor;

/// Takes the requests of a front connection.
pub(super) struct Front {
    shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
    outbox: Option<Arc<Outbox>>,
    /// Whether calls outlive the connection.
    session: bool,
}

impl Front {
    pub(super) fn new(shared: Arc<Shared>, calls: mpsc::Sender<Call>, session: bool) -> Self {
        shared.open_fronts.fetch_add(1, Ordering::Relaxed);
        Self { shared, calls, outbox: None, session }
    }
}

/// A call that waits before it goes on.
pub(super) enum Delayed {
    /// For what is on its way to the backend to become less.
    Forward(Call),
    /// For the interceptor to have less to do.
    Intercept(Call),
}

impl Requests for Front {
    type Room = Place;
    type Waiting = Delayed;

    async fn room(&mut self, bytes: usize) -> Place {
        self.shared.flow.place(bytes).await
    }

    fn request(
        &mut self,
        outbox: &Arc<Outbox>,
        stream_id: u32,
        envelope: Bytes,
        place: Option<Place>,
    ) -> Option<Delayed> {
        if !self.session {
            self.outbox.get_or_insert_with(|| Arc::clone(outbox));
        }
        let view = match RequestView::parse(&envelope) {
            Ok(view) => view,
            Err(error) => {
                outbox.respond(stream_id, Err(Status::bad_envelope(error)));
                return None;
            }
        };
        let deadline = view.timeout().and_then(deadline);
        let waits = view.service == agent::SERVICE && agent::method::WAITING.contains(&view.method);
        let wanted = self.shared.interceptor.wants(view.service, view.method);
        let reply = Reply::Front { outbox: Arc::clone(outbox), stream_id };
        let mut call = Call { envelope, waits, deadline, reply, place };
        if wanted {
            return Some(Delayed::Intercept(call));
        }
        if call.place.is_none() {
            call.place = self.shared.flow.place_now(call.envelope.len());
        }
        if call.place.is_none() {
            return Some(Delayed::Forward(call));
        }
        match self.calls.try_send(call) {
            Ok(()) => None,
            Err(TrySendError::Full(call)) => Some(Delayed::Forward(call)),
            Err(TrySendError::Closed(call)) => {
                call.reply.fail(Status::closed());
                None
            }
        }
    }

    async fn wait(&mut self, waiting: Delayed) {
        let call = match waiting {
            Delayed::Forward(call) => return forward(&self.shared, &self.calls, call).await,
            Delayed::Intercept(call) => call,
        };
        let bytes = call.envelope.len();
        let Some((mut call, place)) = placed(&self.shared.intercepted, call, bytes).await else { return };
        call.place = None;
        let Reply::Front { outbox, .. } = &call.reply else { return };
        let cancel = outbox.gone().child_token();
        tokio::spawn(intercept(Arc::clone(&self.shared), self.calls.clone(), call, cancel, place));
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(outbox) = &self.outbox {
            self.shared.pending.forget(outbox);
        }
        self.shared.open_fronts.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection that may belong to a session, as its first frame says.
pub(super) async fn serve_peer(
    sessions: Arc<Sessions>,
    relay: &Relay,
    stream: BoxedStream,
    owner: Option<Bytes>,
) {
    let (shared, calls) = (Arc::clone(&relay.shared), relay.calls.clone());
    let stop = shared.fronts.clone();
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read);
    let first = tokio::select! {
        first = reader.read() => first,
        () = stop.cancelled() => return,
    };
    let Ok(Some(first)) = first else { return };
    let greeted = match &first {
        Inbound::Frame(frame) => tokio::select! {
            greeted = greet(&sessions, &shared, owner, frame) => greeted,
            () = stop.cancelled() => return,
        },
        Inbound::Oversized(_) => None,
    };
    let Some((mut seat, answer)) = greeted else {
        let mut front = Front::new(shared, calls, false);
        let opened = Opened { reader, write, first: Some(first) };
        return conn::run_opened(opened, IdRule::Unique, &stop, &mut front).await;
    };
    let Some(queue) = seat.queue.take() else { return };
    let mut greeting = vec![answer];
    greeting.append(&mut seat.again);
    let mut front = Front::new(shared, calls, true);
    let opened = Opened { reader, write, first: None };
    let line = Line { outbox: Arc::clone(&seat.session.outbox), queue, link: seat.link.clone(), greeting };
    let queue = conn::carry(opened, line, IdRule::Increasing, &stop, &mut front).await;
    seat.leave(queue);
}

/// Answers a greeting that asks for a session; nothing where the first frame is something else.
async fn greet(
    sessions: &Arc<Sessions>,
    shared: &Arc<Shared>,
    owner: Option<Bytes>,
    frame: &Frame,
) -> Option<(Seat, Frame)> {
    if frame.kind != Kind::Request || frame.stream_id != GREETING {
        return None;
    }
    let view = RequestView::parse(&frame.payload).ok()?;
    if view.service != peer::SERVICE || view.method != peer::LEVEL {
        return None;
    }
    let payload = frame.payload.slice(view.payload_range());
    let request = LevelRequest::decode(payload.clone()).ok()?;
    if request.session.is_empty() && request.resume.is_empty() {
        return None;
    }
    if !shared.interceptor.wants(view.service, view.method) {
        return None;
    }
    let cancel = CancellationToken::new();
    let ctx = InterceptContext { deadline: None, cancel: cancel.clone() };
    let _cancel = cancel.drop_guard();
    let work = shared.interceptor.rewrite(ctx, view.service, view.method, payload);
    // What the program says of itself; anything but an answer is passed on as usual.
    let Ok(Rewrite::Reply(answer)) = caught(work, "interceptor").await else { return None };
    let mut answer = LevelResponse::decode(answer).ok()?;
    let seat = sessions.greet(shared, owner, &request, &mut answer).await?;
    let envelope = Response::new(Ok(encode(&answer))).to_bytes();
    Some((seat, Frame::response(frame.stream_id, envelope)))
}

/// Hands a call to the link, once little enough is on its way.
async fn forward(shared: &Shared, calls: &mpsc::Sender<Call>, mut call: Call) {
    if call.place.is_none() {
        let bytes = call.envelope.len();
        let Some((placed, place)) = placed(&shared.flow, call, bytes).await else { return };
        call = placed;
        call.place = Some(place);
    }
    if let Err(error) = calls.send(call).await {
        error.0.reply.fail(Status::closed());
    }
}

/// Waits for a place for a call, for as long as its caller does. One whose time is over is answered.
async fn placed(flow: &Flow, call: Call, bytes: usize) -> Option<(Call, Place)> {
    let place = tokio::select! {
        biased;
        place = flow.place(bytes) => Some(place),
        () = call.reply.gone() => None,
        () = until(call.deadline) => {
            call.reply.fail(Status::deadline_exceeded());
            return None;
        }
    };
    Some((call, place?))
}

/// Lets the interceptor see a call before it is forwarded.
async fn intercept(
    shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
    mut call: Call,
    cancel: CancellationToken,
    _place: Place,
) {
    // Cancelled when this ends, so that nothing the interceptor has started waits on.
    let _cancel = cancel.clone().drop_guard();
    let ctx = InterceptContext { deadline: call.deadline, cancel: cancel.clone() };
    let work = rewrite(&shared, ctx, &call.envelope);
    let result = match call.deadline {
        None => work.await,
        Some(deadline) => {
            let mut work = std::pin::pin!(work);
            match tokio::time::timeout_at(deadline, &mut work).await {
                Ok(result) => result,
                Err(_) => {
                    call.reply.fail(Status::deadline_exceeded());
                    cancel.cancel();
                    // The interceptor ends its work in its own way; its outcome reaches nobody.
                    let _ = work.await;
                    return;
                }
            }
        }
    };
    match result {
        Ok(Outcome::Forward(envelope)) => {
            call.envelope = envelope;
            forward(&shared, &calls, call).await;
        }
        Ok(Outcome::Reply(payload)) => call.reply.succeed(payload),
        Err(status) => call.reply.fail(status),
    }
}

enum Outcome {
    Forward(Bytes),
    Reply(Bytes),
}

/// Runs the interceptor and puts what it returns back into the envelope.
async fn rewrite(shared: &Shared, ctx: InterceptContext, envelope: &Bytes) -> Result<Outcome, Status> {
    let view = RequestView::parse(envelope).map_err(Status::bad_envelope)?;
    let payload = envelope.slice(view.payload_range());
    let work = shared.interceptor.rewrite(ctx, view.service, view.method, payload.clone());
    match caught(work, "interceptor").await? {
        Rewrite::Reply(payload) => Ok(Outcome::Reply(payload)),
        Rewrite::Forward(same) if same == payload => Ok(Outcome::Forward(envelope.clone())),
        Rewrite::Forward(changed) => {
            let mut editor = Editor::new(envelope);
            let edited = editor.set(&[], REQUEST_PAYLOAD, &changed).and_then(|()| editor.finish());
            let edited = edited.map_err(Status::bad_envelope)?;
            if edited.len() > MAX_PAYLOAD {
                return Err(Status::oversized(edited.len()));
            }
            Ok(Outcome::Forward(edited.into()))
        }
    }
}

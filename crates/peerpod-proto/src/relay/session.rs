//! The answering end of sessions: front connections that may break and come back without a call being lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{SessionOptions, Shared};
use crate::conn::{Out, Outbox};
use crate::frame::Frame;
use crate::messages::peer::{LEVEL_SESSIONS, LevelRequest, LevelResponse};

/// The most sessions at the same time. A node needs one; one that was started again leaves its last one behind.
const MAX_SESSIONS: usize = 4;

/// Ids of sessions have this many random bytes.
pub const SESSION_ID_LEN: usize = 32;

/// The sessions of a relay.
#[derive(Debug)]
pub(super) struct Sessions {
    options: SessionOptions,
    table: Mutex<HashMap<Bytes, Arc<Session>>>,
}

/// A peer whose calls outlive its connection.
#[derive(Debug)]
pub(super) struct Session {
    id: Bytes,
    /// The certificate of the peer, by which it is known again.
    owner: Option<Bytes>,
    pub(super) outbox: Arc<Outbox>,
    place: Mutex<Place>,
    /// Told when a connection comes or goes.
    moved: Notify,
}

#[derive(Debug)]
struct Place {
    /// Here while there is no connection, and since when.
    parked: Option<(mpsc::UnboundedReceiver<Out>, Instant)>,
    /// Ends the connection that there is.
    link: CancellationToken,
}

/// A session that a connection is to carry.
pub(super) struct Seat {
    pub(super) session: Arc<Session>,
    /// Gone once it is carried.
    pub(super) queue: Option<mpsc::UnboundedReceiver<Out>>,
    pub(super) link: CancellationToken,
    /// What was written before and may not have arrived.
    pub(super) again: Vec<Frame>,
}

impl Sessions {
    pub(super) fn new(options: SessionOptions) -> Self {
        Self { options, table: Mutex::default() }
    }

    /// Finds the session a peer asks for, or begins the one it offers, and completes the answer. Returns nothing where
    /// the connection is one without a session.
    pub(super) async fn greet(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        owner: Option<Bytes>,
        request: &LevelRequest,
        answer: &mut LevelResponse,
    ) -> Option<Seat> {
        if request.max_level < LEVEL_SESSIONS || answer.max_level < LEVEL_SESSIONS {
            return None;
        }
        if !request.resume.is_empty()
            && let Some(seat) = self.resume(owner.as_ref(), &request.resume, request.received).await
        {
            answer.resumed = true;
            answer.received = seat.session.outbox.kept().map_or(0, |kept| kept.received());
            self.keep(answer);
            return Some(seat);
        }
        let seat = self.begin(shared, owner, &request.session)?;
        self.keep(answer);
        Some(seat)
    }

    fn keep(&self, answer: &mut LevelResponse) {
        answer.kept = true;
        answer.grace_millis = u64::try_from(self.options.grace.as_millis()).unwrap_or(u64::MAX);
    }

    /// Takes a session from the connection that carried it.
    async fn resume(&self, owner: Option<&Bytes>, id: &Bytes, received: u64) -> Option<Seat> {
        let session = self.table().get(id).cloned()?;
        if session.owner.as_ref() != owner {
            warn!("a peer with another certificate asks for a session, and does not get it");
            return None;
        }
        let (queue, link) = session.take().await?;
        let mut seat = Seat::new(Arc::clone(&session), queue, link);
        let again = session.outbox.kept().and_then(|kept| kept.after(received));
        let Some(again) = again else {
            warn!("a session cannot be gone on with: answers that are missing are not kept any more");
            session.outbox.end();
            return None;
        };
        info!(answers = again.len(), "a session goes on over a new connection");
        seat.again = again;
        Some(seat)
    }

    fn begin(self: &Arc<Self>, shared: &Arc<Shared>, owner: Option<Bytes>, id: &Bytes) -> Option<Seat> {
        if id.len() != SESSION_ID_LEN {
            return None;
        }
        let (outbox, queue) = Outbox::new(Some(self.options.max_bytes));
        let link = outbox.gone().child_token();
        let session = Arc::new(Session {
            id: id.clone(),
            owner,
            outbox,
            place: Mutex::new(Place { parked: None, link: link.clone() }),
            moved: Notify::new(),
        });
        {
            let mut table = self.table();
            if table.contains_key(id) {
                warn!("a peer offers the id of a session that there is: it gets none");
                return None;
            }
            if table.len() >= MAX_SESSIONS {
                let oldest = table.values().filter_map(|session| Some((session.parked_since()?, session)));
                let Some((_, oldest)) = oldest.min_by_key(|(since, _)| *since) else {
                    warn!(sessions = table.len(), "too many sessions: a peer gets none");
                    return None;
                };
                warn!(
                    sessions = table.len(),
                    "too many sessions: the one longest without a connection is given up"
                );
                oldest.outbox.end();
                let id = oldest.id.clone();
                table.remove(&id);
            }
            table.insert(id.clone(), Arc::clone(&session));
        }
        let keeping = keep(Arc::clone(self), Arc::clone(shared), Arc::clone(&session));
        shared.tasks.spawn(keeping);
        Some(Seat::new(session, queue, link))
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Bytes, Arc<Session>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Takes the place of the connection that there is. Returns nothing when the session is over.
    async fn take(&self) -> Option<(mpsc::UnboundedReceiver<Out>, CancellationToken)> {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            {
                let mut place = self.place();
                if let Some((queue, _)) = place.parked.take() {
                    place.link = self.outbox.gone().child_token();
                    self.outbox.set_parked(false);
                    self.moved.notify_waiters();
                    return Some((queue, place.link.clone()));
                }
                // The peer knows better than we do that this connection is broken.
                place.link.cancel();
            }
            tokio::select! {
                () = moved => {}
                () = self.outbox.gone().cancelled() => return None,
            }
        }
    }

    fn park(&self, queue: mpsc::UnboundedReceiver<Out>) {
        let mut place = self.place();
        place.parked = Some((queue, Instant::now()));
        self.outbox.set_parked(true);
        drop(place);
        self.moved.notify_waiters();
    }

    fn parked_since(&self) -> Option<Instant> {
        self.place().parked.as_ref().map(|(_, since)| *since)
    }

    /// Ends the session if it has been without a connection for so long.
    fn expire(&self, grace: Duration) -> bool {
        let mut place = self.place();
        let over = place.parked.as_ref().is_some_and(|(_, since)| since.elapsed() >= grace);
        if over {
            place.parked = None;
            self.outbox.end();
        }
        over
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn new(session: Arc<Session>, queue: mpsc::UnboundedReceiver<Out>, link: CancellationToken) -> Self {
        Self { session, queue: Some(queue), link, again: Vec::new() }
    }

    /// Leaves the session to the next connection; without a queue it is over.
    pub(super) fn leave(mut self, queue: Option<mpsc::UnboundedReceiver<Out>>) {
        self.queue = queue;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        match self.queue.take() {
            Some(queue) => self.session.park(queue),
            // The connection ended with the relay, or was dropped in the middle.
            None => self.session.outbox.end(),
        }
    }
}

/// Ends a session in its time and forgets its calls then.
async fn keep(sessions: Arc<Sessions>, shared: Arc<Shared>, session: Arc<Session>) {
    let grace = sessions.options.grace;
    loop {
        let mut moved = std::pin::pin!(session.moved.notified());
        moved.as_mut().enable();
        let end = session.parked_since().map(|since| since + grace);
        tokio::select! {
            () = shared.fronts.cancelled() => break,
            () = session.outbox.gone().cancelled() => break,
            () = moved => {}
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                if session.expire(grace) {
                    warn!(?grace, "a node did not come back: its session is given up");
                    break;
                }
            }
        }
    }
    session.outbox.end();
    {
        let mut table = sessions.table();
        if table.get(&session.id).is_some_and(|there| Arc::ptr_eq(there, &session)) {
            table.remove(&session.id);
        }
    }
    shared.pending.forget(&session.outbox);
}

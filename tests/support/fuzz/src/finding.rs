//! Running an input under watch, and what is wrong with it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::Seen;
use crate::seen::shape;

/// What is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The function panicked, or a property does not hold.
    Panic { message: String, place: String },
    /// More memory than allowed.
    Memory { bytes: u64, limit: u64 },
    /// More processor time than allowed.
    Time { took: Duration, limit: Duration },
}

impl Finding {
    /// Tells whether both are one fault, so that a shorter input may stand for a longer one.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Panic { message, place }, Self::Panic { message: of, place: at }) => {
                place == at && shape(message) == shape(of)
            }
            (Self::Memory { .. }, Self::Memory { .. }) | (Self::Time { .. }, Self::Time { .. }) => true,
            _ => false,
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Panic { message, place } => write!(f, "panicked at {place}: {message}"),
            Self::Memory { bytes, limit } => write!(f, "took {bytes} bytes of memory, {limit} are allowed"),
            Self::Time { took, limit } => {
                write!(f, "took {took:?} of processor time, {limit:?} are allowed")
            }
        }
    }
}

/// What one execution may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) memory: u64,
    pub(crate) memory_per_byte: u64,
    pub(crate) time: Duration,
}

thread_local! {
    /// The last panic of a watched execution; `None` where this thread is not watched.
    static WATCHED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Runs `check` on one input.
pub(crate) fn execute(check: &dyn Fn(&[u8]) -> Seen, input: &[u8], bounds: Bounds) -> Result<Seen, Finding> {
    quiet_panics();
    WATCHED.set(Some(Default::default()));
    let mut result = None;
    let before = processor_time();
    // The counter must not be left by a panic, which is caught inside of it.
    let memory =
        allocation_counter::measure(|| result = Some(catch_unwind(AssertUnwindSafe(|| check(input)))));
    let took = processor_time().saturating_sub(before);
    let told = WATCHED.take().unwrap_or_default();
    let Some(Ok(seen)) = result else {
        let (message, place) = told;
        return Err(Finding::Panic { message, place });
    };
    let limit = bounds.memory + bounds.memory_per_byte * input.len() as u64;
    if memory.bytes_max > limit {
        return Err(Finding::Memory { bytes: memory.bytes_max, limit });
    }
    if took > bounds.time {
        return Err(Finding::Time { took, limit: bounds.time });
    }
    Ok(seen)
}

/// The processor time of this thread: what other programs do on a busy machine does not count.
pub(crate) fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Lets panics of watched executions be noted in place of being printed: thousands come while an input is made shorter.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let watched = WATCHED.with_borrow_mut(|told| {
                let Some(told) = told else { return false };
                let text = info.payload_as_str().unwrap_or("something that is no text");
                *told = (text.to_owned(), info.location().map(ToString::to_string).unwrap_or_default());
                true
            });
            if !watched {
                usual(info);
            }
        }));
    });
}

/// Makes an input shorter and plainer, as long as the same is wrong with it.
pub(crate) fn shorten(
    input: &[u8],
    finding: Finding,
    mut execute: impl FnMut(&[u8]) -> Option<Finding>,
) -> (Vec<u8>, Finding) {
    /// Enough for any input of a few kilobytes.
    const TRIES: usize = 4000;
    let mut best = (input.to_vec(), finding);
    let mut tries = 0;
    let mut same = |candidate: &[u8], best: &mut (Vec<u8>, Finding)| {
        tries += 1;
        match execute(candidate) {
            Some(found) if found.is_like(&best.1) => {
                *best = (candidate.to_vec(), found);
                Some(tries < TRIES)
            }
            _ => (tries >= TRIES).then_some(false),
        }
    };
    let mut length = best.0.len();
    'shorter: while length > 0 {
        let mut at = 0;
        while at < best.0.len() {
            let mut candidate = best.0.clone();
            candidate.drain(at..(at + length).min(candidate.len()));
            match same(&candidate, &mut best) {
                // What followed stands at the same place now.
                Some(true) => {}
                Some(false) => break 'shorter,
                None => at += length,
            }
        }
        length /= 2;
    }
    for at in 0..best.0.len() {
        if best.0[at] == b'0' {
            continue;
        }
        let mut candidate = best.0.clone();
        candidate[at] = b'0';
        if same(&candidate, &mut best) == Some(false) {
            break;
        }
    }
    best
}

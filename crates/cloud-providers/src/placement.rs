//! Where a machine is tried: several zones, subnets, types and purchase options, in a stated order.
//!
//! A [`Plan`] lists the offerings of one request, [`place`] tries them, and a [`Memory`], shared by all requests of a
//! provider, knows which of them had no room a short while ago. Nothing here knows a cloud: the attempt is a closure of
//! the provider, and what a refusal is about is said by the provider's error table with [`Error::with_shortage`].
//!
//! A placement starts only when nothing of the request's token exists: a provider looks for that first, since the order
//! may be another one than it was for an earlier call whose reply was lost.

use std::future::Future;

use tokio::time::Instant;

use crate::{Error, ErrorKind, OpContext, Result, Retry};

mod memory;
mod plan;

pub use memory::{Exhausted, Memory, Shortage};
pub use plan::{Offering, Place, Plan, Purchase, PurchaseOrder, TypeOffer};

/// A machine that found a place.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Placed<T> {
    /// What the attempt returned.
    pub value: T,
    /// Where that was.
    pub offering: Offering,
    /// What was tried before, with each answer.
    pub refused: Vec<Refused>,
}

/// An offering that did not serve, and why.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Refused {
    /// The offering.
    pub offering: Offering,
    /// The answer, also where it is an earlier one.
    pub answer: Error,
    /// `false` when the answer was remembered and the cloud was not asked again.
    pub asked: bool,
}

/// Tries the offerings of `plan` with `attempt` until one has room.
///
/// - The order is that of the plan. Offerings that `memory` knows to be exhausted come last, the one that was refused
///   longest ago first: a request never fails because of the memory alone. Only answers younger than
///   [`Memory::fresh`] are believed without asking again, so that many requests during a long shortage cost one round
///   of questions for each such time.
/// - It goes on only after an error that says so ([`Retry::Elsewhere`], or [`ErrorKind::Capacity`] that is not
///   [`Retry::Never`]) and names no leftovers: the failed attempt was undone before the next one starts. Every other
///   error is returned as it is, with what was tried before.
/// - Each offering of a plan is as confidential as the request, so no attempt is a downgrade.
/// - `attempt` gets each offering once at most. It follows the context itself; between attempts the context is checked.
///
/// # Errors
///
/// [`ErrorKind::Cancelled`] when the call ends; an attempt's error that is not about room; and when no offering had
/// room, the kind that all answers share, or else [`ErrorKind::Capacity`], with every answer and the last one as source.
pub async fn place<T, F, Fut>(
    ctx: &OpContext,
    memory: &Memory,
    plan: &Plan,
    mut attempt: F,
) -> Result<Placed<T>>
where
    F: FnMut(Offering) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut refused: Vec<Refused> = Vec::new();
    let mut waiting: Vec<Offering> = Vec::new();
    for offering in plan.offerings() {
        // Looked at one by one: what this request or another one learns meanwhile counts at once.
        if memory.exhausted(offering).is_some() {
            waiting.push(offering.clone());
            continue;
        }
        match one(ctx, memory, offering, &mut refused, &mut attempt).await? {
            Some(value) => return Ok(Placed { value, offering: offering.clone(), refused }),
            None => continue,
        }
    }
    while let Some(offering) = take_oldest(memory, &mut waiting) {
        if let Some(known) = memory.exhausted(&offering)
            && known.since.elapsed() < memory.fresh()
        {
            refused.push(Refused { offering, answer: known.answer, asked: false });
            continue;
        }
        if let Some(value) = one(ctx, memory, &offering, &mut refused, &mut attempt).await? {
            return Ok(Placed { value, offering, refused });
        }
    }
    Err(nowhere(&refused))
}

/// Makes one attempt; `None` when it is about room and the next one may start.
async fn one<T, F, Fut>(
    ctx: &OpContext,
    memory: &Memory,
    offering: &Offering,
    refused: &mut Vec<Refused>,
    attempt: &mut F,
) -> Result<Option<T>>
where
    F: FnMut(Offering) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    ctx.check().map_err(|e| tell(e, refused))?;
    let error = match attempt(offering.clone()).await {
        Ok(value) => {
            memory.had_room(offering);
            return Ok(Some(value));
        }
        Err(error) => error,
    };
    if !is_elsewhere(&error) {
        return Err(tell(error, refused));
    }
    memory.mark(offering, &error);
    if !error.leftovers().is_empty() {
        // Another attempt would put a second machine beside what is left of this one.
        return Err(tell(error, refused));
    }
    tracing::info!(%offering, %error, "no room there, the next place is tried");
    refused.push(Refused { offering: offering.clone(), answer: error, asked: true });
    Ok(None)
}

fn is_elsewhere(error: &Error) -> bool {
    let room = matches!(error.kind(), ErrorKind::Capacity { .. });
    error.retry() == Retry::Elsewhere || (room && error.retry() != Retry::Never)
}

/// Takes the offering whose answer is the oldest one; an offering that is no longer remembered has none.
fn take_oldest(memory: &Memory, waiting: &mut Vec<Offering>) -> Option<Offering> {
    let since = |offering: &Offering| -> Option<Instant> { memory.exhausted(offering).map(|e| e.since) };
    let (index, _) = waiting.iter().enumerate().min_by_key(|(index, o)| (since(o), *index))?;
    Some(waiting.remove(index))
}

/// Adds to an error that ends a placement what was tried before it.
fn tell(error: Error, refused: &[Refused]) -> Error {
    if refused.is_empty() { error } else { error.with("tried before", list(refused)) }
}

fn list(refused: &[Refused]) -> String {
    let line = |r: &Refused| {
        let answer = r.answer.code().unwrap_or_else(|| r.answer.kind().label());
        let asked = if r.asked { "" } else { " a moment ago" };
        format!("{}: {answer}{asked}", r.offering)
    };
    refused.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn nowhere(refused: &[Refused]) -> Error {
    let Some(last) = refused.last() else {
        return Error::internal("a plan without offerings was placed");
    };
    let label = last.answer.kind().label();
    let shared = refused.iter().all(|r| r.answer.kind().label() == label);
    let same = |of: fn(&Offering) -> Option<&str>| {
        let first = of(&last.offering);
        first.filter(|_| refused.iter().all(|r| of(&r.offering) == first)).map(str::to_owned)
    };
    let capacity = ErrorKind::Capacity {
        zone: same(|o| o.zone.as_deref()),
        instance_type: same(|o| Some(&o.instance_type)),
    };
    let kind = match last.answer.kind() {
        kind if shared && !matches!(kind, ErrorKind::Capacity { .. }) => kind.clone(),
        _ => capacity,
    };
    let error = Error::new(kind, "no place has room for the machine")
        .with_retry(Retry::Elsewhere)
        .with("tried", list(refused))
        .with_source(last.answer.clone());
    match last.answer.code() {
        Some(code) => error.with_code(code),
        None => error,
    }
}

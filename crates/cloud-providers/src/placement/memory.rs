//! What had no room a short while ago.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Offering;
use crate::{Error, ErrorKind};

/// What a refusal is about. The provider's error table says it with [`Error::with_shortage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Shortage {
    /// This type, paid this way, in this zone. The rule unless the error says more.
    Offering,
    /// This type in this zone, however it is paid.
    TypeInZone,
    /// This type, paid this way, in every zone.
    Type,
    /// Every type, paid this way, in this zone.
    Zone,
    /// Every type, paid this way, in every zone: the account's limit for spot, for one.
    Purchase,
    /// The subnet has no addresses, whatever the type is.
    Subnet,
    /// This subnet and this type only; nothing is said about others.
    Here,
}

impl Shortage {
    /// Returns what an error is about: its own word, or what its kind names.
    fn of(error: &Error) -> Self {
        error.shortage().unwrap_or(match error.kind() {
            ErrorKind::Capacity { zone: Some(_), instance_type: None } => Self::Zone,
            ErrorKind::Capacity { zone: None, instance_type: Some(_) } => Self::Type,
            _ => Self::Offering,
        })
    }
}

/// A remembered refusal.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Exhausted {
    /// The offering that was refused.
    pub offering: Offering,
    /// What the refusal is about.
    pub shortage: Shortage,
    /// When it was given.
    pub since: Instant,
    /// The answer.
    pub answer: Error,
}

impl Exhausted {
    /// Whether the refusal speaks of `other` too.
    fn covers(&self, other: &Offering) -> bool {
        let own = &self.offering;
        let kind = own.instance_type == other.instance_type && own.confidential == other.confidential;
        let paid = own.purchase == other.purchase;
        let zone = own.zone == other.zone;
        match self.shortage {
            Shortage::Offering => kind && paid && zone,
            Shortage::TypeInZone => kind && zone,
            Shortage::Type => kind && paid,
            Shortage::Zone => paid && zone,
            Shortage::Purchase => paid,
            Shortage::Subnet => zone && own.subnet == other.subnet,
            Shortage::Here => own == other,
        }
    }
}

/// Remembers refusals for a while, by the clock of the runtime. Shared by all requests of a provider.
#[derive(Debug)]
pub struct Memory {
    keep: Duration,
    fresh: Duration,
    refusals: Mutex<Vec<Exhausted>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(Self::KEEP)
    }
}

impl Memory {
    /// How long a refusal is remembered unless somebody says otherwise.
    pub const KEEP: Duration = Duration::from_secs(180);
    /// How long a refusal is believed without asking again, even where nothing else is left.
    pub const FRESH: Duration = Duration::from_secs(5);

    /// Makes an empty memory that keeps refusals for `keep`; zero remembers nothing.
    pub fn new(keep: Duration) -> Self {
        Self { keep, fresh: Self::FRESH.min(keep), refusals: Mutex::default() }
    }

    /// Sets how long a refusal is believed without asking again, at most the time for which it is kept.
    #[must_use]
    pub fn with_fresh(mut self, fresh: Duration) -> Self {
        self.fresh = fresh.min(self.keep);
        self
    }

    /// Returns how long a refusal is believed without asking again, even where nothing else is left.
    pub fn fresh(&self) -> Duration {
        self.fresh
    }

    /// Returns the latest refusal that speaks of `offering`, `None` when there is no reason not to try it.
    pub fn exhausted(&self, offering: &Offering) -> Option<Exhausted> {
        self.lock().iter().filter(|r| r.covers(offering)).max_by_key(|r| r.since).cloned()
    }

    /// Remembers that `offering` was refused with `answer`.
    pub fn mark(&self, offering: &Offering, answer: &Error) {
        let new = Exhausted {
            offering: offering.clone(),
            shortage: Shortage::of(answer),
            since: Instant::now(),
            answer: answer.clone(),
        };
        let mut refusals = self.lock();
        refusals.retain(|r| r.offering != new.offering || r.shortage != new.shortage);
        refusals.push(new);
    }

    /// Forgets every refusal that a success at `offering` disproves.
    pub fn had_room(&self, offering: &Offering) {
        self.lock().retain(|r| !r.covers(offering));
    }

    /// Returns everything that is remembered, oldest first.
    pub fn list(&self) -> Vec<Exhausted> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Exhausted>> {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        // What is too old is dropped at every look, so the list is never longer than what was refused lately.
        refusals.retain(|r| r.since.elapsed() < self.keep);
        refusals
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Purchase, *};

    fn offering(zone: &str, subnet: &str, kind: &str, purchase: Purchase) -> Offering {
        Offering {
            zone: Some(zone.into()),
            subnet: Some(subnet.into()),
            instance_type: kind.into(),
            purchase,
            confidential: false,
        }
    }

    fn no_room() -> Error {
        Error::new(ErrorKind::Capacity { zone: None, instance_type: None }, "no room")
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_covers_what_its_code_says_and_is_forgotten_in_time() {
        use Purchase::{OnDemand, Spot};
        let refused = offering("a", "s1", "big", Spot);
        // Same offering, other subnet of the zone, other way to pay, other type, other zone.
        let others = [
            refused.clone(),
            offering("a", "s2", "big", Spot),
            offering("a", "s1", "big", OnDemand),
            offering("a", "s1", "small", Spot),
            offering("b", "s3", "big", Spot),
            offering("b", "s3", "small", Spot),
        ];
        for (shortage, covered) in [
            (Shortage::Offering, [true, true, false, false, false, false]),
            (Shortage::TypeInZone, [true, true, true, false, false, false]),
            (Shortage::Type, [true, true, false, false, true, false]),
            (Shortage::Zone, [true, true, false, true, false, false]),
            (Shortage::Purchase, [true, true, false, true, true, true]),
            (Shortage::Subnet, [true, false, true, true, false, false]),
            (Shortage::Here, [true, false, false, false, false, false]),
        ] {
            let memory = Memory::default();
            memory.mark(&refused, &no_room().with_shortage(shortage));
            let now: Vec<bool> = others.iter().map(|o| memory.exhausted(o).is_some()).collect();
            assert_eq!(now, covered, "{shortage:?}");
            tokio::time::advance(Memory::KEEP - Duration::from_millis(1)).await;
            assert_eq!(memory.list().len(), 1);
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(memory.exhausted(&refused).is_none() && memory.list().is_empty(), "{shortage:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_disproves_what_covers_it_and_nothing_else() {
        let memory = Memory::default();
        let (one, two) =
            (offering("a", "s1", "big", Purchase::Spot), offering("b", "s2", "big", Purchase::Spot));
        memory.mark(&one, &no_room().with_shortage(Shortage::Type));
        memory.mark(&one, &no_room());
        memory.had_room(&two);
        assert_eq!(memory.list().len(), 1);
        assert!(memory.exhausted(&one).is_some() && memory.exhausted(&two).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shortage_of_confidential_machines_says_nothing_about_plain_ones() {
        let plain = offering("a", "s1", "big", Purchase::Spot);
        let confidential = Offering { confidential: true, ..plain.clone() };
        let memory = Memory::default();
        memory.mark(&confidential, &no_room());
        assert!(memory.exhausted(&plain).is_none() && memory.exhausted(&confidential).is_some());
    }
}

//! Which tunnel ids are taken by sandboxes of this daemon.

use std::{collections::BTreeSet, sync::Mutex};

use crate::store::lock;

/// The greatest id: VXLAN has 24 bits.
const MAX: u32 = 0x00ff_ffff;

/// Gives out ids one after the other. A returned id is used again only after all others were, so that late packets of
/// an ended sandbox do not reach a new one.
#[derive(Debug)]
pub(super) struct TunnelIds {
    min: u32,
    inner: Mutex<(u32, BTreeSet<u32>)>,
}

impl TunnelIds {
    pub(super) fn new(min: u32) -> Self {
        Self { min, inner: Mutex::new((min, BTreeSet::new())) }
    }

    /// The least id; an id's index is its distance from it.
    pub(super) fn min(&self) -> u32 {
        self.min
    }

    /// Takes the next free id, `None` when all are taken.
    pub(super) fn take(&self) -> Option<u32> {
        let (next, taken) = &mut *lock(&self.inner);
        let count = MAX - self.min + 1;
        for _ in 0..count {
            let id = *next;
            *next = if id >= MAX { self.min } else { id + 1 };
            if taken.insert(id) {
                return Some(id);
            }
        }
        None
    }

    /// Takes the id of a sandbox that an earlier daemon made.
    pub(super) fn claim(&self, id: u32) {
        lock(&self.inner).1.insert(id);
    }

    /// Returns an id.
    pub(super) fn give_back(&self, id: u32) {
        lock(&self.inner).1.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_within_24_bits_and_are_not_reused_at_once() {
        let ids = TunnelIds::new(MAX - 1);
        assert_eq!((ids.take(), ids.take(), ids.take()), (Some(MAX - 1), Some(MAX), None));
        ids.give_back(MAX);
        assert_eq!(ids.take(), Some(MAX));
        let ids = TunnelIds::new(5);
        let first = ids.take().unwrap();
        ids.give_back(first);
        assert_ne!(ids.take(), Some(first));
        let ids = TunnelIds::new(5);
        ids.claim(5);
        assert_eq!(ids.take(), Some(6));
    }
}

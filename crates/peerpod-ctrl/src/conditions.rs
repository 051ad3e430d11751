//! What is written as conditions of a record.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use peerpod_api::{PeerPod, object::condition};
use serde_json::{Value, json};

use crate::model::Note;

/// Returns the patch of the status that says `note`, and takes back what does not hold any more.
///
/// Conditions of other types stay as they are. A record that is being deleted is pending in any case, also when the note
/// says that somebody has to mend something.
pub(crate) fn patch(object: &PeerPod, note: &Note, now: Time) -> Value {
    let mut all = object.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
    let said = note.reason.condition();
    let deleting = object.metadata.deletion_timestamp.is_some();
    let generation = object.metadata.generation;
    let mut set = |kind: &str, holds: bool, only_if_there: bool| {
        let status = if holds { "True" } else { "False" };
        let found = all.iter_mut().find(|c| c.type_ == kind);
        if found.is_none() && only_if_there {
            return;
        }
        let since = match &found {
            Some(old) if old.status == status => old.last_transition_time.clone(),
            _ => now.clone(),
        };
        let new = Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: note.reason.label().to_owned(),
            message: note.message.clone(),
            last_transition_time: since,
            observed_generation: generation,
        };
        match found {
            Some(old) => *old = new,
            None => all.push(new),
        }
    };
    set(said, true, false);
    if said == condition::DELETION_PENDING {
        set(condition::STUCK, false, true);
    }
    if said == condition::STUCK && deleting {
        set(condition::DELETION_PENDING, true, false);
    }
    json!({"status": {"observedGeneration": generation, "conditions": all}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{memory::time, model::Reason};

    fn after(object: &PeerPod, reason: Reason, at: i64) -> PeerPod {
        let patch = patch(object, &Note::new(reason, reason.label()), time(at));
        PeerPod { status: serde_json::from_value(patch["status"].clone()).unwrap(), ..object.clone() }
    }

    fn said(object: &PeerPod) -> Vec<(String, String, String, i64)> {
        let conditions = &object.status.as_ref().unwrap().conditions;
        let one = |c: &Condition| {
            (c.type_.clone(), c.status.clone(), c.reason.clone(), c.last_transition_time.0.as_second())
        };
        conditions.iter().map(one).collect()
    }

    fn is(kind: &str, status: &str, reason: &str, at: i64) -> (String, String, String, i64) {
        (kind.to_owned(), status.to_owned(), reason.to_owned(), at)
    }

    #[test]
    fn what_is_stuck_is_pending_too_and_mended_when_it_goes_on() {
        let mut object = PeerPod::new("default", "a", Default::default());
        object.metadata.deletion_timestamp = Some(time(1));
        let stuck = after(&object, Reason::UnknownProvider, 10);
        assert_eq!(
            said(&stuck),
            [
                is("Stuck", "True", "UnknownProvider", 10),
                is("DeletionPending", "True", "UnknownProvider", 10)
            ]
        );
        let mended = after(&stuck, Reason::DeletionFailed, 20);
        assert_eq!(
            said(&mended),
            [is("Stuck", "False", "DeletionFailed", 20), is("DeletionPending", "True", "DeletionFailed", 10)],
            "the time is that of the last transition"
        );
    }

    #[test]
    fn conditions_of_others_stay() {
        let mut object = PeerPod::new("default", "a", Default::default());
        let others = json!({"conditions": [{
            "type": "Theirs", "status": "True", "reason": "R", "message": "", "lastTransitionTime": time(1),
        }]});
        object.status = serde_json::from_value(others).unwrap();
        let after = after(&object, Reason::NoOwner, 5);
        assert_eq!(said(&after), [is("Theirs", "True", "R", 1), is("Stuck", "True", "NoOwner", 5)]);
    }
}

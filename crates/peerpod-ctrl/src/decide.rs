//! The rules, without any input or output: what a record deserves, given what was read.

use std::time::Duration;

use cloud_providers::{InstanceId, Ownership, Token};

use peerpod_api::{Gone, Origin, names, rules};

use crate::{
    hooks::{Hooks, SafetyKey},
    model::{Daemon, Note, Pod, Reason, Record},
    settings::Settings,
};

/// How long a deletion that a daemon has the first go at stays without a word: most are over by then.
const QUIET: Duration = Duration::from_secs(5);

/// What a record deserves as far as a cache can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing, until it changes.
    Nothing,
    /// Another look after a while, and a word about it where there is one.
    Wait(Duration, Option<Note>),
    /// Its VM is to go: everything is read anew and looked at once more.
    Delete,
    /// The record itself is to be deleted, since the other one of the same pod took its place.
    Supersede(String),
}

/// Looks at a record. `newer` is the record that took its place, `waited` is for how long it has been deleted, or
/// superseded, as far as this controller saw.
pub fn look(
    record: &Record,
    newer: Option<&Record>,
    waited: Duration,
    daemon: Daemon,
    settings: &Settings,
    hooks: &Hooks,
) -> Look {
    let wait = |note: Note| {
        if waited < QUIET.min(settings.daemon_grace) {
            return Look::Wait(QUIET.min(settings.daemon_grace) - waited, None);
        }
        Look::Wait(settings.daemon_grace.saturating_sub(waited), Some(note))
    };
    let first_go =
        hooks.has(SafetyKey::DaemonFirst) && daemon != Daemon::Gone && waited < settings.daemon_grace;
    let of_node = record.facts.node.as_deref().map(|node| format!(" of node {node}")).unwrap_or_default();
    if record.is_deleting() {
        if !record.is_kept() {
            return Look::Nothing;
        }
        if first_go {
            let seconds = settings.daemon_grace.as_secs();
            return wait(Note::new(
                Reason::WaitingForDaemon,
                format!("the daemon{of_node} has {seconds} s to delete the VM before the controller does"),
            ));
        }
        return Look::Delete;
    }
    if let Some(newer) = newer {
        let by = newer.facts.sandbox.clone().unwrap_or_else(|| newer.key.name.clone());
        if first_go {
            let message = format!("{by} took its place; the daemon{of_node} has the first go at the old VM");
            return wait(Note::new(Reason::Superseded, message));
        }
        return Look::Supersede(by);
    }
    if record.facts.pod.is_none() {
        let note = Note::new(
            Reason::NoOwner,
            "no pod owns this record, so nothing will ask for its deletion: delete it when its VM is no longer needed",
        );
        return Look::Wait(settings.recheck, Some(note));
    }
    Look::Nothing
}

/// Finds the record that took the place of `record` among `others`.
pub fn superseded_by<'a>(
    record: &Record,
    others: impl IntoIterator<Item = &'a Record>,
    hooks: &Hooks,
) -> Option<&'a Record> {
    let owner = &record.facts.pod.as_ref()?.uid;
    let of_same_pod = |other: &&Record| other.facts.pod.as_ref().is_some_and(|pod| pod.uid == *owner);
    others
        .into_iter()
        // One that is being deleted counts, too: a later sandbox was made after the end of the earlier one, whatever
        // became of it.
        .filter(|other| other.key != record.key)
        .filter(of_same_pod)
        .find(|other| {
            !hooks.has(SafetyKey::SandboxOrder) || rules::is_superseded(&record.object, &other.object)
        })
}

/// What goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doomed {
    /// An instance, and what proves that it is ours.
    Instance(InstanceId, Ownership),
    /// Everything that carries a token.
    Token(Token),
}

impl Doomed {
    /// What is gone once the provider said so.
    pub fn gone(&self) -> Gone {
        match self {
            Self::Instance(id, _) => Gone::instance(id.clone()),
            Self::Token(token) => Gone::token(token.clone()),
        }
    }
}

/// The last word before anything is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes.
    Delete(Doomed),
    /// Nothing of ours is left to do.
    Done,
    /// Not now, for this reason; another look after so long.
    Hold(Note, Duration),
}

/// Decides with what was just read from the API server: the record, and the pod of its owner's name, unless that is served
/// by another sandbox. `waited` is for how long both the record was deleted and its pod was ending, as far as this
/// controller saw.
pub fn verdict(
    record: &Record,
    pod: Option<&Pod>,
    waited: Duration,
    settings: &Settings,
    hooks: &Hooks,
) -> Verdict {
    if !record.is_deleting() || !record.is_kept() {
        return Verdict::Done;
    }
    let facts = &record.facts;
    if facts.protected {
        let message = format!(
            "the VM stays because the record is protected: remove the annotation {} to have it deleted",
            names::PROTECT
        );
        return Verdict::Hold(Note::new(Reason::Protected, message), settings.recheck);
    }
    if let Some((owner, pod)) = facts.pod.as_ref().zip(pod)
        && hooks.has(SafetyKey::FreshPod)
        && pod.uid == owner.uid
        && pod.lives()
        && record.superseded().is_none()
    {
        if !pod.deleting {
            let message = format!(
                "the record is being deleted while its pod {} lives: the VM goes when the pod is gone",
                owner.name
            );
            return Verdict::Hold(Note::new(Reason::PodAlive, message), settings.recheck);
        }
        // The pod may wait for this record (deletion in the foreground), so that its end cannot be waited for.
        let limit = Duration::from_secs(pod.grace_seconds).saturating_add(settings.daemon_grace);
        if waited < limit {
            let message = format!("the pod {} has {} s to end", owner.name, pod.grace_seconds);
            return Verdict::Hold(Note::new(Reason::PodAlive, message), limit - waited);
        }
    }
    match rules::origin(facts, &settings.scope) {
        Origin::OtherScope(scope) if hooks.has(SafetyKey::OwnScope) => {
            let message = format!(
                "its token is of {scope}, and this controller deletes for {}: is -cluster-id the one of the daemons?",
                settings.scope
            );
            return Verdict::Hold(Note::new(Reason::ForeignToken, message), settings.recheck);
        }
        Origin::Damaged(why) => {
            let message = format!(
                "it says {}: mend the annotation {}, or look for a VM of this pod in the cloud and then remove the \
                 finalizer by hand",
                why.join("; "),
                names::TOKEN
            );
            return Verdict::Hold(Note::new(Reason::ForeignToken, message), settings.recheck);
        }
        _ => {}
    }
    match (&facts.instance, &facts.token) {
        (Some(id), _) => match rules::ownership(facts) {
            Some(ownership) => Verdict::Delete(Doomed::Instance(id.clone(), ownership)),
            None => {
                let message = format!(
                    "it has neither token nor pod, so nothing proves that the instance {id} is its own: look at it in the \
                     cloud, and then remove the finalizer by hand"
                );
                Verdict::Hold(Note::new(Reason::NoOwner, message), settings.recheck)
            }
        },
        (None, Some(token)) => Verdict::Delete(Doomed::Token(token.clone())),
        (None, None) => {
            let note = Note::new(
                Reason::NoInstance,
                "it names neither an instance nor a token, so nobody knows what to delete: look for a VM of this pod in \
                 the cloud, and then remove the finalizer by hand",
            );
            Verdict::Hold(note, settings.recheck)
        }
    }
}

#[cfg(test)]
mod tests {
    use cloud_providers::Scope;
    use peerpod_api::{Claim, PeerPod, PodOwner, writes};

    use super::*;
    use crate::model::Key;

    fn settings() -> Settings {
        Settings::new(Scope::Cluster("c".into()))
    }

    fn record_with(name: &str, change: impl FnOnce(&mut PeerPod)) -> Record {
        let token = Token::new(Scope::Cluster("c".into()), name, 1);
        let mut claim = Claim::new(name, token, PodOwner::new("default", "web", "pod-1"));
        (claim.node, claim.provider) = (Some("node-1".into()), "scripted".into());
        let mut object = writes::early(&claim);
        object.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        object.spec.instance_id = Some(format!("i-{name}"));
        change(&mut object);
        Record::new(object)
    }

    fn ordered(name: &str, order: u64) -> Record {
        record_with(name, |o| {
            o.metadata.annotations.get_or_insert_default().insert(names::ORDER.into(), order.to_string());
        })
    }

    fn record(name: &str) -> Record {
        record_with(name, |_| ())
    }

    fn doomed_with(name: &str, change: impl FnOnce(&mut PeerPod)) -> Record {
        record_with(name, |object| {
            object.metadata.deletion_timestamp = Some(crate::memory::time(1000));
            change(object);
        })
    }

    fn doomed(name: &str) -> Record {
        doomed_with(name, |_| ())
    }

    /// As the existing daemon writes it, with an id or without.
    fn existing(id: Option<&str>) -> Record {
        doomed_with("a", |object| {
            object.metadata.annotations = None;
            object.spec = peerpod_api::PeerPodSpec {
                cloud_provider: Some("scripted".into()),
                instance_id: id.map(str::to_owned),
                ..Default::default()
            };
        })
    }

    fn pod() -> Pod {
        Pod::new(Key::new("default", "web"), "pod-1")
    }

    const LATE: Duration = Duration::from_secs(3600);

    fn last(record: &Record, pod: Option<&Pod>, waited: Duration) -> Verdict {
        verdict(record, pod, waited, &settings(), &Hooks::default())
    }

    fn first(record: &Record, newer: Option<&Record>, seconds: u64, daemon: Daemon) -> Look {
        look(record, newer, Duration::from_secs(seconds), daemon, &settings(), &Hooks::default())
    }

    fn held(verdict: Verdict) -> Reason {
        match verdict {
            Verdict::Hold(note, pause) => {
                assert!(pause > Duration::ZERO, "a hold is looked at again");
                note.reason
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_daemon_that_lives_has_the_first_go_and_no_more() {
        let r = doomed("a");
        for daemon in [Daemon::Alive, Daemon::Unknown] {
            assert_eq!(first(&r, None, 0, daemon), Look::Wait(Duration::from_secs(5), None));
            let Look::Wait(rest, Some(note)) = first(&r, None, 20, daemon) else { panic!() };
            assert_eq!((rest, note.reason), (Duration::from_secs(40), Reason::WaitingForDaemon));
            assert_eq!(first(&r, None, 60, daemon), Look::Delete);
        }
        assert_eq!(first(&r, None, 0, Daemon::Gone), Look::Delete);
        let others = doomed_with("a", |o| o.metadata.finalizers = Some(vec!["of/others".into()]));
        assert_eq!(first(&others, None, 99, Daemon::Gone), Look::Nothing);
    }

    #[test]
    fn a_living_pods_vm_stays_when_its_record_is_deleted() {
        assert_eq!(held(last(&doomed("a"), Some(&pod()), LATE)), Reason::PodAlive);
        assert!(matches!(last(&doomed("a"), None, LATE), Verdict::Delete(_)));
        let again = Pod { uid: "pod-2".into(), ..pod() };
        assert!(
            matches!(last(&doomed("a"), Some(&again), LATE), Verdict::Delete(_)),
            "another pod of this name"
        );
        let over = Pod { over: true, ..pod() };
        assert!(matches!(last(&doomed("a"), Some(&over), LATE), Verdict::Delete(_)));
        let superseded = doomed_with("a", |o| {
            o.metadata.annotations.get_or_insert_default().insert(names::SUPERSEDED_BY.into(), "b".into());
        });
        assert!(matches!(last(&superseded, Some(&pod()), LATE), Verdict::Delete(_)));
    }

    #[test]
    fn a_pod_that_ends_has_its_own_time_and_then_no_more() {
        let ending = Pod { deleting: true, grace_seconds: 300, ..pod() };
        assert_eq!(held(last(&doomed("a"), Some(&ending), Duration::from_secs(359))), Reason::PodAlive);
        assert!(matches!(last(&doomed("a"), Some(&ending), Duration::from_secs(360)), Verdict::Delete(_)));
    }

    #[test]
    fn what_cannot_be_deleted_is_held_with_the_thing_to_mend() {
        let annotated = |key: &str, value: &str| {
            doomed_with("a", |o| {
                o.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
                (o.spec.token, o.spec.instance_id) = (None, None);
            })
        };
        assert_eq!(held(last(&annotated(names::PROTECT, "true"), None, LATE)), Reason::Protected);
        let foreign = Token::new(Scope::Cluster("other".into()), "a", 1).to_string();
        assert_eq!(held(last(&annotated(names::TOKEN, &foreign), None, LATE)), Reason::ForeignToken);
        assert_eq!(held(last(&annotated(names::TOKEN, "nonsense"), None, LATE)), Reason::ForeignToken);
        for empty in [None, Some("")] {
            assert_eq!(held(last(&existing(empty), None, LATE)), Reason::NoInstance);
        }
    }

    #[test]
    fn what_goes_is_named_with_its_proof() {
        let scope = Scope::Cluster("c".into());
        let Verdict::Delete(Doomed::Instance(id, proof)) = last(&doomed("a"), None, LATE) else { panic!() };
        assert_eq!((id.as_str(), proof), ("i-a", Ownership::Tagged(scope)));
        let early = doomed_with("a", |o| o.spec.instance_id = None);
        let Verdict::Delete(Doomed::Token(token)) = last(&early, None, LATE) else { panic!() };
        assert_eq!(token.unit, "a");
        let Verdict::Delete(Doomed::Instance(_, proof)) = last(&existing(Some("i")), None, LATE) else {
            panic!()
        };
        assert_eq!(proof, Ownership::RecordedFor { pod: "web".into() });
        assert_eq!(last(&record("a"), None, LATE), Verdict::Done, "nobody asked for it");
    }

    #[test]
    fn a_later_sandbox_of_the_same_pod_takes_the_place() {
        let hooks = Hooks::default();
        let (a, b) = (ordered("a", 1), ordered("b", 2));
        let all = [a.clone(), b.clone()];
        assert_eq!(superseded_by(&a, &all, &hooks).map(|r| r.key.clone()), Some(b.key.clone()));
        assert_eq!(superseded_by(&b, &all, &hooks), None);
        let ownerless = record_with("c", |o| o.metadata.owner_references = None);
        assert_eq!(superseded_by(&a, [&ownerless], &hooks), None);
        assert_eq!(superseded_by(&ownerless, [&a], &hooks), None);
        let mut going = b.object.clone();
        going.metadata.deletion_timestamp = Some(crate::memory::time(1));
        let going = Record::new(going);
        assert_eq!(
            superseded_by(&a, [&going], &hooks).map(|r| r.key.clone()),
            Some(b.key),
            "whatever becomes of it"
        );
    }

    #[test]
    fn a_superseded_record_is_left_to_its_daemon_first() {
        let (a, b) = (record("a"), record("b"));
        assert!(matches!(first(&a, Some(&b), 0, Daemon::Alive), Look::Wait(_, None)));
        let Look::Supersede(by) = first(&a, Some(&b), 60, Daemon::Alive) else { panic!() };
        assert_eq!(by, "b");
    }

    #[test]
    fn a_record_without_owner_is_told_and_not_touched() {
        let a = record_with("a", |o| o.metadata.owner_references = None);
        let Look::Wait(_, Some(note)) = first(&a, None, 0, Daemon::Gone) else { panic!() };
        assert_eq!(note.reason, Reason::NoOwner);
        assert_eq!(first(&record("a"), None, 0, Daemon::Gone), Look::Nothing);
    }
}

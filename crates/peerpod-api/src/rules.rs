//! What daemon and controller decide alike: functions from objects to answers.

use cloud_providers::{InstanceId, Ownership, Scope, Token};

use crate::{Facts, PeerPod, names};

/// What an object stands for, by its finalizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// An instance may come to be, or may be there without a known id.
    Intent,
    /// There is an instance.
    Bound,
    /// Nothing is left; the object goes with its pod.
    Done,
}

/// Returns what `object` stands for.
pub fn stage(object: &PeerPod) -> Stage {
    let has = |name: &str| object.metadata.finalizers.iter().flatten().any(|f| f == name);
    if has(names::FINALIZER) {
        Stage::Bound
    } else if has(names::INTENT_FINALIZER) {
        Stage::Intent
    } else {
        Stage::Done
    }
}

/// Whether somebody asked to delete `object`.
pub fn is_deleting(object: &PeerPod) -> bool {
    object.metadata.deletion_timestamp.is_some()
}

/// Who wrote an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A daemon of ours, of this cluster.
    Ours(Token),
    /// A daemon of ours, with another cluster id: the id was changed, or the object was copied from elsewhere.
    OtherScope(Scope),
    /// The existing daemon, which knows no tokens.
    Existing,
    /// It has something of ours, and the token cannot be read. It belongs to nobody until somebody mends it.
    Damaged(Vec<String>),
}

/// Returns who wrote an object, seen from a program of `scope`.
pub fn origin(facts: &Facts, scope: &Scope) -> Origin {
    match &facts.token {
        Some(token) if token.scope == *scope => Origin::Ours(token.clone()),
        Some(token) => Origin::OtherScope(token.scope.clone()),
        None if facts.sandbox.is_none() && facts.unreadable.is_empty() => Origin::Existing,
        None if facts.unreadable.is_empty() => Origin::Damaged(vec!["the token is missing".into()]),
        None => Origin::Damaged(facts.unreadable.clone()),
    }
}

/// Returns how the owner of an object proves that the instance is its own; `None` where it cannot.
///
/// What a token names is tagged, with the token's own scope: the daemon's may be another one by now. What the existing
/// daemon made carries no tags, and its name is what tells: where the object has none, one of those generated for its pod.
pub fn ownership(facts: &Facts) -> Option<Ownership> {
    match (&facts.token, &facts.instance_name, &facts.pod) {
        (Some(token), _, _) => Some(Ownership::Tagged(token.scope.clone())),
        (None, Some(name), _) => Some(Ownership::Recorded { name: name.clone() }),
        // One of ours that is damaged had a token: its instance is tagged, and a name proves nothing.
        (None, None, _) if facts.sandbox.is_some() || !facts.unreadable.is_empty() => None,
        (None, None, Some(pod)) => Some(Ownership::RecordedFor { pod: pod.name.clone() }),
        (None, None, None) => None,
    }
}

/// Whether `name` is one that the existing programs generate for a pod of the name `pod`, whatever the sandbox.
///
/// ```
/// # use peerpod_api::rules::is_generated_name;
/// assert!(is_generated_name("podvm-web-0-0a1b2c3d", "web-0"));
/// assert!(!is_generated_name("podvm-web-0a1b2c3d", "web-0"));
/// ```
pub fn is_generated_name(name: &str, pod: &str) -> bool {
    cloud_providers::names::is_instance_name(name, pod)
}

/// Whether the pod of `older` is served by the sandbox of `newer` now, so that what `older` stands for may go.
///
/// Both belong to one pod, by its UID, and to two sandboxes. Which one came later is told by the order that the node's
/// daemon gave them, which no clock turns round. Where one of them has none, as with the existing daemon, the time at
/// which the server made them tells, in whole seconds; of two made in the same second neither is superseded, and both go
/// with the pod.
pub fn is_superseded(older: &PeerPod, newer: &PeerPod) -> bool {
    let (old, new) = (Facts::of(older), Facts::of(newer));
    let same_pod =
        matches!((&old.pod, &new.pod), (Some(a), Some(b)) if a.uid == b.uid && a.namespace == b.namespace);
    let same_object =
        older.metadata.name == newer.metadata.name && older.metadata.namespace == newer.metadata.namespace;
    if !same_pod || same_object || (old.sandbox.is_some() && old.sandbox == new.sandbox) {
        return false;
    }
    match (old.order, new.order) {
        (Some(old_order), Some(new_order)) if old.node == new.node => old_order < new_order,
        _ => {
            let made =
                |object: &PeerPod| object.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second());
            matches!((made(older), made(newer)), (Some(a), Some(b)) if a < b)
        }
    }
}

/// What a provider said to be gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// An instance, by `delete_instance`.
    pub instance: Option<InstanceId>,
    /// Everything that carries a token, by `release` or because nothing came to be.
    pub token: Option<Token>,
}

impl Gone {
    /// `delete_instance` succeeded.
    pub fn instance(id: InstanceId) -> Self {
        Self { instance: Some(id), token: None }
    }

    /// `release` succeeded.
    pub fn token(token: Token) -> Self {
        Self { instance: None, token: Some(token) }
    }
}

/// Whether the finalizers of an object may go, after a provider said that `gone` is gone.
///
/// The object must speak of the same thing still: an id that was written in the meantime, or a token of a later attempt,
/// is another one. An object that names neither instance nor token never qualifies; somebody has to look at it.
pub fn may_finalizer_go(object: &PeerPod, gone: &Gone) -> bool {
    let facts = Facts::of(object);
    let instance_gone = facts.instance.is_some() && facts.instance == gone.instance;
    let token_gone = facts.token.is_some() && facts.token == gone.token;
    match (stage(object), &facts.instance) {
        (Stage::Done, _) => true,
        // What carries the token includes the instance.
        (_, Some(_)) => instance_gone || token_gone,
        (_, None) => token_gone,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;
    use crate::{Claim, PeerPodSpec, PodOwner, writes};

    fn scope() -> Scope {
        Scope::Cluster("c1".into())
    }

    fn token(sandbox: &str, attempt: u32) -> Token {
        Token::new(scope(), sandbox, attempt)
    }

    fn ours(sandbox: &str, order: u64) -> PeerPod {
        let mut claim = Claim::new(sandbox, token(sandbox, 1), PodOwner::new("shop", "db-0", "uid-1"));
        claim.order = Some(order);
        claim.node = Some("node-1".into());
        writes::early(&claim)
    }

    fn existing(name: &str, made: i64) -> PeerPod {
        let spec = PeerPodSpec { instance_id: Some(format!("i-{name}")), ..PeerPodSpec::default() };
        let mut object = PeerPod::new("shop", name, spec);
        object.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        object.metadata.owner_references = Some(vec![PodOwner::new("shop", "db-0", "uid-1").reference()]);
        at(&mut object, made);
        object
    }

    fn at(object: &mut PeerPod, second: i64) {
        object.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
    }

    fn bound(mut object: PeerPod, id: &str) -> PeerPod {
        object.spec.instance_id = Some(id.into());
        object.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        object
    }

    #[test]
    fn a_later_sandbox_of_the_same_pod_supersedes_whatever_the_clock_says() {
        let (mut first, mut second) = (ours("s1", 1), ours("s2", 2));
        at(&mut first, 100);
        for clock in [50, 100, 150] {
            at(&mut second, clock);
            assert!(is_superseded(&first, &second) && !is_superseded(&second, &first));
        }
    }

    #[test]
    fn objects_of_other_pods_and_the_same_sandbox_supersede_nothing() {
        let object = ours("s1", 1);
        assert!(!is_superseded(&object, &object));
        let mut again = ours("s1", 2);
        again.metadata.name = Some("another".into());
        assert!(!is_superseded(&object, &again), "the same sandbox");
        let mut other = ours("s2", 2);
        other.metadata.owner_references = Some(vec![PodOwner::new("shop", "db-0", "uid-2").reference()]);
        assert!(!is_superseded(&object, &other), "a new pod of the same name");
        other.metadata.owner_references = None;
        assert!(!is_superseded(&object, &other) && !is_superseded(&other, &object), "no owner");
    }

    #[test]
    fn objects_of_the_existing_daemon_are_told_apart_by_the_servers_seconds() {
        let (first, second) = (existing("a", 100), existing("b", 101));
        assert!(is_superseded(&first, &second) && !is_superseded(&second, &first));
        let tie = existing("c", 100);
        assert!(!is_superseded(&first, &tie) && !is_superseded(&tie, &first));
        let mut new = ours("s1", 1);
        at(&mut new, 200);
        assert!(is_superseded(&first, &new) && !is_superseded(&new, &first));
    }

    #[test]
    fn a_finalizer_goes_only_with_what_the_object_names() {
        let object = bound(ours("s1", 1), "i-1");
        assert!(may_finalizer_go(&object, &Gone::instance(InstanceId::new("i-1"))));
        assert!(may_finalizer_go(&object, &Gone::token(token("s1", 1))));
        assert!(!may_finalizer_go(&object, &Gone::instance(InstanceId::new("i-2"))));
        assert!(!may_finalizer_go(&object, &Gone::token(token("s1", 2))), "a later attempt");
        assert!(!may_finalizer_go(&object, &Gone::default()));
    }

    #[test]
    fn an_intent_goes_with_its_token_alone() {
        let object = ours("s1", 1);
        assert_eq!(stage(&object), Stage::Intent);
        assert!(may_finalizer_go(&object, &Gone::token(token("s1", 1))));
        assert!(!may_finalizer_go(&object, &Gone::instance(InstanceId::new(""))));
        assert!(!may_finalizer_go(&object, &Gone::default()));
    }

    #[test]
    fn an_object_with_an_empty_id_and_no_token_never_goes_by_itself() {
        let mut object = existing("a", 1);
        object.spec.instance_id = Some(String::new());
        for gone in [Gone::default(), Gone::instance(InstanceId::new("")), Gone::token(token("s1", 1))] {
            assert!(!may_finalizer_go(&object, &gone));
        }
    }

    #[test]
    fn the_origin_is_told_by_the_token() {
        let facts = |object: &PeerPod| Facts::of(object);
        assert_eq!(origin(&facts(&ours("s1", 1)), &scope()), Origin::Ours(token("s1", 1)));
        let elsewhere = Scope::Cluster("c2".into());
        assert_eq!(origin(&facts(&ours("s1", 1)), &elsewhere), Origin::OtherScope(scope()));
        assert_eq!(origin(&facts(&existing("a", 1)), &scope()), Origin::Existing);
        let mut damaged = ours("s1", 1);
        damaged.spec.token = Some("nonsense".into());
        assert!(
            matches!(origin(&facts(&damaged), &scope()), Origin::Damaged(why) if why[0].contains("nonsense"))
        );
        assert_eq!(ownership(&facts(&damaged)), None);
    }

    #[test]
    fn names_that_the_existing_programs_generate_are_known() {
        let long = "a".repeat(80);
        for max in [63, 47] {
            let name = cloud_providers::names::instance_name(&long, "0123456789", max).unwrap();
            assert!(is_generated_name(&name, &long), "{name}");
        }
        for name in ["", "podvm-db-0", "podvm-db-1-0a1b2c3d", "web", "podvm-db-0-0a1b2c3d-x"] {
            assert!(!is_generated_name(name, "db-0"), "{name}");
        }
    }
}

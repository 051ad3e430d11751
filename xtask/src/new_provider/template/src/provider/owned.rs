//! Whose a machine is, by its tags.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use cloud_providers::{
    CreateRequest, Error, ErrorKind, Instance, InstanceId, InstanceState, Owned, Ownership, Resource, Result, Scope, Token,
    tags,
};

use crate::client::{Machine, State, Tags};

/// What a create works with.
pub(super) struct Wanted {
    /// The token as a tag value.
    pub(super) tag: String,
    /// Every tag of the machine.
    pub(super) tags: Tags,
    fingerprint: String,
}

impl Wanted {
    pub(super) fn new(request: &CreateRequest, user_tags: &Tags) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let own = |map: BTreeMap<&'static str, String>| map.into_iter().map(|(key, value)| (key.to_owned(), value));
        let mut all = user_tags.clone();
        all.extend(own(tags::for_request(request, now.as_secs())));
        // Readable copies take any text. Leave them out where the cloud's tags do not.
        all.extend(own(tags::readable_for_request(request)));
        Self { tag: request.token.tag_value(), fingerprint: request.fingerprint(), tags: all }
    }

    /// Checks that `machine` was made for the same token and the same request.
    pub(super) fn adopts(&self, machine: &Machine) -> Result<()> {
        let conflict = |message: &str| {
            Error::new(ErrorKind::Conflict, message).with("instance", &machine.id).with("name", &machine.name)
        };
        if machine.tags.get(tags::TOKEN) != Some(&self.tag) {
            return Err(conflict("the machine is not of this token"));
        }
        if machine.tags.get(tags::REQUEST) != Some(&self.fingerprint) {
            return Err(conflict("the token was used with another request"));
        }
        Ok(())
    }
}

pub(super) fn instance_of(machine: &Machine) -> Instance {
    Instance::new(InstanceId::new(&machine.id), &machine.name, machine.addresses.clone())
}

fn in_scope(machine: &Machine, scope: &Scope) -> bool {
    machine.tags.get(tags::SCOPE) == Some(&tags::encode_value(&scope.to_string()))
}

/// Checks that a machine may be deleted in this name.
pub(super) fn check_ownership(machine: &Machine, ownership: &Ownership) -> Result<()> {
    let why = match ownership {
        Ownership::Tagged(scope) if in_scope(machine, scope) => return Ok(()),
        recorded if recorded.accepts_name(&machine.name) => return Ok(()),
        Ownership::Recorded { .. } | Ownership::RecordedFor { .. } => "its name is not the recorded one",
        _ => "it does not carry the tags of this scope",
    };
    Err(Error::new(ErrorKind::Permission, format!("the instance is not deleted: {why}"))
        .with("instance", &machine.id)
        .with("name", &machine.name))
}

/// Makes one entry for each token.
pub(super) fn entries(machines: &[Machine]) -> Vec<Owned> {
    let mut entries: Vec<Owned> = Vec::new();
    for machine in machines {
        let tag = |key: &str| machine.tags.get(key).cloned();
        let token_tag = tag(tags::TOKEN).unwrap_or_default();
        let at = entries.iter().position(|entry| entry.token_tag == token_tag).unwrap_or_else(|| {
            entries.push(Owned::new(&token_tag));
            entries.len() - 1
        });
        let entry = &mut entries[at];
        entry.resources.push(Resource::new(Resource::INSTANCE, &machine.id));
        if entry.token.is_none() {
            // The readable copy is believed when its hash is the tag.
            let token = tag(tags::TOKEN_TEXT).and_then(|text| text.parse::<Token>().ok());
            entry.token = token.filter(|token| token.tag_value() == token_tag);
        }
        entry.holder = entry.holder.take().or_else(|| tag(tags::HOLDER));
        let created = tag(tags::CREATED).and_then(|text| text.parse().ok());
        entry.created_unix = [entry.created_unix, created].into_iter().flatten().min();
        entry.protected |= tags::protects(tag(tags::PROTECT).as_deref());
        entry.instance = Some(instance_of(machine));
        entry.state = match machine.state {
            State::Starting => InstanceState::Pending,
            State::Running => InstanceState::Running,
            State::Stopped => InstanceState::Stopped,
            State::Going => InstanceState::Stopping,
        };
    }
    entries
}

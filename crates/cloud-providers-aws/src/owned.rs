//! What belongs to whom: tags, adoption, ownership, entries of lists.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use cloud_providers::{
    CreateRequest, Error, ErrorKind, Instance, InstanceId, InstanceState, Owned, Ownership, Resource, Result,
    Scope, Token, tags,
};

use crate::client::{self, State, Tags};

/// The name of a resource, as every tool shows it.
pub(crate) const NAME_TAG: &str = "Name";
/// Which call of a create made it, so that an undo never takes what another call made.
pub(crate) const CALL: &str = "peerpod-call";
/// The instance that a part was made for, so that a part is found when the instance is gone.
pub(crate) const INSTANCE_OF: &str = "peerpod-instance";
/// Which part of the instance it is.
pub(crate) const PART: &str = "peerpod-part";
/// On an instance: more parts are made once it runs. Without it a deletion need not look for any.
pub(crate) const PARTS: &str = "peerpod-parts";

/// Kind of an interface in records.
pub(crate) const INTERFACE: &str = "network_interface";
/// Kind of an Elastic IP in records.
pub(crate) const ADDRESS: &str = "address";
/// Kind of a volume in records.
pub(crate) const VOLUME: &str = "volume";

/// The most characters of a value that EC2 takes.
const VALUE_MAX: usize = 256;

/// What carries the request's token must look like this.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) token: Token,
    pub(crate) name: String,
    fingerprint: String,
    /// Tags of everything that this call makes, without name and part.
    base: Tags,
    /// The value of [`CALL`].
    pub(crate) call: String,
}

impl Wanted {
    pub(crate) fn new(request: &CreateRequest, user_tags: &Tags, name: String) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let call = uuid::Uuid::new_v4().simple().to_string();
        let mut base = user_tags.clone();
        let own = |(key, value): (&str, String)| (key.to_owned(), value);
        // Readable copies are for people: what EC2's alphabet cannot hold is left out.
        let readable = tags::readable_for_request(request).into_iter().filter(|(_, v)| is_allowed(v));
        base.extend(readable.map(own));
        base.extend(tags::for_request(request, now).into_iter().map(own));
        base.insert(CALL.into(), call.clone());
        Self { token: request.token.clone(), name, fingerprint: request.fingerprint(), base, call }
    }

    /// Returns the tags of an instance and what comes with it.
    pub(crate) fn instance_tags(&self, more_parts: bool) -> Tags {
        let mut tags = self.base.clone();
        tags.insert(NAME_TAG.into(), self.name.clone());
        if more_parts {
            tags.insert(PARTS.into(), "later".into());
        }
        tags
    }

    /// Returns the tags of a part that is made later. Its name is that of the existing programs.
    pub(crate) fn part_tags(&self, part: &str, word: &str, instance: &str) -> Tags {
        let mut tags = self.base.clone();
        tags.insert(NAME_TAG.into(), format!("{word}-{instance}"));
        tags.insert(INSTANCE_OF.into(), instance.to_owned());
        tags.insert(PART.into(), part.to_owned());
        tags
    }

    /// Refuses what carries the token and was made for another request.
    pub(crate) fn check(&self, found: &Tags, id: &str) -> Result<()> {
        let full = found.get(tags::TOKEN_TEXT).is_none_or(|text| *text == self.token.to_string());
        let hashed = found.get(tags::TOKEN).is_some_and(|tag| *tag == self.token.tag_value());
        if full && hashed && found.get(tags::REQUEST) == Some(&self.fingerprint) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "the token was used with another request")
            .with("token", &self.token)
            .with("instance", id))
    }

    /// Returns the instance of this token that is not going, after a look whether all are of the same request.
    pub(crate) fn adoptable(&self, found: Vec<client::Instance>) -> Result<Option<client::Instance>> {
        found.iter().try_for_each(|i| self.check(&i.tags, &i.id))?;
        Ok(found.into_iter().find(|i| !i.state.is_going()))
    }

    /// Returns whether this call made it.
    pub(crate) fn is_of_this_call(&self, found: &Tags) -> bool {
        found.get(CALL) == Some(&self.call)
    }
}

fn is_allowed(value: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c);
    !value.is_empty() && value.chars().count() <= VALUE_MAX && value.chars().all(allowed)
}

/// Returns the tag value of a scope.
pub(crate) fn scope_tag(scope: &Scope) -> String {
    tags::encode_value(&scope.to_string())
}

/// Refuses to touch an instance that is not the caller's.
pub(crate) fn check_ownership(found: &client::Instance, ownership: &Ownership) -> Result<()> {
    let name = found.tags.get(NAME_TAG).map(String::as_str).unwrap_or_default();
    let tagged = found.tags.contains_key(tags::TOKEN);
    let refused = |why: &str| {
        Err(Error::new(ErrorKind::Permission, format!("the instance is not deleted: {why}"))
            .with("instance", &found.id)
            .with("name", name))
    };
    match ownership {
        Ownership::Tagged(scope) if found.tags.get(tags::SCOPE) == Some(&scope_tag(scope)) && tagged => {
            Ok(())
        }
        Ownership::Tagged(_) => refused("it does not carry the tags of this scope"),
        recorded if recorded.accepts_name(name) => Ok(()),
        Ownership::Recorded { .. } => refused("its name is not the recorded one"),
        Ownership::RecordedFor { .. } => refused("its name is none that is generated for the recorded pod"),
        _ => refused("the proof of ownership is of a kind unknown here"),
    }
}

/// Returns whether a part found by the instance's id may go with it.
pub(crate) fn is_own_part(found: &Tags, instance: &str, ownership: &Ownership) -> bool {
    let ours = found.get(INSTANCE_OF).is_some_and(|of| of == instance) && found.contains_key(tags::TOKEN);
    match ownership {
        Ownership::Tagged(scope) => ours && found.get(tags::SCOPE) == Some(&scope_tag(scope)),
        // The existing programs tag parts with nothing but such a name.
        Ownership::Recorded { .. } | Ownership::RecordedFor { .. } => {
            let name = found.get(NAME_TAG).map(String::as_str).unwrap_or_default();
            ours || [format!("nic-{instance}"), format!("eip-{instance}")].iter().any(|n| n == name)
        }
        _ => false,
    }
}

/// Returns the instance as the contract describes it.
pub(crate) fn instance_of(found: &client::Instance, addresses: Vec<IpAddr>) -> Instance {
    let name = found.tags.get(NAME_TAG).cloned().unwrap_or_default();
    let instance = Instance::new(InstanceId::new(&found.id), name, addresses);
    match found.instance_type.as_str() {
        "" => instance,
        instance_type => instance.with_type(instance_type),
    }
}

/// Returns the addresses of an instance: for each interface the private one, and for the first one the public one where
/// it has one and is wanted.
pub(crate) fn addresses_of(found: &client::Instance, public_first: bool) -> Vec<IpAddr> {
    let mut interfaces: Vec<&client::InstanceInterface> = found.interfaces.iter().collect();
    interfaces.sort_by_key(|i| i.device_index);
    let usable = |address: &&IpAddr| !address.is_unspecified();
    let mut addresses: Vec<IpAddr> =
        interfaces.iter().filter_map(|i| i.private_addresses.iter().find(usable)).copied().collect();
    if public_first && let Some(public) = interfaces.first().and_then(|i| i.public_address) {
        match addresses.first_mut() {
            Some(first) => *first = public,
            None => addresses.push(public),
        }
    }
    addresses
}

/// Returns what a machine is doing, in the words of the contract.
pub(crate) fn state_of(state: State) -> InstanceState {
    match state {
        State::Pending => InstanceState::Pending,
        State::Running => InstanceState::Running,
        State::Stopping | State::ShuttingDown => InstanceState::Stopping,
        State::Stopped => InstanceState::Stopped,
        State::Terminated => InstanceState::Terminated,
        State::Unknown => InstanceState::Unknown,
    }
}

/// Collects everything that is found, one entry for each token.
#[derive(Debug, Default)]
pub(crate) struct Entries(BTreeMap<String, Owned>);

impl Entries {
    /// Adds a resource by its tags; one without our token is nobody's business.
    pub(crate) fn add(&mut self, resource: Resource, found: &Tags) -> Option<&mut Owned> {
        let token_tag = found.get(tags::TOKEN)?;
        let entry = self.0.entry(token_tag.clone()).or_insert_with(|| Owned::new(token_tag));
        if entry.token.is_none() {
            let text = found.get(tags::TOKEN_TEXT).and_then(|text| text.parse::<Token>().ok());
            entry.token = text.filter(|token| token.tag_value() == *token_tag);
        }
        entry.holder = entry.holder.take().or_else(|| {
            let readable = found
                .get(tags::HOLDER_TEXT)
                .filter(|text| found.get(tags::HOLDER).is_some_and(|tag| tags::encode_value(text) == *tag));
            readable.or_else(|| found.get(tags::HOLDER)).cloned()
        });
        let created = found.get(tags::CREATED).and_then(|text| text.parse().ok());
        entry.created_unix = [entry.created_unix, created].into_iter().flatten().min();
        entry.protected |= tags::protects(found.get(tags::PROTECT).map(String::as_str));
        if !entry.resources.contains(&resource) {
            entry.resources.push(resource);
        }
        Some(entry)
    }

    /// Adds an instance.
    pub(crate) fn add_instance(&mut self, found: &client::Instance) {
        let Some(entry) = self.add(Resource::new(Resource::INSTANCE, &found.id), &found.tags) else { return };
        let going =
            |state: InstanceState| matches!(state, InstanceState::Stopping | InstanceState::Terminated);
        let state = state_of(found.state);
        // Of two instances of one token the one that lives is shown: nobody ends a pod on the word of the other.
        if entry.instance.is_none() || (going(entry.state) && !going(state)) {
            entry.instance = Some(instance_of(found, addresses_of(found, true)));
            entry.state = state;
        }
        entry.created_unix = entry.created_unix.or(found.launched_unix);
    }

    pub(crate) fn into_vec(self) -> Vec<Owned> {
        self.0.into_values().collect()
    }
}

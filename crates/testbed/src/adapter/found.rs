//! What the provider has of an experiment.

use std::{collections::BTreeMap, time::Duration};

use cloud_providers::{
    Error, ErrorKind, Instance, InstanceState, OpContext, Owned, OwnedList, Ownership, Provider, Result,
    Scope, Token, tags,
};

use super::kept::Kept;

/// Attempts for which a bare hash is compared.
const ATTEMPTS: u32 = 64;
/// How often an incomplete list is asked for again.
const TRIES: u32 = 5;

/// One token of the experiment that has something.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The machine's name and attempt; `None` when the token is not one of a known machine.
    pub(super) token: Option<Token>,
    pub(super) instance: Option<Instance>,
    pub(super) state: InstanceState,
    pub(super) owned: Owned,
}

impl Entry {
    /// Whether a machine is there that one can use.
    pub(super) fn runs(&self) -> bool {
        use InstanceState::{Pending, Running, Unknown};
        self.instance.is_some() && matches!(self.state, Pending | Running | Unknown | InstanceState::Paused)
    }

    /// Whether the provider only remembers it.
    pub(super) fn is_gone(&self) -> bool {
        self.state == InstanceState::Terminated && self.owned.resources.len() <= 1
    }

    /// Returns a name for messages.
    pub(super) fn name(&self) -> String {
        match (&self.token, &self.instance) {
            (Some(token), _) => token.unit.clone(),
            (None, Some(instance)) => instance.id.to_string(),
            (None, None) => self.owned.token_tag.clone(),
        }
    }
}

/// Asks for everything of the experiment.
///
/// # Errors
///
/// The provider's own; [`ErrorKind::Transient`] when the list stays incomplete: nothing is made or deleted on the word
/// of such a list.
pub(super) async fn list(
    provider: &dyn Provider,
    op: &OpContext,
    scope: &Scope,
    pause: Duration,
    kept: &BTreeMap<String, Kept>,
    machines: &[&str],
) -> Result<Vec<Entry>> {
    let mut last = None;
    for n in 0..TRIES {
        if n > 0 {
            op.sleep(pause).await?;
        }
        let list: OwnedList = provider.list_owned(op, scope).await?;
        let complete = list.complete;
        let entries = list.entries.into_iter().map(|owned| entry(owned, scope, kept, machines)).collect();
        if complete {
            return Ok(entries);
        }
        last = Some(entries);
    }
    let seen = last.map_or(0, |entries: Vec<Entry>| entries.len());
    Err(Error::new(
        ErrorKind::Transient,
        "the provider cannot say for certain what is there of the experiment",
    )
    .with("scope", scope)
    .with("entries seen", seen))
}

/// Refuses what belongs to somebody else: two people may have given their experiments the same name.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] with the holder that the provider shows.
pub(super) fn ours(entries: &[Entry], holder: &str, experiment: &str) -> Result<()> {
    let encoded = tags::encode_value(holder);
    let foreign = entries.iter().filter(|entry| !entry.is_gone()).find_map(|entry| {
        let shown = entry.owned.holder.as_deref()?;
        (shown != holder && shown != encoded).then_some((shown, entry))
    });
    let Some((shown, entry)) = foreign else { return Ok(()) };
    Err(Error::new(ErrorKind::Conflict, "an experiment of this name has machines of somebody else there")
        .with("experiment", experiment)
        .with("machine", entry.name())
        .with("its holder", shown)
        .with("you are", holder)
        .with("mend", "give the experiment another name; where the machines are yours, name their holder: `holder` in `provider:`"))
}

fn entry(owned: Owned, scope: &Scope, kept: &BTreeMap<String, Kept>, machines: &[&str]) -> Entry {
    let token = owned.token.clone().or_else(|| {
        let names = machines.iter().copied().chain(kept.keys().map(String::as_str));
        names.flat_map(|name| (1..=ATTEMPTS).map(move |attempt| (name, attempt))).find_map(
            |(name, attempt)| {
                let token = Token::new(scope.clone(), name, attempt);
                (token.tag_value() == owned.token_tag).then_some(token)
            },
        )
    });
    Entry { token, instance: owned.instance.clone(), state: owned.state, owned }
}

/// Removes what carries an entry's token.
///
/// # Errors
///
/// The provider's own.
pub(super) async fn remove(
    provider: &dyn Provider,
    op: &OpContext,
    scope: &Scope,
    entry: &Entry,
) -> Result<()> {
    match (&entry.token, &entry.instance) {
        (Some(token), _) if provider.capabilities().release => provider.release(op, token).await,
        (_, Some(instance)) => {
            provider.delete_instance(op, &instance.id, &Ownership::Tagged(scope.clone())).await
        }
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            "the provider shows something without an instance and without its full token, and cannot release it",
        )
        .with("token", &entry.owned.token_tag)
        .with_leftovers(entry.owned.resources.iter().cloned())),
    }
}

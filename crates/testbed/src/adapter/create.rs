//! Gets every machine: finds what is there and makes what is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, Instance, InstanceState, OpContext, Record, Resource,
    Result, Scope, Token,
};
use futures_util::{StreamExt, stream};

use crate::{
    Context, Event, Group, Host, Machine, Network, Obtained, Reservation,
    adapter::{
        CloudTestbed, Failures, Work, all, destroy,
        found::{self, Entry},
        kept::{Keeper, Kept},
        plan::note,
        request, scope,
    },
    userdata::HostKey,
};

/// How often a list is asked for again that does not show what is known to be there.
const LATE_TRIES: u32 = 10;
/// How long giving back may take after a failure.
const UNDO_LIMIT: Duration = Duration::from_secs(300);

/// A machine that is to be made.
struct Order<'a> {
    machine: &'a Machine,
    request: CreateRequest,
    host_key: String,
}

/// A machine that is there.
struct Got {
    instance: Instance,
    host_key: Option<String>,
}

pub(super) async fn init(
    testbed: &CloudTestbed,
    ctx: &Context,
    reservation: &Reservation,
) -> Result<Obtained> {
    let can = testbed.can();
    ctx.op.check()?;
    request::check(&testbed.name, &can, reservation)?;
    if let Some(local) = &testbed.local {
        local.check_key(reservation)?;
    }
    let keeper = Arc::new(Keeper::new(ctx)?);
    let (mut got, attempts) = find(testbed, ctx, reservation, &can, &keeper).await?;
    let found: BTreeSet<String> = got.keys().cloned().collect();

    let mut orders = Vec::new();
    for machine in reservation.machines.iter().filter(|m| !found.contains(&m.name)) {
        let key = HostKey::generate()?;
        let attempt = attempts.get(&machine.name).copied().unwrap_or_default() + 1;
        let request = request::request(reservation, machine, attempt, &key, &testbed.holder, &can)?;
        orders.push(Order { machine, request, host_key: key.public().to_owned() });
    }
    // All in one go, before the first call: a cloud may answer a token of before with the machine that is gone.
    keeper
        .change(|kept| {
            for order in &orders {
                let fresh = Kept {
                    attempt: order.request.token.attempt,
                    host_key: Some(order.host_key.clone()),
                    ..Kept::default()
                };
                kept.insert(order.machine.name.clone(), fresh);
            }
        })
        .await?;

    let (made, mut failures) = make(testbed, ctx, &can, &keeper, &orders).await;
    let made_names: BTreeSet<String> = made.keys().cloned().collect();
    got.extend(made);
    let noted = keeper
        .change(|kept| {
            for name in &made_names {
                kept.entry(name.clone()).or_default().made = true;
            }
            // The provider undid what it had made of them, and a list that lags behind may show it still.
            for name in failures.keys() {
                kept.entry(name.clone()).or_default().leaving = true;
            }
        })
        .await;
    let failed = noted.err().or_else(|| worst(ctx, &mut failures));
    let result = match failed {
        Some(error) => Err(error),
        None => obtained(testbed, ctx, reservation, &got, &made_names, &failures).await,
    };
    match result {
        Ok(obtained) => Ok(obtained),
        Err(error) => Err(undo(testbed, ctx, &keeper, &reservation.experiment, &made_names, error).await),
    }
}

/// Looks for what is there, removes remains, and says which attempts are used up.
async fn find(
    testbed: &CloudTestbed,
    ctx: &Context,
    reservation: &Reservation,
    can: &Capabilities,
    keeper: &Arc<Keeper>,
) -> Result<(BTreeMap<String, Got>, BTreeMap<String, u32>)> {
    let kept = keeper.all().await;
    let mut attempts: BTreeMap<String, u32> =
        kept.iter().map(|(name, kept)| (name.clone(), kept.attempt)).collect();
    let mut got = BTreeMap::new();
    let mut remains: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    if !can.list_owned {
        // Nobody can be asked, so what was kept is believed.
        for machine in &reservation.machines {
            let Some(kept) = kept.get(&machine.name).filter(|k| !k.gone) else { continue };
            match &kept.instance {
                Some(instance) if !ctx.force && kept.is_usable() => {
                    ctx.tell(&machine.name, Event::Found);
                    let host_key = kept.host_key.clone();
                    got.insert(machine.name.clone(), Got { instance: instance.clone(), host_key });
                }
                _ => destroy::kept(testbed, &ctx.op, &reservation.experiment, &machine.name, kept).await?,
            }
        }
        return Ok((got, attempts));
    }

    let scope = scope(&reservation.experiment);
    let names: Vec<&str> = reservation.machines.iter().map(|m| m.name.as_str()).collect();
    let entries = shown(testbed, ctx, &scope, &kept, &names).await?;
    found::ours(&entries, &testbed.holder, &reservation.experiment)?;
    let mut stopped = Vec::new();
    for name in &names {
        let of = |entry: &&Entry| entry.token.as_ref().is_some_and(|t| t.unit == **name);
        let attempt = |entry: &Entry| entry.token.as_ref().map_or(0, |t| t.attempt);
        let mut all: Vec<&Entry> = entries.iter().filter(of).collect();
        all.sort_by_key(|entry| std::cmp::Reverse(attempt(entry)));
        if let Some(most) = all.first().map(|e| attempt(e)) {
            let known = attempts.entry((*name).to_owned()).or_default();
            *known = most.max(*known);
        }
        // The attempt that was kept is the one whose host key is known.
        let known = kept.get(*name);
        let is_known = |entry: &&&Entry| known.is_some_and(|k| k.attempt == attempt(entry));
        let may_be = |entry: &&Entry| entry.runs() && known.is_none_or(|k| k.allows(attempt(entry)));
        let running: Vec<&Entry> = all.iter().copied().filter(may_be).collect();
        let chosen = running.iter().find(is_known).or(running.first()).copied().filter(|_| !ctx.force);
        if let Some(Entry { instance: Some(instance), .. }) = chosen {
            ctx.tell(name, Event::Found);
            let same = known.filter(|k| chosen.is_some_and(|c| k.attempt == attempt(c)));
            let host_key = same.and_then(|k| k.host_key.clone());
            got.insert((*name).to_owned(), Got { instance: instance.clone(), host_key });
        }
        for entry in all {
            let is_chosen = chosen.is_some_and(|c| std::ptr::eq(c, entry));
            // What runs in namespaces of this host is lost when it stops; elsewhere there is a disk.
            if entry.state == InstanceState::Stopped && testbed.local.is_none() && !ctx.force {
                stopped.push(*name);
            } else if !is_chosen && !entry.is_gone() {
                remains.entry((*name).to_owned()).or_default().push(entry.clone());
            }
        }
        // Its creation was begun and the list does not show it: it may be late.
        let unseen = known.filter(|k| !k.gone && k.attempt > 0).map(|k| k.attempt);
        if let Some(unseen) = unseen
            && !entries.iter().filter(of).any(|e| attempt(e) == unseen)
            && can.release
        {
            let token = Token::new(scope.clone(), *name, unseen);
            let mut entry = Entry {
                token: Some(token.clone()),
                instance: None,
                state: InstanceState::Unknown,
                owned: cloud_providers::Owned::new(token.tag_value()),
            };
            entry.owned.token = Some(token);
            remains.entry((*name).to_owned()).or_default().push(entry);
        }
    }
    if !stopped.is_empty() {
        return Err(Error::new(ErrorKind::Conflict, "machines of the experiment are switched off")
            .with("machines", request::several(&stopped))
            .with(
                "mend",
                "start them with the provider's own means, or have them made anew with --force-deploy",
            ));
    }
    let leaving: Vec<Token> = remains
        .iter()
        .filter(|(name, _)| !got.contains_key(*name))
        .flat_map(|(_, entries)| entries.iter().filter_map(|entry| entry.token.clone()))
        .collect();
    keeper.leaving(&leaving).await?;
    let mut works: Vec<Work<'_, Result<()>>> = Vec::new();
    for (name, entries) in &remains {
        for entry in entries {
            let scope = &scope;
            works.push(Box::pin(async move {
                note(ctx, name, "removing what an earlier attempt left");
                found::remove(&*testbed.provider, &ctx.op, scope, entry).await
            }));
        }
    }
    let gone = all(testbed.parallel, works).await;
    gone.into_iter().collect::<Result<()>>()?;
    Ok((got, attempts))
}

/// Lists what is there, again where machines that came to be are not shown: the list may be late.
async fn shown(
    testbed: &CloudTestbed,
    ctx: &Context,
    scope: &Scope,
    kept: &BTreeMap<String, Kept>,
    names: &[&str],
) -> Result<Vec<Entry>> {
    let mut tries = 0;
    loop {
        let entries = found::list(&*testbed.provider, &ctx.op, scope, testbed.pause, kept, names).await?;
        let is_shown = |name: &str, attempt: u32| {
            entries.iter().any(|e| e.token.as_ref().is_some_and(|t| t.unit == name && t.attempt >= attempt))
        };
        let made = |name: &str| kept.get(name).filter(|k| k.made && k.is_usable());
        let late = names.iter().any(|name| made(name).is_some_and(|k| !is_shown(name, k.attempt)));
        tries += 1;
        if !late || tries >= LATE_TRIES {
            return Ok(entries);
        }
        ctx.op.sleep(testbed.pause).await?;
    }
}

/// Makes the machines, so many at a time. The first failure that is no shortage cancels the others.
async fn make(
    testbed: &CloudTestbed,
    ctx: &Context,
    can: &Capabilities,
    keeper: &Arc<Keeper>,
    orders: &[Order<'_>],
) -> (BTreeMap<String, Got>, Failures) {
    let cancel = ctx.op.cancel.child_token();
    let mut made = BTreeMap::new();
    let mut failures = Failures::new();
    let mut works: Vec<Work<'_, (&Order<'_>, Result<Instance>)>> = Vec::new();
    for order in orders {
        let op = ctx.op.clone().with_cancel(cancel.clone());
        works.push(Box::pin(async move { (order, one(testbed, ctx, &op, can, keeper, order).await) }));
    }
    let mut results = stream::iter(works).buffer_unordered(testbed.parallel);
    while let Some((order, result)) = results.next().await {
        let name = order.machine.name.clone();
        match result {
            Ok(instance) => {
                made.insert(name, Got { instance, host_key: Some(order.host_key.clone()) });
            }
            Err(error) => {
                if !is_shortage(&error) {
                    cancel.cancel();
                }
                ctx.tell(&name, Event::Failed { error: error.report() });
                failures.insert(name, error);
            }
        }
    }
    (made, failures)
}

async fn one(
    testbed: &CloudTestbed,
    ctx: &Context,
    op: &OpContext,
    can: &Capabilities,
    keeper: &Arc<Keeper>,
    order: &Order<'_>,
) -> Result<Instance> {
    op.check()?;
    let name = &order.machine.name;
    ctx.tell(name, Event::Creating);
    let by_token = can.list_owned || can.release;
    let instance = if by_token {
        testbed.provider.create_instance(op, &order.request).await?
    } else {
        // The id is the only way back to it.
        let begun = Begun { inner: op.record.clone(), keeper: keeper.clone(), name: name.clone() };
        let op = op.clone().with_record(Arc::new(begun));
        testbed.provider.create_instance(&op, &order.request).await?
    };
    if !can.list_owned {
        let instance = instance.clone();
        keeper.change(|all| all.entry(name.clone()).or_default().instance = Some(instance)).await?;
    }
    let address = instance.addresses.first().map(ToString::to_string).unwrap_or_default();
    ctx.tell(name, Event::Created { address });
    Ok(instance)
}

/// Keeps the id of an instance as soon as it is known.
struct Begun {
    inner: Arc<dyn Record>,
    keeper: Arc<Keeper>,
    name: String,
}

#[async_trait]
impl Record for Begun {
    async fn record(&self, resource: &Resource) -> Result<()> {
        if resource.kind == Resource::INSTANCE {
            let id = Some(resource.id.clone());
            self.keeper.change(|all| all.entry(self.name.clone()).or_default().begun = id).await?;
        }
        self.inner.record(resource).await
    }
}

/// Whether another moment, or more money, would have helped.
fn is_shortage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Capacity { .. } | ErrorKind::Quota)
}

/// Returns the error that ends the call, if there is one.
fn worst(ctx: &Context, failures: &mut Failures) -> Option<Error> {
    if let Err(error) = ctx.op.check() {
        return Some(error);
    }
    let fatal: Vec<String> =
        failures.iter().filter(|(_, error)| !is_shortage(error)).map(|(name, _)| name.clone()).collect();
    // The others were cancelled because of the first.
    let is_cause =
        |name: &&String| failures.get(*name).is_some_and(|error| *error.kind() != ErrorKind::Cancelled);
    let name = fatal.iter().find(is_cause).or(fatal.first())?.clone();
    let error = failures.remove(&name)?;
    let left: Vec<Resource> = failures.values().flat_map(|e| e.leftovers().to_vec()).collect();
    Some(error.with("machine", name).with_leftovers(left))
}

/// Puts together what is there, or says that a group has too few.
async fn obtained(
    testbed: &CloudTestbed,
    ctx: &Context,
    reservation: &Reservation,
    got: &BTreeMap<String, Got>,
    made: &BTreeSet<String>,
    failures: &Failures,
) -> Result<Obtained> {
    shortage(reservation, got, failures)?;
    let mut obtained = Obtained::default();
    obtained.made.clone_from(made);
    let mut works: Vec<Work<'_, Result<Host>>> = Vec::new();
    for machine in &reservation.machines {
        if let Some(got) = got.get(&machine.name) {
            works.push(Box::pin(host(testbed, ctx, reservation, machine, got)));
        }
    }
    obtained.hosts = all(testbed.parallel, works).await.into_iter().collect::<Result<_>>()?;
    obtained.missing = failures.iter().map(|(name, error)| (name.clone(), error.report())).collect();
    obtained.networks = match &testbed.local {
        Some(local) => local.networks(reservation)?,
        None => networks(reservation),
    };
    Ok(obtained)
}

/// Refuses a group with fewer machines than it must have.
fn shortage(reservation: &Reservation, got: &BTreeMap<String, Got>, failures: &Failures) -> Result<()> {
    let of = |index: usize| reservation.machines.iter().filter(move |m| m.group == index);
    let too_few = |(index, group): (usize, &Group)| {
        let there = of(index).filter(|m| got.contains_key(&m.name)).count();
        (there < group.least(reservation.shortage)).then(|| {
            let least = group.least(reservation.shortage);
            format!("{} has {there} of {} machines and needs {least}", group.name, group.count)
        })
    };
    let problems: Vec<String> = reservation.groups.iter().enumerate().filter_map(too_few).collect();
    let Some(first) = failures.values().next() else { return Ok(()) };
    match Error::all(first.kind().clone(), problems) {
        Some(error) => Err(error.with_source(first.clone())),
        None => Ok(()),
    }
}

async fn host(
    testbed: &CloudTestbed,
    ctx: &Context,
    reservation: &Reservation,
    machine: &Machine,
    got: &Got,
) -> Result<Host> {
    let address = got.instance.addresses.first().ok_or_else(|| {
        Error::internal("the provider gave no address of a machine")
            .with("machine", &machine.name)
            .with("instance", &got.instance.id)
    })?;
    let mut host = Host::new(&machine.name, address.to_string(), got.instance.id.as_str());
    host.user = Some(request::user(reservation, machine).to_owned());
    host.key.clone_from(&reservation.access.private_key);
    host.host_key.clone_from(&got.host_key);
    host.roles = machine.roles.iter().cloned().collect();
    host.addresses.clone_from(&got.instance.addresses);
    host.provider.clone_from(&testbed.name);
    host.extra.clone_from(&machine.extra);
    if let Some(local) = &testbed.local {
        host.proxy_command = local.proxy_command(&ctx.op, *address, host.id.as_str()).await?;
    }
    Ok(host)
}

/// Returns the networks as the document describes them.
pub(super) fn networks(reservation: &Reservation) -> Vec<Network> {
    reservation.networks.iter().map(Network::of).collect()
}

/// Gives back what this call made, and adds to the error what is still there.
async fn undo(
    testbed: &CloudTestbed,
    ctx: &Context,
    keeper: &Keeper,
    experiment: &str,
    made: &BTreeSet<String>,
    error: Error,
) -> Error {
    if made.is_empty() {
        return error;
    }
    let mut own = ctx.clone();
    own.op = ctx.op.for_undo(UNDO_LIMIT);
    match destroy::rounds(testbed, &own, keeper, experiment, Some(made)).await {
        Ok(()) => error,
        Err(undo) => {
            tracing::error!(provider = testbed.name, error = undo.report(), "giving back failed");
            error.with("giving back failed", &undo).with_leftovers(undo.leftovers().to_vec())
        }
    }
}

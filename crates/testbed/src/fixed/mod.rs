//! The testbed `static`: hosts that exist already.
//!
//! It makes nothing and deletes nothing. `init` looks whether each host answers, and whether two of them are one.

mod reach;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use async_trait::async_trait;
use cloud_providers::{Error, ErrorKind, Result};
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::{
    Context, Environment, Event, Features, Host, Key, KeyKind, Machine, MachineStatus, Network, Obtained,
    Plan, ProviderConfig, Reservation, StaticHost, Testbed,
};

const KEYS: &[Key] = &[
    Key::new("timeout", KeyKind::Duration, "How long a host may take to answer as an SSH server")
        .default("10s"),
    Key::list(
        "eths",
        "Names of the hosts' interfaces, that of the management network first; variable eths of the inventory",
    ),
];

/// How many hosts are asked at a time.
const PARALLEL: usize = 64;

crate::register_testbed! {
    name: "static",
    aliases: &[],
    summary: "hosts that exist already; makes nothing and deletes nothing",
    keys: KEYS,
    new: |config| Box::pin(async move { Ok(std::sync::Arc::new(Static::new(config)?) as _) }),
}

/// Hosts that exist already.
#[derive(Clone, Debug)]
struct Static {
    timeout: Duration,
    eths: Vec<Value>,
}

impl Static {
    fn new(config: &ProviderConfig) -> Result<Self> {
        let timeout = config.duration("timeout").unwrap_or(Duration::from_secs(10));
        if timeout.is_zero() {
            return Err(Error::config("a host needs some time to answer").with("set", "provider: timeout"));
        }
        Ok(Self { timeout, eths: config.list("eths").into_iter().map(Value::from).collect() })
    }

    /// Asks every machine whether it answers.
    async fn ask(
        &self,
        ctx: &Context,
        machines: &[(&Machine, &StaticHost)],
    ) -> Result<Vec<Result<SocketAddr>>> {
        let places: Vec<_> =
            machines.iter().map(|(machine, host)| (machine.name.clone(), through(machine, host))).collect();
        let asked = places.into_iter().map(|(name, place)| async move {
            let answer = reach::ssh(&place, self.timeout).await;
            match &answer {
                Ok(_) => ctx.tell(&name, Event::Found),
                Err(error) => ctx.tell(&name, Event::Failed { error: error.report() }),
            }
            answer
        });
        let all = stream::iter(asked).buffered(PARALLEL).collect::<Vec<_>>();
        ctx.op.run(async { Ok(all.await) }).await
    }

    fn host(&self, reservation: &Reservation, machine: &Machine, at: &StaticHost, seen: SocketAddr) -> Host {
        let port = at.port.unwrap_or(22);
        let mut host = Host::new(&machine.name, &at.address, format!("{}:{port}", at.address));
        host.port = port;
        host.user = machine.user.clone().or_else(|| reservation.access.user.clone());
        host.key.clone_from(&at.key);
        host.roles = machine.roles.iter().cloned().collect();
        // What answers through a gateway is the gateway.
        if gateway(machine).is_none() {
            host.addresses = vec![seen.ip()];
        }
        host.extra = machine.extra.clone();
        if !self.eths.is_empty() {
            host.extra.entry("eths".into()).or_insert_with(|| self.eths.clone().into());
        }
        host
    }
}

#[async_trait]
impl Testbed for Static {
    fn features(&self) -> Features {
        // Nothing is ever made, so nothing can be left.
        Features { status: true, proves_empty: true, pools: false, makes_machines: false }
    }

    async fn init(&self, ctx: &Context, reservation: &Reservation) -> Result<Obtained> {
        let machines = hosts(reservation)?;
        let mut obtained = Obtained::default();
        let mut seen: BTreeMap<SocketAddr, &str> = BTreeMap::new();
        let mut same = Vec::new();
        let answers = self.ask(ctx, &machines).await?;
        for ((machine, at), answer) in machines.iter().zip(answers) {
            let address = match answer {
                Ok(address) => address,
                Err(error) => {
                    obtained.missing.insert(machine.name.clone(), error.report());
                    continue;
                }
            };
            if gateway(machine).is_none()
                && let Some(first) = seen.insert(address, &machine.name)
            {
                same.push(format!("`{first}` and `{}` are both {address}", machine.name));
            }
            obtained.hosts.push(self.host(reservation, machine, at, address));
        }
        if let Some(error) = Error::all(ErrorKind::Config, same) {
            return Err(error.with("mend", "name each host once, with all its roles"));
        }
        obtained.networks = reservation.networks.iter().map(Network::of).collect();
        if let Some(note) = no_pool(reservation) {
            ctx.tell("", Event::Note { text: note.into() });
        }
        Ok(obtained)
    }

    async fn destroy(&self, ctx: &Context, _: &Environment) -> Result<()> {
        let text = "the hosts existed before and stay as they are".into();
        ctx.tell("", Event::Note { text });
        Ok(())
    }

    async fn give_back(&self, _: &Context, _: &Environment, _: &BTreeSet<String>) -> Result<()> {
        Ok(())
    }

    async fn plan(&self, _: &Context, reservation: &Reservation) -> Result<Plan> {
        let machines = hosts(reservation)?;
        let mut plan = Plan::of(reservation);
        for (planned, (_, at)) in plan.machines.iter_mut().zip(machines) {
            planned.what = format!("{}:{}", at.address, at.port.unwrap_or(22));
        }
        plan.notes.extend(no_pool(reservation).map(str::to_owned));
        Ok(plan)
    }

    async fn status(&self, ctx: &Context, environment: &Environment) -> Result<Vec<MachineStatus>> {
        let mut all = Vec::new();
        for reservation in &environment.reservations {
            let is_own = reservation.provider.kind.eq_ignore_ascii_case("static");
            let machines = if is_own { hosts(reservation)? } else { continue };
            let answers = self.ask(ctx, &machines).await?;
            for ((machine, at), answer) in machines.iter().zip(answers) {
                let state = if answer.is_ok() { "running" } else { "unknown" };
                let id = format!("{}:{}", at.address, at.port.unwrap_or(22));
                let mut status = MachineStatus::new(&machine.name, id, state);
                status.addresses = answer.iter().map(SocketAddr::ip).collect();
                all.push(status);
            }
        }
        Ok(all)
    }
}

/// Returns the machines with their hosts.
fn hosts(reservation: &Reservation) -> Result<Vec<(&Machine, &StaticHost)>> {
    let mut problems = Vec::new();
    let mut hosts = Vec::new();
    for machine in &reservation.machines {
        let Some(host) = &machine.host else {
            problems
                .push(format!("`{}` has no address: write role and hosts under `resources`", machine.name));
            continue;
        };
        // What `~` is, `ssh` knows.
        if let Some(key) = host.key.as_deref().filter(|key| !key.starts_with("~") && !key.is_file()) {
            problems.push(format!("the key of `{}` is no file: {}", machine.name, key.display()));
        }
        hosts.push((machine, host));
    }
    match Error::all(ErrorKind::Config, problems) {
        Some(error) => Err(error),
        None => Ok(hosts),
    }
}

/// Returns the host to go through, as inventories have it.
fn gateway(machine: &Machine) -> Option<&str> {
    machine.extra.get("gateway").and_then(Value::as_str).filter(|gateway| !gateway.is_empty())
}

/// Returns what can be asked from here: the host, or the gateway that alone reaches it.
fn through(machine: &Machine, host: &StaticHost) -> (String, u16) {
    let Some(gateway) = gateway(machine) else { return (host.address.clone(), host.port.unwrap_or(22)) };
    let place = gateway.rsplit_once('@').map_or(gateway, |(_, place)| place);
    match place.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => {
            (name.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(22))
        }
        _ => (place.to_owned(), 22),
    }
}

fn no_pool(reservation: &Reservation) -> Option<&'static str> {
    let has = reservation.networks.iter().any(|n| n.start.is_some() || !n.extra_ips.is_empty());
    let none = "there are no free addresses to take: `networks` of the document names none with start and end, or extra_ips";
    (!has).then_some(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_asked_in_place_of_the_host_behind_it() {
        let host = StaticHost::new("10.9.9.9");
        let mut machine = Machine::new("a", 0, ["x"]);
        assert_eq!(through(&machine, &host), ("10.9.9.9".into(), 22));
        for (written, place, port) in [
            ("jump.example", "jump.example", 22),
            ("me@jump.example:2222", "jump.example", 2222),
            ("[2001:db8::1]:2222", "2001:db8::1", 2222),
            ("2001:db8::1", "2001:db8::1", 22),
        ] {
            machine.extra.insert("gateway".into(), written.into());
            assert_eq!(through(&machine, &host), (place.into(), port), "{written}");
        }
    }
}

//! A testbed in memory that does what a test says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use testbed::{
    Context, Environment, Error, ErrorKind, Group, Host, Machine, MachineStatus, Obtained, Plan,
    ProviderConfig, Reservation, Result, Testbed, async_trait,
};
use tokio::sync::Semaphore;

/// What a double does beside the usual.
#[derive(Debug, Default)]
pub(crate) struct Act {
    /// `init` fails with this.
    pub(crate) refuse: Option<Error>,
    /// `destroy` and `give_back` fail with this.
    pub(crate) stay: Option<Error>,
    /// These are missing.
    pub(crate) missing: BTreeMap<String, String>,
    /// Changes what comes back.
    pub(crate) change: Option<fn(&mut Obtained)>,
    /// `init` waits for a permit, or until it is cancelled.
    pub(crate) gate: Option<Arc<Semaphore>>,
    /// Single machines cannot be given back.
    pub(crate) whole: bool,
}

/// Machines in memory.
#[derive(Debug)]
pub(crate) struct Double {
    pub(crate) act: Act,
    pub(crate) there: Mutex<BTreeSet<String>>,
    pub(crate) calls: Mutex<Vec<&'static str>>,
}

impl Double {
    pub(crate) fn new(act: Act) -> Arc<Self> {
        Arc::new(Self { act, there: Mutex::default(), calls: Mutex::default() })
    }

    /// One that has these machines already.
    pub(crate) fn with(act: Act, there: &[&str]) -> Arc<Self> {
        let double = Self::new(act);
        double.there.lock().unwrap().extend(there.iter().map(|name| (*name).to_owned()));
        double
    }

    pub(crate) fn there(&self) -> Vec<String> {
        self.there.lock().unwrap().iter().cloned().collect()
    }

    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    fn called(&self, name: &'static str) {
        self.calls.lock().unwrap().push(name);
    }
}

#[async_trait]
impl Testbed for Double {
    async fn init(&self, ctx: &Context, reservation: &Reservation) -> Result<Obtained> {
        self.called("init");
        if let Some(gate) = &self.act.gate {
            ctx.op
                .run(async { gate.acquire().await.map(drop).map_err(|_| Error::internal("closed")) })
                .await?;
        }
        if let Some(error) = &self.act.refuse {
            return Err(error.clone());
        }
        let mut got = Obtained::default();
        got.missing = self.act.missing.clone();
        for machine in reservation.machines.iter().filter(|m| !self.act.missing.contains_key(&m.name)) {
            if self.there.lock().unwrap().insert(machine.name.clone()) {
                got.made.insert(machine.name.clone());
            }
            let address = format!("{}.{}", machine.name, reservation.provider.name);
            got.hosts.push(Host::new(&machine.name, address, &machine.name));
        }
        if let Some(change) = self.act.change {
            change(&mut got);
        }
        Ok(got)
    }

    async fn destroy(&self, _: &Context, environment: &Environment) -> Result<()> {
        self.called("destroy");
        assert_eq!(environment.reservations.len(), 1, "it sees its own part");
        let own = &environment.reservations[0].provider.name;
        assert!(environment.obtained.hosts.iter().all(|host| host.provider == *own), "it sees its own hosts");
        if let Some(error) = &self.act.stay {
            return Err(error.clone());
        }
        self.there.lock().unwrap().clear();
        Ok(())
    }

    async fn give_back(&self, _: &Context, _: &Environment, machines: &BTreeSet<String>) -> Result<()> {
        self.called("give_back");
        if self.act.whole {
            return Err(Error::unsupported("all or nothing"));
        }
        self.there.lock().unwrap().retain(|name| !machines.contains(name));
        Ok(())
    }

    async fn before_preinstall(&self, _: &Context, _: &Environment) -> Result<()> {
        self.called("before");
        self.act.stay.clone().map_or(Ok(()), Err)
    }

    async fn after_preinstall(&self, _: &Context, _: &Environment) -> Result<()> {
        self.called("after");
        Ok(())
    }

    async fn plan(&self, _: &Context, reservation: &Reservation) -> Result<Plan> {
        match &self.act.refuse {
            Some(error) => Err(error.clone()),
            None => {
                let mut plan = Plan::of(reservation);
                plan.notes.push("cheap".into());
                Ok(plan)
            }
        }
    }

    async fn status(&self, _: &Context, _: &Environment) -> Result<Vec<MachineStatus>> {
        if self.act.whole {
            return Err(Error::new(ErrorKind::Unsupported, "cannot tell"));
        }
        Ok(self.there().into_iter().map(|name| MachineStatus::new(name.clone(), name, "running")).collect())
    }
}

/// A reservation of one group at provider `provider`.
pub(crate) fn reservation(provider: &str, machines: &[&str]) -> Reservation {
    let mut reservation = Reservation::new("exp", ProviderConfig::new(provider));
    reservation.groups.push(Group::new(format!("group-{provider}"), machines.len()));
    reservation.machines = machines.iter().map(|name| Machine::new(*name, 0, ["role"])).collect();
    reservation
}

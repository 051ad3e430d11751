#![doc = include_str!("../README.md")]

// ANCHOR: register
mod rack;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use testbed::{
    Context, Environment, Error, Event, Features, Host, Key, MachineStatus, Network, Obtained, Plan, Pool,
    ProviderConfig, Reservation, Result, Size, Testbed, async_trait,
};

use rack::{Booking, Rack};

// Each extra variable is declared once. Checks, lists and help come from it.
const KEYS: &[Key] = &[
    Key::text("rack", "The file that lists the machines, from the folder of the reservation").required(),
    Key::int("at-most", 1, 1000, "The most machines that one experiment may have").default("10"),
];

testbed::register_testbed! {
    name: "my-provider",
    aliases: &["rack"],
    summary: "machines of a rack that are booked one by one",
    keys: KEYS,
    new: |config| Box::pin(open(config)),
}

async fn open(config: &ProviderConfig) -> Result<Arc<dyn Testbed>> {
    // The variables were checked: what is required is there, and what has a default has a value.
    let file = config.text("rack").unwrap_or_default().into();
    let at_most = config.int("at-most").and_then(|n| n.try_into().ok()).unwrap_or(usize::MAX);
    Ok(Arc::new(MyProvider { file, at_most }))
}

/// Books machines of a rack.
#[derive(Debug)]
struct MyProvider {
    file: PathBuf,
    at_most: usize,
}
// ANCHOR_END: register

// ANCHOR: init
#[async_trait]
impl Testbed for MyProvider {
    fn features(&self) -> Features {
        let mut features = Features::default();
        features.status = true;
        // `destroy` reads the bookings anew, whatever was recorded.
        features.proves_empty = true;
        features
    }

    async fn init(&self, ctx: &Context, reservation: &Reservation) -> Result<Obtained> {
        let rack = self.rack(reservation).await?;
        self.check(&rack, reservation)?;
        let mut got = Obtained::default();
        match self.book(ctx, reservation, &rack, &mut got).await {
            Ok(()) => Ok(got),
            Err(error) => {
                // What this call booked, and not what it found.
                let made = got.made;
                rack.free(&reservation.experiment, |booking| made.contains(&booking.machine)).await?;
                Err(error)
            }
        }
    }
    // ANCHOR_END: init

    // ANCHOR: destroy
    async fn destroy(&self, ctx: &Context, environment: &Environment) -> Result<()> {
        for reservation in &environment.reservations {
            let freed = self.rack(reservation).await?.free(&reservation.experiment, |_| true).await?;
            for machine in freed {
                ctx.tell(&machine, Event::Deleted);
            }
        }
        Ok(())
    }
    // ANCHOR_END: destroy

    // ANCHOR: rest
    async fn give_back(
        &self,
        _: &Context,
        environment: &Environment,
        machines: &BTreeSet<String>,
    ) -> Result<()> {
        for reservation in &environment.reservations {
            let rack = self.rack(reservation).await?;
            rack.free(&reservation.experiment, |booking| machines.contains(&booking.machine)).await?;
        }
        Ok(())
    }

    async fn plan(&self, _: &Context, reservation: &Reservation) -> Result<Plan> {
        let rack = self.rack(reservation).await?;
        self.check(&rack, reservation)?;
        let bookings = rack.bookings().await?;
        let mut plan = Plan::of(reservation);
        for machine in &mut plan.machines {
            machine.exists =
                bookings.values().any(|booking| booking.is(&reservation.experiment, &machine.name));
        }
        let free = rack.slots.len() - bookings.len().min(rack.slots.len());
        plan.notes.push(format!("{free} of {} machines of the rack are free", rack.slots.len()));
        Ok(plan)
    }

    async fn status(&self, _: &Context, environment: &Environment) -> Result<Vec<MachineStatus>> {
        let mut all = Vec::new();
        for reservation in &environment.reservations {
            for (slot, booking) in self.rack(reservation).await?.bookings().await? {
                if booking.experiment == reservation.experiment {
                    all.push(MachineStatus::new(booking.machine, slot, "running"));
                }
            }
        }
        Ok(all)
    }
    // ANCHOR_END: rest
}

impl MyProvider {
    async fn rack(&self, reservation: &Reservation) -> Result<Rack> {
        Rack::read(reservation.base.join(&self.file)).await
    }

    /// Refuses what no waiting would bring.
    fn check(&self, rack: &Rack, reservation: &Reservation) -> Result<()> {
        let wanted = reservation.machines.len();
        if wanted > self.at_most {
            return Err(Error::config(format!("{wanted} machines are more than an experiment may have"))
                .with("at-most", self.at_most));
        }
        let kinds: BTreeSet<&str> = rack.slots.iter().map(|slot| slot.kind.as_str()).collect();
        let it_has = kinds.iter().copied().collect::<Vec<_>>().join(", ");
        // What a provider does not look at, it refuses: nobody is to believe that it was heeded.
        if reservation.machines.iter().any(|m| m.size != Size::default() || m.image.is_some()) {
            return Err(Error::config(
                "a machine of the rack is taken as it is, without a size or an image to choose",
            )
            .with("kinds to choose", it_has));
        }
        let unknown =
            reservation.machines.iter().filter_map(|m| m.kind.as_deref()).find(|k| !kinds.contains(k));
        match unknown {
            Some(kind) => {
                Err(Error::config(format!("the rack has no machine of kind {kind:?}")).with("it has", it_has))
            }
            None => Ok(()),
        }
    }

    // ANCHOR: book
    async fn book(
        &self,
        ctx: &Context,
        reservation: &Reservation,
        rack: &Rack,
        got: &mut Obtained,
    ) -> Result<()> {
        for machine in &reservation.machines {
            ctx.op.check()?;
            let booking = Booking::new(&reservation.experiment, &machine.name);
            let bookings = rack.bookings().await?;
            let mut own = bookings.iter().find(|(_, other)| **other == booking).map(|(slot, _)| slot.clone());
            let found = own.is_some();
            for slot in
                rack.slots.iter().filter(|slot| machine.kind.as_ref().is_none_or(|kind| *kind == slot.kind))
            {
                if own.is_none() && !bookings.contains_key(&slot.name) && rack.book(slot, &booking).await? {
                    own = Some(slot.name.clone());
                }
            }
            let Some(slot) = own.and_then(|own| rack.slots.iter().find(|slot| slot.name == own)) else {
                // Whether the user can do with fewer is not for a provider to say.
                got.missing.insert(machine.name.clone(), "every machine that fits is booked".into());
                continue;
            };
            if found {
                ctx.tell(&machine.name, Event::Found);
            } else {
                got.made.insert(machine.name.clone());
                ctx.tell(&machine.name, Event::Created { address: slot.address.clone() });
            }
            let mut host = Host::new(&machine.name, &slot.address, &slot.name);
            host.port = slot.port;
            host.addresses.extend(slot.address.parse::<std::net::IpAddr>());
            got.hosts.push(host);
        }
        got.networks.extend(reservation.networks.iter().map(Network::of));
        if let (true, Some((start, end))) = (got.networks.is_empty(), rack.pool) {
            let mut network = Network::default();
            network.name = "rack".into();
            network.pool = Some(Pool::new(start, end));
            got.networks.push(network);
        }
        Ok(())
    }
    // ANCHOR_END: book
}

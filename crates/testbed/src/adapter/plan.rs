//! What would be made, and what is there.

use cloud_providers::{Error, Result};

use crate::{
    Context, Environment, Event, Machine, MachineStatus, Plan, PlannedMachine, Reservation,
    adapter::{CloudTestbed, found, kept, request, scope},
};

pub(super) async fn plan(testbed: &CloudTestbed, ctx: &Context, reservation: &Reservation) -> Result<Plan> {
    let can = testbed.can();
    request::check(&testbed.name, &can, reservation)?;
    let mut plan = Plan::default();
    let names: Vec<&str> = reservation.machines.iter().map(|m| m.name.as_str()).collect();
    let entries = match can.list_owned {
        true => {
            let kept = kept::read(&ctx.state)?;
            let scope = scope(&reservation.experiment);
            let entries =
                found::list(&*testbed.provider, &ctx.op, &scope, testbed.pause, &kept, &names).await?;
            found::ours(&entries, &testbed.holder, &reservation.experiment)?;
            entries
        }
        false => {
            plan.notes.push("the provider cannot tell what is there already".into());
            Vec::new()
        }
    };
    for machine in &reservation.machines {
        let of_machine = entries.iter().filter(|e| e.token.as_ref().is_some_and(|t| t.unit == machine.name));
        let running = of_machine.filter(|e| e.runs()).find_map(|e| e.instance.as_ref());
        let mut planned = PlannedMachine::default();
        planned.name.clone_from(&machine.name);
        planned.roles.clone_from(&machine.roles);
        planned.exists = running.is_some();
        planned.what = running.and_then(|i| i.instance_type.clone()).unwrap_or_else(|| what(machine));
        plan.machines.push(planned);
    }
    let others =
        entries.iter().filter(|e| e.token.as_ref().is_none_or(|t| !names.contains(&t.unit.as_str())));
    let others: Vec<String> = others.map(found::Entry::name).collect();
    if !others.is_empty() {
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        plan.notes.push(format!(
            "{} of the experiment is no longer in the document and stays until destroy",
            request::several(&others)
        ));
    }
    if !can.sizes
        && reservation.machines.iter().any(|m| m.size.vcpus.is_some() || m.size.memory_mib.is_some())
    {
        plan.notes.push("processors and memory are not limited by this provider".into());
    }
    if !can.ports && reservation.machines.iter().any(|m| !m.ports.is_empty()) {
        plan.notes.push("this provider opens no ports: what its networks let through is reachable".into());
    }
    Ok(plan)
}

/// Describes what a machine will be.
fn what(machine: &Machine) -> String {
    let size = &machine.size;
    let mut parts: Vec<String> = machine.kind.iter().cloned().collect();
    parts.extend(size.vcpus.map(|n| format!("{n} vCPU")));
    parts.extend(size.memory_mib.map(|n| format!("{n} MiB")));
    parts.extend(size.disk_gib.map(|n| format!("{n} GiB disk")));
    parts.extend(size.gpus.filter(|n| *n > 0).map(|n| format!("{n} GPU")));
    parts.extend(machine.image.iter().map(|image| format!("image {image}")));
    if parts.is_empty() { "default".into() } else { parts.join(", ") }
}

pub(super) async fn status(
    testbed: &CloudTestbed,
    ctx: &Context,
    environment: &Environment,
) -> Result<Vec<MachineStatus>> {
    if !testbed.can().list_owned {
        return Err(
            Error::unsupported("this provider cannot tell what is there").with("provider", &testbed.name)
        );
    }
    let kept = kept::read(&ctx.state)?;
    let names: Vec<&str> =
        environment.reservations.iter().flat_map(|r| &r.machines).map(|m| m.name.as_str()).collect();
    let scope = scope(environment.experiment());
    let entries = found::list(&*testbed.provider, &ctx.op, &scope, testbed.pause, &kept, &names).await?;
    let status = entries.iter().filter(|e| !e.is_gone()).map(|entry| {
        let id = entry.instance.as_ref().map_or_else(|| "-".to_owned(), |i| i.id.to_string());
        // Remains of a creation that was cut off have no instance to be in a state.
        let state = if entry.instance.is_some() { entry.state.label() } else { "unknown" };
        let mut status = MachineStatus::new(entry.name(), id, state);
        status.addresses = entry.instance.as_ref().map(|i| i.addresses.clone()).unwrap_or_default();
        status
    });
    let mut status: Vec<_> = status.collect();
    status.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(status)
}

/// Tells something about a machine in words.
pub(super) fn note(ctx: &Context, machine: &str, text: impl Into<String>) {
    ctx.tell(machine, Event::Note { text: text.into() });
}

//! From a machine of the document to the request for an instance.

use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, NetworkRequest, PortRequest, Result, Role, Token, Unit,
    tags,
};

use crate::{
    Machine, Reservation,
    userdata::{HostKey, MachineData, ROOT},
};

/// Returns the account that one logs in to.
pub(super) fn user<'a>(reservation: &'a Reservation, machine: &'a Machine) -> &'a str {
    machine.user.as_deref().or(reservation.access.user.as_deref()).unwrap_or(ROOT)
}

/// Returns the request for a machine.
///
/// # Errors
///
/// [`ErrorKind::Config`] for what stands wrongly in the document.
pub(super) fn request(
    reservation: &Reservation,
    machine: &Machine,
    attempt: u32,
    host_key: &HostKey,
    holder: &str,
    can: &Capabilities,
) -> Result<CreateRequest> {
    let token = Token::new(super::scope(&reservation.experiment), &machine.name, attempt);
    // A name carries 8 characters of the unit's id: those of the machine's own name would be the same for many.
    let unit = Unit {
        id: tags::hash(&token.to_string(), 8),
        name_hint: format!("{}-{}", reservation.experiment, machine.name),
    };
    let mut request = CreateRequest::new(token, unit, holder);
    let public = reservation.access.public_key.as_deref().ok_or_else(|| {
        Error::internal("no public key was made for the machines").with("machine", &machine.name)
    })?;
    let data = MachineData::new(&machine.name, user(reservation, machine), public, host_key);
    request.user_data = data.to_user_data()?;
    request.role = Role::Plain;
    request.networks = networks(reservation, machine)?;
    if can.ports {
        request.ports.push(PortRequest { port: 22, protocol: "tcp".into() });
        request.ports.extend(machine.ports.iter().filter(|p| p.port != 22 || p.protocol != "tcp").cloned());
    }
    let spec = &mut request.spec;
    spec.instance_type = machine.kind.clone();
    spec.vcpus = machine.size.vcpus.unwrap_or_default();
    spec.memory_mib = machine.size.memory_mib.unwrap_or_default();
    spec.gpus = machine.size.gpus.unwrap_or_default();
    spec.root_disk_gib = machine.size.disk_gib;
    spec.image = machine.image.clone();
    Ok(request)
}

fn networks(reservation: &Reservation, machine: &Machine) -> Result<Vec<NetworkRequest>> {
    let mut wanted = Vec::new();
    for name in &machine.networks {
        let Some(network) = reservation.networks.iter().find(|n| n.name == *name) else {
            return Err(Error::config("a machine is on a network that the document does not have")
                .with("machine", &machine.name)
                .with("network", name));
        };
        let mut request = NetworkRequest::default();
        request.network = network.kind.clone();
        wanted.push(request);
    }
    if let Some(address) = machine.address {
        if wanted.is_empty() {
            wanted.push(NetworkRequest::default());
        }
        wanted[0].address = Some(address);
    }
    Ok(wanted)
}

/// Checks every machine against what the provider can do, before anything is made.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] or [`ErrorKind::Config`] with all problems of all machines.
pub(super) fn check(name: &str, can: &Capabilities, reservation: &Reservation) -> Result<()> {
    let mut missing = Vec::new();
    if !can.plain_machines {
        missing.push(plain_hint(name));
    }
    if !can.list_owned && !can.release {
        // Ids are kept then; it works as long as the environment is kept too.
        tracing::warn!(
            provider = name,
            "the provider cannot tell what it made: keep the environment's folder"
        );
    }
    // The same words for the same problem: a group of a hundred has it once.
    let mut problems: Vec<(String, Vec<&str>)> = Vec::new();
    let mut kind = ErrorKind::Unsupported;
    let key = HostKey::generate()?;
    for machine in &reservation.machines {
        let mut of_machine = Vec::new();
        if let Some(instance_type) = machine.kind.as_deref().filter(|_| !can.instance_types) {
            of_machine.push(format!(
                "the provider has no types of its own such as {instance_type}: name a flavour or a size"
            ));
        }
        match request(reservation, machine, 1, &key, name, can) {
            Ok(mut request) => {
                // Said once for all.
                request.role = Role::Guest;
                if let Err(error) = request.check(can) {
                    if *error.kind() == ErrorKind::Config {
                        kind = ErrorKind::Config;
                    }
                    of_machine.push(error.to_string());
                }
            }
            Err(error) => {
                kind = error.kind().clone();
                of_machine.push(error.to_string());
            }
        }
        for problem in of_machine {
            match problems.iter_mut().find(|(text, _)| *text == problem) {
                Some((_, machines)) => machines.push(&machine.name),
                None => problems.push((problem, vec![&machine.name])),
            }
        }
    }
    missing.extend(problems.into_iter().map(|(text, machines)| format!("{}: {text}", several(&machines))));
    match Error::all(kind, missing) {
        Some(error) => Err(error.with("provider", name)),
        None => Ok(()),
    }
}

fn plain_hint(name: &str) -> String {
    match name {
        super::local::NAME => "plain machines need the key machine-init".into(),
        _ => "the provider has no machines that one can log in to (capability plain_machines)".into(),
    }
}

/// Names a few machines and counts the others.
pub(super) fn several(machines: &[&str]) -> String {
    const SHOWN: usize = 3;
    match machines.len() {
        n if n > SHOWN + 1 => format!("{} and {} more", machines[..SHOWN].join(", "), n - SHOWN),
        _ => machines.join(", "),
    }
}

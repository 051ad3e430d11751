//! Documents to start from.

use cloud_providers::{Error, Result};
use serde_json::Value;

use crate::{Key, adapter, near::hint, registrations};

/// Returns a commented document for a provider that is linked in: a testbed or a cloud.
///
/// It can be used as it is where the provider needs no more to be said; what must be said stands there without a value.
///
/// # Errors
///
/// [`cloud_providers::ErrorKind::Config`] when there is no such provider, with those that there are.
pub fn sample(provider: &str) -> Result<String> {
    if let Some(linked) = crate::lookup(provider) {
        return Ok(sample_of(linked.name, linked.summary, linked.keys));
    }
    let clouds = cloud_providers::registered();
    if let Some(cloud) = clouds.iter().find(|c| c.name.eq_ignore_ascii_case(provider)) {
        let keys: Vec<Key> = adapter::keys(cloud).iter().map(Key::from).collect();
        return Ok(sample_of(cloud.name, cloud.summary, &keys));
    }
    let known: Vec<&str> =
        registrations().iter().map(|r| r.name).chain(clouds.iter().map(|c| c.name)).collect();
    let message = format!("there is no provider {provider:?}{}", hint(provider, known.iter().copied()));
    Err(Error::config(message).with("known", known.join(", ")))
}

/// Returns a commented document for any provider, such as an executable that told its keys.
pub fn sample_of(name: &str, summary: &str, keys: &[Key]) -> String {
    write(name, summary, keys.iter().map(|key| line(name, key)).collect())
}

/// Writes a value on one line. JSON is YAML, and plain words need no quotes.
fn inline(value: &Value) -> String {
    let plain = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
            && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
                .contains(&text.to_ascii_lowercase().as_str())
    };
    match value {
        Value::String(text) if plain(text) => text.clone(),
        _ => value.to_string(),
    }
}

/// Writes a variable: set where it must be, commented with its default where it may.
fn line(provider: &str, key: &Key) -> String {
    let name = key.name.strip_prefix(&format!("{provider}-")).unwrap_or(&key.name);
    let env = key.env.as_deref().map(|env| format!(", or the variable {env}")).unwrap_or_default();
    let secret = if key.secret { "secret, " } else { "" };
    let help = key.help.replace(['\n', '\r'], " ");
    let comment = format!("  # {}: {secret}{}{env}.\n", help.trim_end_matches('.'), key.kind.expected());
    let default = key.typed_default().filter(|value| !key.secret && value.as_str() != Some(""));
    match (default, key.required) {
        (Some(value), _) => format!("{comment}  # {name}: {}\n", inline(&value)),
        // Without a value, so that its absence is told until it is there. A secret has a better place.
        (None, true) if !key.secret => format!("{comment}  {name}:  # required\n"),
        (None, true) => format!("{comment}  # {name}:  # required\n"),
        (None, false) => format!("{comment}  # {name}:\n"),
    }
}

fn write(name: &str, summary: &str, lines: Vec<String>) -> String {
    let machines = if name == "static" { HOSTS.to_owned() } else { MACHINES.replace("PROVIDER", name) };
    format!(
        "# A reservation for the provider {name}: {}.\n{HEAD}provider:\n  type: {}\n{}\n{machines}{TAIL}",
        summary.trim_end_matches('.'),
        inline(&name.into()),
        lines.concat(),
    )
}

const HEAD: &str = "#
#   testbed check     finds every mistake in this file
#   testbed plan      says what would be made, and makes nothing
#   testbed up        gets the machines
#   testbed destroy   gives them back

# The same name finds the same machines again. Without it, the folder's name is taken.
# experiment: my-experiment

# Which provider, and what it is told. A bare name will do: `provider: <name>`.
";

const MACHINES: &str = "# The machines: kind, role, number. The kind is a flavour of below, or whatever the provider sells: an instance type, a
# cluster. Kind and role are roles of the machine: `testbed exec compute hostname`.
resources:
  small:
    control: 1
    compute: 2
    # The fewest to go on with, and more to say of them:
    # compute: {count: 2, min: 1, disk: 20GiB, ports: [80, 53/udp]}

# Or by groups, with a range: group, kind, role, number. In place of resources.
# topology:
#   grp1:
#     small: {control: 1}
#   grp[2-4]:
#     small: {compute: 2}

# Or one by one. In place of resources.
# machines:
#   - roles: [control]
#     flavour: small
#   - roles: [compute, worker]
#     number: 2
#     min: 1
#     vcpus: 2
#     memory: 4GiB
#     networks: [lan]

# There are tiny, small, medium, big, large and extra-large. More of them, with what they are at a provider:
# flavours:
#   build: {vcpus: 8, memory: 16GiB, disk: 40GiB}
#   gpu: {gpus: 1, type: {PROVIDER: what-it-sells, another: what-that-sells}}

# The image, and short names for images:
# image: debian
# images:
#   debian: {PROVIDER: its-name-there, another: its-name-there}

# Networks. Addresses from start to end, both included, are free to be taken: `testbed ips take`.
# networks:
#   - name: lan
#     cidr: 192.0.2.0/24
#     start: 192.0.2.100
#     end: 192.0.2.199
#     gateway: 192.0.2.1
#     dns: [192.0.2.1]
";

const HOSTS: &str = "# The hosts: role and host, or a list of hosts. One host in several roles is written once and repeated by its anchor.
resources:
  control:
    - &first
      address: 192.0.2.10
      alias: first
      # user: root
      # port: 22
      # key: ~/.ssh/id_ed25519
      # extra: {gateway: jump.example.org, rack: 7}
  compute:
    - *first
    - address: 192.0.2.11
      alias: second

# Networks of the hosts. Addresses from start to end, both included, are free to be taken: `testbed ips take`.
# networks:
#   - name: lan
#     cidr: 192.0.2.0/24
#     start: 192.0.2.100
#     end: 192.0.2.199
#     extra_ips: [192.0.2.77]
#     gateway: 192.0.2.1
#     dns: [192.0.2.1]
";

const TAIL: &str = "
# The account to log in as, and the private key. Without a key a pair is made for the experiment.
# user: root
# key: ~/.ssh/id_ed25519

# What happens when fewer machines are to be had: strict ends with an error, lenient goes on with what there is.
# shortage: strict

# What is run around the provisioning, in this order: before_preinstall, preinstall, after_preinstall; destroy at the end.
# hooks:
#   preinstall:
#     - echo on this machine, in the folder of this file
#     - {ssh: apt-get update, roles: [compute], ignore_errors: true}
#     - {ansible: site.yaml, args: [--diff]}

# Delay, rate and loss between groups or roles.
# network_constraints:
#   enable: true
#   default_delay: 25ms
#   default_rate: 100mbit
#   default_loss: 0.1%
#   constraints:
#     - {src: control, dst: compute, delay: 10ms, rate: 1gbit, loss: 0%, symmetric: true}
";

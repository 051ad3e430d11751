//! The machines in the forms that other programs read.

mod ansible;
mod value;

use cloud_providers::Result;
use serde_json::{Map, Value, json};

use crate::{
    Host, Obtained,
    state::{Folder, write_private},
};

pub use ansible::{ini, yaml};

/// Writes `inventory.yaml` and `inventory.ini` into the environment.
///
/// # Errors
///
/// When a name cannot stand in them, or they cannot be written.
pub fn write(folder: &Folder, obtained: &Obtained) -> Result<()> {
    write_private(&folder.path().join("inventory.yaml"), yaml(folder, obtained)?.as_bytes())?;
    write_private(&folder.path().join("inventory.ini"), ini(folder, obtained)?.as_bytes())
}

/// Returns the machines as JSON: hosts by name, and names by role.
pub fn json(obtained: &Obtained) -> Value {
    let hosts: Map<String, Value> =
        obtained.hosts.iter().map(|host| (host.alias.clone(), json!(host))).collect();
    let roles: Map<String, Value> = obtained
        .roles()
        .into_iter()
        .map(|(role, hosts)| (role.to_owned(), hosts.iter().map(|host| host.alias.as_str()).collect()))
        .collect();
    json!({ "hosts": hosts, "roles": roles, "networks": obtained.networks, "missing": obtained.missing })
}

/// Returns the variables of a host in Ansible's words.
fn variables(folder: &Folder, host: &Host) -> Map<String, Value> {
    let mut vars = Map::new();
    // What ssh_config says of the machine holds here, too: proxies, jumps, host keys.
    let config = folder.ssh_config();
    vars.insert("ansible_host".into(), host.alias.clone().into());
    vars.insert(
        "ansible_ssh_common_args".into(),
        format!("-F {}", value::shell(&config.to_string_lossy())).into(),
    );
    vars.insert("ansible_port".into(), host.port.into());
    if let Some(user) = &host.user {
        vars.insert("ansible_user".into(), user.clone().into());
    }
    if let Some(key) = &host.key {
        vars.insert("ansible_ssh_private_key_file".into(), key.to_string_lossy().into());
    }
    vars.insert("testbed_address".into(), host.address.clone().into());
    vars.insert("testbed_addresses".into(), host.addresses.iter().map(ToString::to_string).collect());
    vars.insert("testbed_provider".into(), host.provider.clone().into());
    vars.insert("testbed_id".into(), host.id.clone().into());
    vars.insert("testbed_roles".into(), host.roles.iter().cloned().collect());
    for (key, given) in &host.extra {
        // These became options of ssh.
        if !["gateway", "gateway_user", "forward_agent"].contains(&key.as_str()) {
            vars.insert(key.clone(), given.clone());
        }
    }
    vars
}

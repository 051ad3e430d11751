//! The `ssh_config` of an environment.

use std::{fmt::Write as _, fs};

use cloud_providers::{Error, Result};
use serde_json::Value;

use crate::{
    Host,
    state::{Folder, write_private},
};

/// Host keys that the providers told.
const KNOWN: &str = "known_hosts";
/// Host keys that were seen at the first connection.
const LEARNED: &str = "known_hosts_learned";

/// Writes `ssh_config` and `known_hosts` into the environment, and forgets the learned keys of machines that are new.
///
/// # Errors
///
/// When a value cannot stand in such a file, or the files cannot be written.
pub fn write(folder: &Folder, experiment: &str, hosts: &[Host], fresh: &[&str]) -> Result<()> {
    let text = config(folder, experiment, hosts)?;
    write_private(&folder.path().join(KNOWN), known_hosts(experiment, hosts).as_bytes())?;
    let learned = folder.path().join(LEARNED);
    // Made by us, or ssh would make it for all to read.
    let old = fs::read_to_string(&learned).ok();
    let stale: Vec<String> = fresh.iter().map(|alias| key_alias(experiment, alias)).collect();
    let keep = old.iter().flat_map(|old| old.lines()).filter(|line| {
        let names = line.split_whitespace().next().unwrap_or_default();
        !names.split(',').any(|name| stale.iter().any(|s| s == name))
    });
    let kept: String = keep.flat_map(|line| [line, "\n"]).collect();
    if old.as_ref() != Some(&kept) {
        write_private(&learned, kept.as_bytes())?;
    }
    write_private(&folder.ssh_config(), text.as_bytes())
}

/// Returns the configuration: one entry for each host, by its alias.
///
/// # Errors
///
/// When an alias, an address or another value holds what such a file cannot say.
pub fn config(folder: &Folder, experiment: &str, hosts: &[Host]) -> Result<String> {
    let mut text = String::from("# Written by testbed, and again by the next command: changes are lost.\n");
    for host in hosts {
        entry(&mut text, folder, experiment, host)
            .map_err(|error| error.with("machine", format!("{:?}", host.alias)))?;
    }
    Ok(text)
}

fn entry(text: &mut String, folder: &Folder, experiment: &str, host: &Host) -> Result<()> {
    let path = |path: &std::path::Path| -> Result<String> {
        let path =
            path.to_str().ok_or_else(|| Error::config("a path is not UTF-8").with("path", path.display()))?;
        // Percent signs stand for something else in paths of this file.
        quoted("path", &path.replace('%', "%%"))
    };
    let alias = plain("name", &host.alias)?;
    // The pattern is a literal: an alias with a wildcard would catch other hosts.
    if alias.contains(['*', '?', '!', ',']) {
        return Err(Error::config("the name of a machine cannot stand in ssh_config"));
    }
    let _ = write!(text, "\nHost {alias}\n");
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "    {key} {value}");
    };
    line("HostName", plain("address", &host.address)?);
    line("Port", host.port.to_string());
    if let Some(user) = &host.user {
        line("User", quoted("user", user)?);
    }
    if let Some(key) = &host.key {
        line("IdentityFile", path(key)?);
        line("IdentitiesOnly", "yes".into());
    }
    // Keys are filed under a name of our own: addresses and ports are used again by other machines.
    line("HostKeyAlias", key_alias(experiment, &host.alias));
    let files = [LEARNED, KNOWN].map(|name| folder.path().join(name));
    line("UserKnownHostsFile", format!("{} {}", path(&files[0])?, path(&files[1])?));
    line("GlobalKnownHostsFile", "/dev/null".into());
    line("StrictHostKeyChecking", if host.host_key.is_some() { "yes" } else { "accept-new" }.into());
    line("UpdateHostKeys", "no".into());
    line("CheckHostIP", "no".into());
    if let Some(command) = &host.proxy_command {
        if command.contains(['\n', '\r', '\0']) {
            return Err(Error::config("a proxy command has several lines"));
        }
        line("ProxyCommand", command.clone());
    } else if let Some(jump) = jump(host) {
        line("ProxyJump", plain("jump host", &jump)?);
    }
    if host.extra.get("forward_agent").is_some_and(truth) {
        line("ForwardAgent", "yes".into());
    }
    // A dead connection is noticed, and one that cannot be made does not hold a command for minutes.
    line("ServerAliveInterval", "15".into());
    line("ServerAliveCountMax", "4".into());
    line("ConnectTimeout", "15".into());
    line("LogLevel", "ERROR".into());
    Ok(())
}

/// Returns the machine to go through: the provider's word, or the variables `gateway` and `gateway_user` of the document.
fn jump(host: &Host) -> Option<String> {
    if host.jump.is_some() {
        return host.jump.clone();
    }
    let gateway = host.extra.get("gateway")?.as_str().filter(|gateway| !gateway.is_empty())?;
    let user = host.extra.get("gateway_user").and_then(Value::as_str).or(host.user.as_deref());
    Some(match user {
        Some(user) if !gateway.contains('@') => format!("{user}@{gateway}"),
        _ => gateway.to_owned(),
    })
}

pub(crate) fn truth(value: &Value) -> bool {
    match value {
        Value::Bool(yes) => *yes,
        Value::String(word) => ["yes", "true", "on", "1"].contains(&word.to_ascii_lowercase().as_str()),
        Value::Number(n) => n.as_i64() == Some(1),
        _ => false,
    }
}

/// Returns the host keys that are known beforehand, in the form of `known_hosts`.
pub fn known_hosts(experiment: &str, hosts: &[Host]) -> String {
    let mut text = String::new();
    for host in hosts {
        // A key of several words or lines would be read as something else.
        let key = host.host_key.as_deref().map(str::split_whitespace).map(Iterator::collect::<Vec<_>>);
        if let Some([kind, key, ..]) = key.as_deref() {
            let _ = writeln!(text, "{} {kind} {key}", key_alias(experiment, &host.alias));
        }
    }
    text
}

/// Returns the name under which the key of a machine is filed.
pub(crate) fn key_alias(experiment: &str, alias: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let mut name: String = alias.chars().map(plain).collect();
    name.push('.');
    name.extend(experiment.chars().map(plain));
    name
}

/// Returns a value that stands in the file as it is.
fn plain(what: &str, value: &str) -> Result<String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || "\"'\\#%`$;|&<>()".contains(c);
    if value.is_empty() || value.starts_with('-') || value.contains(bad) {
        return Err(Error::config(format!("the {what} of a machine cannot stand in ssh_config"))
            .with("value", format!("{value:?}")));
    }
    Ok(value.to_owned())
}

/// Returns a value in quotes where it needs them.
fn quoted(what: &str, value: &str) -> Result<String> {
    if value.contains(|c: char| c.is_control() || c == '"') || value.is_empty() {
        return Err(Error::config(format!("the {what} of a machine cannot stand in ssh_config"))
            .with("value", format!("{value:?}")));
    }
    let needs = value.contains(|c: char| c.is_whitespace() || "#'\\".contains(c));
    // ssh takes a backslash in quotes as the first half of an escape.
    Ok(if needs { format!("\"{}\"", value.replace('\\', "\\\\")) } else { value.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn text(host: Host) -> Result<String> {
        config(&Folder::new("/e 1"), "exp", &[host])
    }

    fn host() -> Host {
        Host::new("web-0", "10.0.0.1", "i-1")
    }

    #[test]
    fn an_entry_says_all_that_ssh_needs() {
        let mut host = host();
        host.port = 2222;
        host.user = Some("ubuntu".into());
        host.key = Some("/keys/my key%1".into());
        host.host_key = Some("ssh-ed25519 AAAA".into());
        host.extra.insert("gateway".into(), "jump.example".into());
        host.extra.insert("forward_agent".into(), true.into());
        let known = known_hosts("exp", std::slice::from_ref(&host));
        assert_eq!(known, "web-0.exp ssh-ed25519 AAAA\n");
        let text = text(host).unwrap();
        for line in [
            "\nHost web-0\n",
            "HostName 10.0.0.1\n",
            "Port 2222\n",
            "User ubuntu\n",
            "IdentityFile \"/keys/my key%%1\"\n",
            "StrictHostKeyChecking yes\n",
            "ProxyJump ubuntu@jump.example\n",
            "ForwardAgent yes\n",
            "UserKnownHostsFile \"/e 1/known_hosts_learned\" \"/e 1/known_hosts\"\n",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
    }

    #[test]
    fn a_proxy_command_stands_as_it_is_and_an_unknown_key_is_learned() {
        let mut host = host();
        host.proxy_command = Some("testbed machine connect --to %h:%p".into());
        let text = text(host).unwrap();
        assert!(text.contains("ProxyCommand testbed machine connect --to %h:%p\n"), "{text}");
        assert!(text.contains("StrictHostKeyChecking accept-new\n"));
    }

    #[test]
    fn hostile_values_cannot_add_lines_or_options() {
        for (alias, address, user) in [
            ("a\n  ProxyCommand evil", "10.0.0.1", "u"),
            ("*", "10.0.0.1", "u"),
            ("-oProxyCommand=evil", "10.0.0.1", "u"),
            ("a", "10.0.0.1 x", "u"),
            ("a", "-oProxyCommand=x", "u"),
            ("a", "10.0.0.1", "u\nProxyCommand evil"),
            ("a", "10.0.0.1", "u\" x"),
        ] {
            let mut host = Host::new(alias, address, "i");
            host.user = Some(user.into());
            assert!(text(host).is_err(), "{alias:?} {address:?} {user:?}");
        }
    }

    #[test]
    fn the_learned_key_of_a_machine_that_is_new_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        let learned = dir.path().join(LEARNED);
        fs::write(&learned, "web-0.exp ssh-ed25519 A\nweb-1.exp ssh-ed25519 B\n").unwrap();
        write(&folder, "exp", &[host()], &[]).unwrap();
        assert_eq!(fs::read_to_string(&learned).unwrap().lines().count(), 2);
        write(&folder, "exp", &[host()], &["web-0"]).unwrap();
        assert_eq!(fs::read_to_string(&learned).unwrap(), "web-1.exp ssh-ed25519 B\n");
    }

    #[test]
    fn the_system_reads_it_as_it_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("with space"));
        folder.create().unwrap();
        let mut host = host();
        host.user = Some("DOMAIN\\user".into());
        host.key = Some(Path::new("/k/a b%c").into());
        write(&folder, "exp", &[host], &[]).unwrap();
        let out = std::process::Command::new("ssh")
            .arg("-F")
            .arg(folder.ssh_config())
            .args(["-G", "web-0"])
            .output()
            .expect("the tests need the OpenSSH client");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        for line in ["user DOMAIN\\user\n", "hostname 10.0.0.1\n", "hostkeyalias web-0.exp\n"] {
            assert!(text.contains(line), "{line:?} in {text}{}", String::from_utf8_lossy(&out.stderr));
        }
        assert!(text.contains("with space/known_hosts_learned"), "{text}");
    }
}

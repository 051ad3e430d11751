//! What an image has beside packages and programs: units, their settings, and links that start them.

use super::super::cpio::Node;
use super::merge::Nodes;

/// A file of the folder that whoever makes an image of their own takes as well.
macro_rules! guest {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/podvm/systemd/", $name))
    };
}
macro_rules! unit {
    ($name:literal) => {
        (concat!("usr/lib/systemd/system/", $name), guest!($name), false)
    };
}

/// Path in the image, text, and whether it can be run.
pub(super) const FILES: &[(&str, &str, bool)] = &[
    unit!("netns@.service"),
    unit!("process-user-data.service"),
    unit!("attestation-agent.service"),
    unit!("confidential-data-hub.service"),
    unit!("api-server-rest.service"),
    unit!("kata-agent.service"),
    unit!("agent-protocol-forwarder.service"),
    ("usr/lib/tmpfiles.d/podvm.conf", guest!("podvm.conf.tmpfiles"), false),
    ("etc/agent-config.toml", guest!("agent-config.toml"), false),
    ("etc/kata-opa/allow-all.rego", guest!("allow-all.rego"), false),
    ("etc/systemd/network/10-podvm.network", NETWORK, false),
    ("etc/systemd/networkd.conf.d/podvm.conf", NETWORKD, false),
    ("etc/systemd/journald.conf.d/podvm.conf", JOURNAL, false),
    ("etc/systemd/resolved.conf.d/podvm.conf", "[Resolve]\nLLMNR=no\nMulticastDNS=no\n", false),
    ("etc/modules-load.d/podvm.conf", "overlay\nvxlan\nveth\nbr_netfilter\n", false),
    ("etc/hostname", "podvm\n", false),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", false),
    ("etc/fstab", "# The first file system mounts the root.\n", false),
    // It is made when the machine starts, and stays in its memory.
    ("etc/machine-id", "", false),
    // Services that bring a changed system up to date have nothing to do.
    ("etc/.updated", "", false),
    ("var/.updated", "", false),
];
/// Every card gets its address by DHCP; those of pods are in a namespace of their own.
const NETWORK: &str = "[Match]\nName=eth*\n\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\nLLDP=no\n\n\
    [DHCPv4]\nClientIdentifier=mac\nUseMTU=yes\n";
/// Routes and rules that the forwarder makes are not touched.
const NETWORKD: &str = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";
/// Logs are in memory, and go with the machine.
const JOURNAL: &str = "[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\n";

/// Units that start with the system.
const STARTED: &[&str] = &[
    "systemd-networkd.service",
    "process-user-data.service",
    "attestation-agent.service",
    "confidential-data-hub.service",
    "api-server-rest.service",
    "kata-agent.service",
    "agent-protocol-forwarder.service",
];
/// Units that never start: logins, shells for repairs, and what is done at the first start of a system.
const NEVER: &[&str] = &[
    "console-getty.service",
    "container-getty@.service",
    "ctrl-alt-del.target",
    "debug-shell.service",
    "emergency.service",
    "getty-static.service",
    "getty@.service",
    "rescue.service",
    "serial-getty@.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-firstboot.service",
    "systemd-networkd-wait-online.service",
    "systemd-repart.service",
];
/// Folders that are there for what is mounted or written.
const FOLDERS: &[&str] =
    &["dev", "proc", "sys", "run", "tmp", "mnt", "media/cidata", "var/log", "var/cache", "etc/kata-opa"];

/// Everything by path.
pub(super) fn nodes() -> Nodes {
    let mut nodes: Nodes = FOLDERS.iter().map(|folder| ((*folder).to_owned(), Node::Folder)).collect();
    for (path, text, run) in FILES {
        nodes.insert((*path).to_owned(), Node::File(text.as_bytes().to_vec(), *run));
    }
    let mut link = |path: String, target: &str| nodes.insert(path, Node::Link(target.to_owned()));
    for unit in STARTED {
        link(
            format!("etc/systemd/system/multi-user.target.wants/{unit}"),
            &format!("/usr/lib/systemd/system/{unit}"),
        );
    }
    for unit in NEVER {
        link(format!("etc/systemd/system/{unit}"), "/dev/null");
    }
    link("etc/systemd/system/default.target".to_owned(), "/usr/lib/systemd/system/multi-user.target");
    // Not the one on loopback, which is not there in the pod's namespace.
    link("etc/resolv.conf".to_owned(), "/run/systemd/resolve/resolv.conf");
    link("etc/kata-opa/default-policy.rego".to_owned(), "/run/peerpod/policy.rego");
    nodes
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::command::Run;

    /// The units of the node, beside those of the guest.
    const NODE: &[&str] = &[
        "crates/caa/systemd/cloud-api-adaptor.service",
        "crates/peerpod-gateway/systemd/peerpod-gateway.service",
    ];

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    fn unit(name: &str) -> &'static str {
        let path = format!("usr/lib/systemd/system/{name}");
        FILES.iter().find(|(file, ..)| *file == path).unwrap().1
    }

    /// All words of a setting, which may stand several times.
    fn words<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
        let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.flat_map(str::split_whitespace).collect()
    }

    #[test]
    fn configuration_and_namespace_come_before_the_agent_and_the_agent_before_the_forwarder() {
        for (name, first) in [
            ("attestation-agent.service", &["process-user-data.service"][..]),
            ("confidential-data-hub.service", &["process-user-data.service", "attestation-agent.service"]),
            (
                "kata-agent.service",
                &["netns@podns.service", "process-user-data.service", "confidential-data-hub.service"],
            ),
            (
                "agent-protocol-forwarder.service",
                &["netns@podns.service", "process-user-data.service", "kata-agent.service"],
            ),
            ("api-server-rest.service", &["netns@podns.service", "confidential-data-hub.service"]),
        ] {
            let text = unit(name);
            let after = words(text, "After");
            let pulled: Vec<&str> =
                ["Requires", "BindsTo", "Wants"].iter().flat_map(|key| words(text, key)).collect();
            for other in first {
                assert!(after.contains(other), "{name} starts after {other}: {after:?}");
                let started = STARTED.contains(other) || pulled.contains(other);
                assert!(started, "{name} starts after {other}, which nothing starts");
            }
        }
        // Without its configuration, or its namespace, neither of the two may run.
        for name in ["kata-agent.service", "agent-protocol-forwarder.service"] {
            assert_eq!(words(unit(name), "Requires"), ["process-user-data.service"], "{name}");
            assert_eq!(words(unit(name), "BindsTo"), ["netns@podns.service"], "{name}");
            // FailureAction would end the machine at the first failure, before the restart.
            assert_eq!(words(unit(name), "StartLimitAction"), ["poweroff"], "{name}");
            assert_eq!(words(unit(name), "FailureAction"), [""; 0], "{name}");
        }
        assert_eq!(words(unit("agent-protocol-forwarder.service"), "Type"), ["notify"]);
    }

    #[test]
    fn programs_and_files_are_where_the_other_parts_look_for_them() {
        let started = |name: &str| words(unit(name), "ExecStart").join(" ");
        assert_eq!(started("process-user-data.service"), "/usr/local/bin/process-user-data provision-files");
        assert!(started("attestation-agent.service").ends_with("-c /run/peerpod/aa.toml"));
        assert_eq!(
            started("kata-agent.service"),
            "/usr/local/bin/kata-agent --config /etc/agent-config.toml"
        );
        let socket = "/run/kata-containers/agent.sock";
        assert!(started("agent-protocol-forwarder.service").ends_with(socket));
        let nodes = nodes();
        let text = |path: &str| match &nodes[path] {
            Node::File(bytes, false) => String::from_utf8(bytes.clone()).unwrap(),
            other => panic!("{path} is {other:?}"),
        };
        assert!(text("etc/agent-config.toml").contains(&format!("\"unix://{socket}\"")));
        assert!(text("usr/lib/tmpfiles.d/podvm.conf").contains("/run/peerpod/auth.json 0600"));
        assert_eq!(text("etc/machine-id"), "", "a machine's own id is made when it starts");
        for name in STARTED {
            let link = format!("etc/systemd/system/multi-user.target.wants/{name}");
            assert_eq!(nodes[&link], Node::Link(format!("/usr/lib/systemd/system/{name}")));
        }
    }

    #[test]
    fn nothing_asks_for_a_password_or_gives_a_shell() {
        let nodes = nodes();
        for name in [
            "getty@.service",
            "serial-getty@.service",
            "debug-shell.service",
            "emergency.service",
            "rescue.service",
        ] {
            assert_eq!(nodes[&format!("etc/systemd/system/{name}")], Node::Link("/dev/null".to_owned()));
        }
    }

    #[test]
    fn systemd_finds_nothing_wrong_with_any_unit() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["etc/systemd/system", "usr/local/bin", "bin", "sbin", "usr/lib/systemd/system"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::os::unix::fs::symlink("usr/lib", at("lib")).unwrap();
        for entry in std::fs::read_dir("/lib/systemd/system").unwrap().flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), at("usr/lib/systemd/system").join(entry.file_name())).unwrap();
            }
        }
        let mut names = Vec::new();
        let mut add = |name: &str, text: &str| {
            std::fs::write(at("etc/systemd/system").join(name), text).unwrap();
            names.push(name.replace('@', "@podns"));
            for line in text.lines().filter(|line| line.starts_with("Exec")) {
                let program = line.split_once('=').unwrap().1.split(' ').next().unwrap();
                let program = at(program.trim_start_matches('/'));
                std::fs::write(&program, "#!/bin/sh\n").unwrap();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(&program, mode).unwrap();
            }
        };
        for (path, text, _) in FILES {
            if let Some(name) = path.strip_prefix("usr/lib/systemd/system/") {
                add(name, text);
            }
        }
        for path in NODE {
            add(path.rsplit('/').next().unwrap(), &std::fs::read_to_string(root().join(path)).unwrap());
        }
        assert_eq!(names.len(), 9, "{names:?}");
        let verify = |names: &[String]| {
            let root = format!("--root={}", dir.path().display());
            let run = Run::new("systemd-analyze").args(["verify", "--man=no", &root]).args(names);
            let (code, out, errors) = run.answer(std::time::Duration::from_secs(60)).unwrap();
            // It warns of a word it does not know, and succeeds.
            (code, format!("{out}{errors}"))
        };
        assert_eq!(verify(&names), (Some(0), String::new()));
        let wrong = unit("kata-agent.service").replace("Restart=", "Restarts=");
        std::fs::write(at("etc/systemd/system/kata-agent.service"), wrong).unwrap();
        assert!(verify(&names).1.contains("Restarts"), "a word that is no setting is found");
    }

    #[test]
    fn the_variables_of_the_node_are_options_that_the_unit_hands_on() {
        let text = std::fs::read_to_string(root().join("crates/caa/systemd/cloud-api-adaptor.env")).unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| line.split_once('=').unwrap().0)
            .collect();
        assert!(names.contains(&"CLOUD_PROVIDER"));
        let page = std::fs::read_to_string(root().join("docs/providers/libvirt.md")).unwrap();
        for name in names.iter().filter(|name| **name != "CLOUD_PROVIDER") {
            assert!(page.contains(&format!("`{name}`")), "{name} is no option of libvirt");
        }
        let unit = std::fs::read_to_string(root().join(NODE[0])).unwrap();
        assert_eq!(words(&unit, "Type"), ["notify"]);
        assert!(words(&unit, "After").contains(&"peerpod-gateway.service"));
        assert!(!words(&unit, "BindsTo").contains(&"peerpod-gateway.service"), "each may restart alone");
    }
}

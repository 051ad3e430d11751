//! The list of checks, from which the page of operators is made.

/// When a check is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Always.
    Always,
    /// Where the configuration asks for what it looks at.
    Asked,
    /// With `-live`, and at the start of a daemon with `-cloud-config-verify`.
    Live,
}

impl When {
    fn words(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Asked => "where it is configured",
            Self::Live => "`-live`",
        }
    }
}

/// One check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) when: When,
    /// What is looked at, and what is wrong with it.
    pub(super) what: &'static str,
}

pub(super) const SETTINGS: &str = "settings";
pub(super) const OPTIONS: &str = "options";
pub(super) const CERTIFICATES: &str = "certificates";
pub(super) const PORTS: &str = "ports";
pub(super) const PATHS: &str = "paths";
pub(super) const SOCKET: &str = "socket";
pub(super) const PODS_DIR: &str = "pods-dir";
pub(super) const STATE_DIR: &str = "state-dir";
pub(super) const JOURNAL: &str = "journal";
pub(super) const DISK: &str = "disk";
pub(super) const RIGHTS: &str = "node-rights";
pub(super) const TUNNEL: &str = "tunnel";
pub(super) const UNDERLAY: &str = "underlay";
pub(super) const LIMITS: &str = "limits";
pub(super) const GATEWAY: &str = "gateway";
pub(super) const CLUSTER: &str = "cluster";
pub(super) const GUEST: &str = "guest";
pub(super) const PROVIDER: &str = "provider";

/// Every check of this program, in the order of the report. A provider adds its own to the last ones.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: SETTINGS,
        when: When::Always,
        what: "every option and variable, of the daemon and of the provider: known, given where it is required, of the \
               expected form, in range, and without effect",
    },
    Check {
        name: OPTIONS,
        when: When::Always,
        what: "options together: those that contradict each other, that make each other useless, or that can never let a \
               pod start",
    },
    Check {
        name: CERTIFICATES,
        when: When::Asked,
        what: "`-ca-cert-file`, `-cert-file`, `-cert-key`: the files can be read and are PEM, the key fits the \
               certificate, each certificate is valid today and for two weeks, is meant for clients, and the key is \
               private",
    },
    Check {
        name: PATHS,
        when: When::Always,
        what: "paths together: absolute, none used for two things, and short enough for the sockets in them (107 bytes)",
    },
    Check {
        name: SOCKET,
        when: When::Always,
        what: "the folder of `-socket` is there or can be made, and nothing is in the way of the socket",
    },
    Check {
        name: PODS_DIR,
        when: When::Always,
        what: "`-pods-dir` is there or can be made, and can be written to",
    },
    Check {
        name: STATE_DIR,
        when: When::Always,
        what: "`-state-dir` is there or can be made, can be written to, by nobody else, and outlives the daemon's \
               container; a running daemon that holds it is told and is no failure",
    },
    Check {
        name: JOURNAL,
        when: When::Always,
        what: "the journal in it, if no daemon holds it, can be read by this version",
    },
    Check { name: DISK, when: When::Always, what: "what is free where the journal is: 16 MiB are needed" },
    Check {
        name: PORTS,
        when: When::Always,
        what: "the addresses of metrics and probe are this node's, free, and not the same; no program has the UDP port of \
               the tunnels, which is outside of the range that the kernel gives to others",
    },
    Check {
        name: LIMITS,
        when: When::Always,
        what: "open files and network namespaces suffice for as many pods as `-peerpods-limit-per-node` allows",
    },
    Check {
        name: UNDERLAY,
        when: When::Always,
        what: "the node has a default route, and the interface of the tunnels is there, up, and has an address",
    },
    Check {
        name: RIGHTS,
        when: When::Always,
        what: "`CAP_NET_ADMIN` for tunnels and `CAP_SYS_ADMIN` to enter the pods' network namespaces",
    },
    Check {
        name: TUNNEL,
        when: When::Always,
        what: "a tunnel of the chosen kind is made as for a pod, between two namespaces that nobody else sees and that go \
               with the check. For `vxlan` the kernel needs `vxlan`, `sch_ingress`, `cls_u32`, `act_mirred`, `nf_tables` \
               and `nft_ct`; what is a module is loaded, as by the first pod",
    },
    Check {
        name: GATEWAY,
        when: When::Asked,
        what: "a peerpod-gateway answers at `-gateway-socket`, and speaks a level of the protocol that this version speaks",
    },
    Check {
        name: CLUSTER,
        when: When::Asked,
        what: "the files that say where the API server is can be read and make sense; with `-live` it answers, knows this \
               node and the records of pod VMs, and lets the daemon read what it needs",
    },
    Check {
        name: PROVIDER,
        when: When::Live,
        what: "the provider can be made, and can do what the options ask of it: a second interface, calls in clear",
    },
    Check {
        name: GUEST,
        when: When::Live,
        what: "the user data of a pod with these options, init-data included, is not more than the provider takes",
    },
];

/// Returns the checks as a table of a page.
pub fn table() -> String {
    let mut text = "| check | when | what is looked at |\n| --- | --- | --- |\n".to_owned();
    for check in CHECKS {
        text.push_str(&format!("| `{}` | {} | {} |\n", check.name, check.when.words(), check.what));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_checks_are_unique_and_their_cells_stay_in_the_table() {
        let names: std::collections::BTreeSet<_> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
        assert!(
            CHECKS.iter().all(|check| !check.what.contains('|') && !check.what.contains("  ")),
            "{}",
            table()
        );
    }
}

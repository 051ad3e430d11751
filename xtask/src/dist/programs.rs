//! What ships: the programs, and the images of containers that some of them go into.

use anyhow::{Result, ensure};
use cargo_metadata::Metadata;

use crate::bundle;

/// A program of a release.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Program {
    /// Its name.
    pub(crate) name: &'static str,
    /// The package it comes from.
    pub(crate) package: &'static str,
    /// The arguments with which it prints its version.
    pub(crate) version: &'static str,
}

const fn program(name: &'static str, package: &'static str, version: &'static str) -> Program {
    Program { name, package, version }
}

/// Every program that may ship; one whose package is not in the workspace yet is left out.
const PROGRAMS: &[Program] = &[
    program("cloud-api-adaptor", "caa", "version"),
    program("caactl", "caa", "--version"),
    program("peerpod-gateway", "peerpod-gateway", "--version"),
    program("agent-protocol-forwarder", "podvm", "--version"),
    program("process-user-data", "podvm", "--version"),
    program("peerpod-ctrl", "peerpod-ctrl", "--version"),
    program("testbed", "testbed-cli", "--version"),
];

/// Programs that do not ship, with the reason.
const NOT_SHIPPED: &[(&str, &str)] = &[
    ("local-rootless", "is for trying the provider `local` from a clone, which builds it"),
    ("podvm-init", "is part of the images that `cargo xtask podvm build` makes, and of no other"),
    ("test-agent", "plays the agent in tests"),
    ("xtask", "is the project's own tool"),
];

/// The image of a container: the programs in it, and who runs them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    /// Its name; the first program of the same name is started.
    pub(crate) name: &'static str,
    /// Programs in it.
    pub(crate) programs: &'static [&'static str],
    /// User and group that it runs as.
    pub(crate) user: &'static str,
    /// Why this user, as lines of a comment.
    pub(crate) why: &'static [&'static str],
}

/// The user that has no rights, by the number that images without a shell commonly give it.
const NOBODY: &str = "65532:65532";

/// The images. The programs of the guest go into images of machines, and into no container.
const IMAGES: &[Image] = &[
    Image {
        name: "cloud-api-adaptor",
        programs: &["cloud-api-adaptor", "caactl"],
        user: "0:0",
        why: &[
            "The daemon enters the network namespaces of pods (CAP_SYS_ADMIN), makes tunnels and traffic rules in them",
            "(CAP_NET_ADMIN), and serves sockets that only root may use: no other user can do that.",
        ],
    },
    Image {
        name: "peerpod-gateway",
        programs: &["peerpod-gateway"],
        user: "0:0",
        why: &[
            "The sockets lie in folders that the daemon makes for root alone, so the gateway is root as well.",
            "It needs no capability: drop all of them.",
        ],
    },
    Image {
        name: "peerpod-ctrl",
        programs: &["peerpod-ctrl"],
        user: NOBODY,
        why: &["The controller speaks to the API server and to the cloud, and needs no right on the node."],
    },
];

/// Returns the programs of this workspace that ship.
///
/// # Errors
///
/// When a program of the workspace is neither shipped nor left out with a reason.
pub(crate) fn shipped(metadata: &Metadata) -> Result<Vec<Program>> {
    let mut there = Vec::new();
    for package in metadata.workspace_packages() {
        for bin in package.targets.iter().filter(bundle::is_bin) {
            let ours = PROGRAMS.iter().find(|one| one.name == bin.name && *package.name == one.package);
            there.extend(ours);
            ensure!(
                ours.is_some()
                    || NOT_SHIPPED.iter().any(|(name, _)| *name == bin.name)
                    || is_example(package),
                "nobody decided whether {} of {} ships: add it to xtask/src/dist/programs.rs",
                bin.name,
                package.name
            );
        }
    }
    Ok(PROGRAMS.iter().filter(|program| there.contains(program)).copied().collect())
}

/// Returns the images that can be made of these programs.
pub(crate) fn images(programs: &[Program]) -> impl Iterator<Item = (&'static Image, Vec<Program>)> {
    IMAGES.iter().filter_map(|image| {
        let inside: Vec<Program> =
            programs.iter().filter(|program| image.programs.contains(&program.name)).copied().collect();
        inside.iter().any(|program| program.name == image.name).then_some((image, inside))
    })
}

/// Examples of the book are members of the workspace and ship nothing.
fn is_example(package: &cargo_metadata::Package) -> bool {
    let path = package.manifest_path.as_str();
    path.contains("/docs/examples/") || path.contains("/tests/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;

    #[test]
    fn every_program_of_the_workspace_ships_or_has_a_reason() {
        let metadata = Context::from_process().unwrap().metadata().unwrap();
        let names: Vec<&str> = shipped(&metadata).unwrap().iter().map(|program| program.name).collect();
        for name in [
            "cloud-api-adaptor",
            "caactl",
            "peerpod-gateway",
            "agent-protocol-forwarder",
            "process-user-data",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(!names.contains(&"xtask") && NOT_SHIPPED.iter().all(|(_, why)| !why.is_empty()));
    }

    #[test]
    fn an_image_is_made_when_its_own_program_is_there() {
        let of = |names: &[&str]| -> Vec<(&str, usize)> {
            let chosen: Vec<Program> =
                PROGRAMS.iter().filter(|program| names.contains(&program.name)).copied().collect();
            images(&chosen).map(|(image, inside)| (image.name, inside.len())).collect()
        };
        assert_eq!(of(&["cloud-api-adaptor"]), [("cloud-api-adaptor", 1)]);
        assert_eq!(of(&["cloud-api-adaptor", "caactl"]), [("cloud-api-adaptor", 2)]);
        assert_eq!(of(&["caactl", "agent-protocol-forwarder"]), []);
        assert!(IMAGES.iter().all(|image| !image.why.is_empty() && image.programs[0] == image.name));
    }
}

//! Which package may depend on which, and which cryptography is linked.

use std::collections::BTreeSet;

use anyhow::Result;
use cargo_metadata::{DependencyKind, Metadata, TargetKind};

use super::{Problem, Tree};
use crate::context::Context;

/// How the names of vendors' SDKs and of the libraries of clouds begin.
const SDKS: &[&str] =
    &["aws-config", "aws-sdk-", "aws-smithy-", "azure_", "bollard", "google-cloud-", "gcloud-", "virt"];

/// Crates that belong to the contract and its tools, and are no provider.
const NO_PROVIDER: &[&str] =
    &["cloud-providers", "cloud-providers-bundle", "cloud-providers-conformance", "cloud-providers-plugin"];

/// What the contract may not pull in: it stays small and knows no cloud, no cluster and no wire.
const NOT_IN_CONTRACT: &[&str] =
    &["kube", "k8s-openapi", "ttrpc", "prost", "reqwest", "hyper", "rustls", "virt"];

/// Whether a package is a provider crate.
pub(super) fn is_provider(name: &str) -> bool {
    name.starts_with("cloud-providers-") && !NO_PROVIDER.contains(&name)
}

/// Checks the direction `programs → bundle → providers → contract`.
///
/// # Errors
///
/// When `cargo tree` fails.
pub(super) fn directions(context: &Context, metadata: &Metadata) -> Result<Vec<Problem>> {
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in package.dependencies.iter().filter(|dep| dep.kind != DependencyKind::Development) {
            edges.push((package.name.to_string(), dependency.name.clone()));
        }
    }
    let mut problems = wrong_edges(&edges);
    for (from, to) in edges.iter().filter(|(from, to)| is_sdk(to) && !is_provider(from) && !is_setup(from)) {
        let mend = "only the provider of that cloud knows it: move what needs it there, behind the contract";
        problems.push(Problem::new(from, format!("depends on {to}, the SDK of a cloud"), mend));
    }
    for program in ["caa", "peerpod-ctrl", "testbed-cli"] {
        if metadata.workspace_packages().iter().any(|package| *package.name == *program) {
            let without = tree(context, &["--no-default-features", "--package", program])?;
            problems.extend(wrong_without_features(program, &without));
        }
    }
    for contract in ["cloud-providers", "cloud-providers-conformance"] {
        let unwanted = |name: &&String| {
            NOT_IN_CONTRACT.contains(&name.as_str()) || is_sdk(name) || name.starts_with("aws-")
        };
        for name in linked(context, contract)?.iter().filter(unwanted) {
            let mend = "move what needs it to a crate above the contract";
            problems.push(Problem::new(format!("crates/{contract}"), format!("pulls in {name}"), mend));
        }
    }
    Ok(problems)
}

/// Whether a package makes what tests of a cloud need around the machines, which no provider does.
fn is_setup(name: &str) -> bool {
    name.starts_with("setup-")
}

fn is_sdk(name: &str) -> bool {
    SDKS.iter().any(|sdk| if sdk.ends_with(['-', '_']) { name.starts_with(sdk) } else { name == *sdk })
}

/// A program built without features has no provider, and nothing of a cloud.
fn wrong_without_features(program: &str, linked: &BTreeSet<String>) -> Vec<Problem> {
    let unwanted = |name: &&String| is_provider(name) || is_sdk(name);
    let mend = "make it optional, behind the feature of its provider in cloud-providers-bundle";
    let what = |name: &String| format!("links {name} without being asked to");
    linked.iter().filter(unwanted).map(|name| Problem::new(program, what(name), mend)).collect()
}

/// Checks that no type of an SDK leaves its provider crate: nothing public names one.
pub(super) fn public_sdks(files: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in files.with_extension("rs") {
        let mut parts = path.iter().filter_map(|part| part.to_str());
        let in_crate = parts.next() == Some("crates") && parts.next().is_some_and(is_provider);
        if !in_crate || parts.next() != Some("src") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if let Some(word) = public_sdk(code) {
                problems.push(Problem::new(
                    format!("{}:{}", path.display(), number + 1),
                    format!("shows {word} of an SDK to other crates"),
                    "make it pub(crate), or give a type of the contract or of this crate instead",
                ));
            }
        }
    }
    problems
}

/// The crate of an SDK that a public line names.
fn public_sdk(code: &str) -> Option<&str> {
    let public = code.strip_prefix("pub ")?;
    let path = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let mut words = public.split("::").filter_map(|part| part.rsplit(path).next());
    words.find(|word| is_sdk(word) || is_sdk(&word.replace('_', "-")))
}

fn wrong_edges(edges: &[(String, String)]) -> Vec<Problem> {
    let ours = |name: &str| {
        ["caa", "podvm", "peerpod-ctrl", "peerpod-webhook", "testbed-cli"].contains(&name)
            || name.starts_with("peerpod-")
    };
    let mut problems = Vec::new();
    for (from, to) in edges {
        let what = format!("depends on {to}");
        if is_provider(from) && (is_provider(to) || ours(to) || to == "cloud-providers-bundle") {
            let mend =
                "a provider knows the contract and its own SDK only: move the shared part to cloud-providers";
            problems.push(Problem::new(from, what, mend));
        } else if from == "cloud-providers" && (to.starts_with("cloud-providers-") || ours(to)) {
            problems.push(Problem::new(from, what, "the contract depends on nothing of ours"));
        } else if is_provider(to) && from != "cloud-providers-bundle" {
            let mend = "only cloud-providers-bundle names providers: depend on it, with a feature";
            problems.push(Problem::new(from, what, mend));
        }
    }
    problems
}

/// Checks that every program links exactly one provider of cryptography for TLS.
///
/// # Errors
///
/// When `cargo tree` fails.
pub(super) fn crypto_providers(context: &Context, metadata: &Metadata) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        if !package.targets.iter().any(|target| target.kind.contains(&TargetKind::Bin)) {
            continue;
        }
        problems.extend(wrong_crypto(&package.name, &linked(context, &package.name)?));
    }
    Ok(problems)
}

fn wrong_crypto(program: &str, linked: &BTreeSet<String>) -> Option<Problem> {
    if linked.contains("ring") {
        let mend =
            format!("find who asks for it with `cargo tree -p {program} -i ring` and turn that feature off");
        return Some(Problem::new(program, "links ring beside aws-lc-rs", mend));
    }
    if linked.contains("rustls") && !linked.contains("aws-lc-rs") {
        let mend = "give rustls the feature aws_lc_rs";
        return Some(Problem::new(program, "links rustls without aws-lc-rs", mend));
    }
    None
}

/// The names of all packages that are linked into `package`, on any platform, with all of its features.
///
/// This asks `cargo tree`: the graph of `cargo metadata` also has what only tests or unused features want.
fn linked(context: &Context, package: &str) -> Result<BTreeSet<String>> {
    tree(context, &["--all-features", "--package", package])
}

fn tree(context: &Context, choice: &[&str]) -> Result<BTreeSet<String>> {
    let args = ["tree", "--locked", "-e", "normal", "--target", "all", "--prefix", "none", "--format", "{p}"];
    let tree = context.cargo().args(args).args(choice).stdout()?;
    Ok(tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
    }

    #[test]
    fn the_wanted_direction_is_fine() {
        let wanted = edges(&[
            ("caa", "cloud-providers-bundle"),
            ("caa", "peerpod-net"),
            ("cloud-providers-bundle", "cloud-providers-local"),
            ("cloud-providers-local", "cloud-providers"),
        ]);
        assert_eq!(wrong_edges(&wanted), []);
    }

    #[test]
    fn wrong_directions_are_named() {
        for edge in [
            ("cloud-providers-local", "cloud-providers-aws"),
            ("cloud-providers-local", "peerpod-net"),
            ("cloud-providers-local", "cloud-providers-bundle"),
            ("caa", "cloud-providers-local"),
            ("cloud-providers", "peerpod-proto"),
        ] {
            assert_eq!(wrong_edges(&edges(&[edge])).len(), 1, "{edge:?}");
        }
    }

    #[test]
    fn sdks_stay_in_their_provider() {
        for name in ["virt", "aws-sdk-ec2", "azure_core", "google-cloud-compute-v1"] {
            assert!(is_sdk(name), "{name}");
        }
        for name in ["virtue", "aws-lc-rs", "azurite", "tokio", "cloud-providers"] {
            assert!(!is_sdk(name), "{name}");
        }
        let files = Tree::of(&[
            (
                "crates/cloud-providers-y/src/lib.rs",
                "pub use virt::domain::Domain;\npub(crate) use virt::connect::Connect;\n\
                 pub fn client() -> aws_sdk_ec2::Client {\n    pub use cloud::YCloud;\n",
            ),
            ("crates/cloud-providers-y/tests/x.rs", "pub use virt::domain::Domain;\n"),
            ("crates/caa/src/lib.rs", "pub use virt::domain::Domain;\n"),
        ]);
        let places: Vec<String> = public_sdks(&files).into_iter().map(|problem| problem.place).collect();
        assert_eq!(
            places,
            ["crates/cloud-providers-y/src/lib.rs:1", "crates/cloud-providers-y/src/lib.rs:3"]
        );
    }

    #[test]
    fn a_program_without_features_has_no_provider() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let bare = ["caa", "cloud-providers", "cloud-providers-bundle", "tokio"];
        assert_eq!(wrong_without_features("caa", &set(&bare)), []);
        assert_eq!(wrong_without_features("caa", &set(&["cloud-providers-local", "virt"])).len(), 2);
    }

    #[test]
    fn a_second_provider_of_cryptography_is_named() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert!(wrong_crypto("caa", &set(&["rustls", "aws-lc-rs"])).is_none());
        assert!(wrong_crypto("xtask", &set(&["tokio"])).is_none());
        assert!(wrong_crypto("caa", &set(&["rustls", "aws-lc-rs", "ring"])).is_some());
        assert!(wrong_crypto("caa", &set(&["rustls"])).is_some());
    }
}

//! The stages of integration tests: one for the tests of each package, and for tests of one name in several.

use std::collections::BTreeMap;
use std::num::NonZero;

use cargo_metadata::{Metadata, Package, TargetKind};

use super::Stage;
use crate::context::Context;
use crate::{kubernetes, light, podvm, programs};

/// The test that runs the conformance suite has this name in every package that has one.
const CONFORMANCE: &str = "conformance";

/// Names of tests that take minutes: each package has a stage of its own for them, so that a change in one of them does
/// not run those of all.
const LONG: &[&str] = &[CONFORMANCE, "faults"];

/// What a generated provider is put beside, and compiled with.
const NEW_PROVIDER: &[&str] = &[
    "CHANGELOG.md",
    "crates/caa/CHANGELOG.md",
    "crates/caa/Cargo.toml",
    "crates/caa/README.md",
    "crates/cloud-providers",
    "crates/cloud-providers-bundle",
    "crates/cloud-providers-conformance",
    "crates/peerpod-ctrl/CHANGELOG.md",
    "crates/peerpod-ctrl/Cargo.toml",
    "crates/peerpod-ctrl/README.md",
    "crates/testbed-cli/CHANGELOG.md",
    "crates/testbed-cli/Cargo.toml",
    "crates/testbed-cli/README.md",
    "docs/SUMMARY.md",
    "docs/providers/index.md",
];

/// The stages whose tests start a Kubernetes API server.
const CLUSTER: &[&str] =
    &["integration:caa", "integration:peerpod-api", "integration:peerpod-ctrl", "integration:test-support"];

/// One stage for the integration tests of each package that has some, one for replays of recordings, and one for each
/// name that tests of several packages have, such as that of the conformance suite: they are chosen by name.
pub(super) fn all(metadata: &Metadata) -> Vec<Stage> {
    let packages = metadata.workspace_packages();
    let names_of = |package: &Package| -> Vec<String> {
        // What is no test for cargo has a stage of its own.
        let tests = package.targets.iter().filter(|t| t.test && t.kind.contains(&TargetKind::Test));
        let light = tests.filter(|target| light::is_light(metadata, package, &target.required_features));
        light.map(|target| target.name.clone()).collect()
    };
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    for name in packages.iter().flat_map(|package| names_of(package)) {
        *count.entry(name).or_default() += 1;
    }
    let mut groups: BTreeMap<String, (Vec<String>, Vec<String>)> = BTreeMap::new();
    for package in packages {
        for test in names_of(package) {
            let name = match test.as_str() {
                long if LONG.contains(&long) => format!("{long}:{}", package.name),
                shared if count[shared] > 1 => shared.to_owned(),
                replay if replay.starts_with("replay") => format!("replay:{}", package.name),
                _ => format!("integration:{}", package.name),
            };
            let group = groups.entry(name).or_default();
            group.0.push(package.name.to_string());
            group.1.push(test);
        }
    }
    let stage = |(name, (mut packages, mut targets)): (String, (Vec<String>, Vec<String>))| {
        let conformance = name.starts_with(CONFORMANCE);
        let long = name.split_once(':').filter(|(test, _)| LONG.contains(test));
        let only = long.map(|(_, package)| package.to_owned());
        targets.sort();
        targets.dedup();
        // The daemon's tests run whole pods, whose guests are the programs that ship.
        let guests = name == "integration:caa";
        if guests {
            packages.extend(["podvm", "test-agent"].map(str::to_owned));
        }
        // The guest's tests boot an image and break the link to a gateway; the daemon's have libvirt boot it.
        let images = guests || name == "integration:podvm";
        if images {
            packages.extend(["test-agent", "xtask", "peerpod-gateway"].map(str::to_owned));
        }
        let cluster = CLUSTER.contains(&name.as_str());
        // The tasks' tests generate a provider in a copy of the workspace, and compile and run it there.
        let extra = match name.as_str() {
            "integration:xtask" => NEW_PROVIDER,
            // Tables and rules of pages are compared with the code.
            "docs" => &["docs"],
            "integration:cloud-providers" => &["docs/contract"],
            "integration:testbed" => &["docs/testbed"],
            _ => &[],
        };
        // What is built by the recipe is tested with; the other tasks have no part in it.
        let recipe = cluster.then_some(kubernetes::FILE);
        let extra = extra.iter().copied().chain(recipe).map(str::to_owned).collect();
        let work = move |context: &Context| {
            // Tests are chosen by target and not by package: choosing packages changes the features of shared
            // dependencies, and everything would be compiled once more for each of them.
            let chosen = targets.iter().flat_map(|target| ["--test", target]);
            let cargo = light::command(context, "test")?.args(chosen);
            let mut cargo = cargo.shown_env("RUST_TEST_THREADS", &at_once().to_string());
            if let Some(package) = &only {
                cargo = cargo.args(["--config".to_owned(), runner_of(&context.host()?, package)]);
            }
            if guests {
                cargo = cargo.env("PEERPOD_GUEST_DIR", programs::build_guest(context)?.folder);
            }
            if images {
                let image = podvm::build(context, &podvm::Options::default())?;
                cargo = cargo.env("PEERPOD_IMAGE", image.path);
            }
            if cluster {
                cargo = cargo.env(kubernetes::VARIABLE, kubernetes::assets(context)?);
            }
            super::tests(cargo)
        };
        Stage {
            name,
            about: if conformance { "the conformance suite" } else { "integration tests" },
            heavy: true,
            on_demand: None,
            root: true,
            packages,
            extra,
            work: Box::new(work),
            begin: None,
        }
    };
    groups.into_iter().map(stage).collect()
}

/// How many tests of a program run at once. They wait for machines, timers and each other most of the time: those of the
/// daemon need half a minute of processor time.
fn at_once() -> usize {
    3 * std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// A setting of cargo by which tests that were chosen by name run when they are those of this package.
fn runner_of(host: &str, package: &str) -> String {
    let script = format!("[ \\\"$CARGO_PKG_NAME\\\" = {package} ] || exit 0; exec \\\"$@\\\"");
    format!("target.{host}.runner = [\"sh\", \"-c\", \"{script}\", \"runner\"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_page_runs_the_tests_that_compare_it() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let stages = all(&metadata);
        let mut compared = 0;
        for package in metadata.workspace_packages() {
            for target in package.targets.iter().filter(|target| target.kind.contains(&TargetKind::Test)) {
                let source = std::fs::read_to_string(&target.src_path).unwrap();
                let pages = source.split("\"../../docs/").skip(1).filter_map(|rest| rest.split('"').next());
                for page in pages.map(|page| format!("docs/{page}")) {
                    let own = format!("integration:{}", package.name);
                    let mut stages = stages.iter().filter(|stage| {
                        stage.name == target.name || stage.name == own && target.name != "docs"
                    });
                    let covered = |stage: &Stage| {
                        stage.extra.iter().any(|extra| std::path::Path::new(&page).starts_with(extra))
                    };
                    assert!(stages.any(covered), "{}: {} reads {page}", package.name, target.name);
                    compared += 1;
                }
            }
        }
        assert!(compared >= 4, "{compared}");
    }

    #[test]
    fn who_starts_an_api_server_in_tests_is_given_one() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let stages = all(&metadata);
        let mut found = std::collections::BTreeSet::new();
        for package in metadata.workspace_packages() {
            for target in package.targets.iter().filter(|target| target.kind.contains(&TargetKind::Test)) {
                let main = target.src_path.as_std_path();
                // A test of several files has a folder of its own.
                let own = if main.ends_with("main.rs") { main.parent().unwrap() } else { main };
                let starts = |file: &std::path::PathBuf| {
                    let text = std::fs::read_to_string(context.root.join(file)).unwrap_or_default();
                    text.contains("RealCluster") || text.contains("ClusterOptions")
                };
                let files = context.files().unwrap();
                if files.iter().filter(|file| context.root.join(file).starts_with(own)).any(starts) {
                    let alone = format!("integration:{}", package.name);
                    let stage = stages.iter().find(|stage| stage.name == target.name);
                    found.insert(stage.map_or(alone, |stage| stage.name.clone()));
                }
            }
        }
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), CLUSTER);
    }

    #[test]
    fn tests_of_one_name_are_one_stage_with_all_their_packages() {
        // Stages choose tests by name alone: elsewhere they would run twice, and for the inputs of one package only.
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let stages = all(&metadata);
        let pages = stages.iter().find(|stage| stage.name == "docs").unwrap();
        for package in ["caa", "cloud-providers-libvirt", "cloud-providers-local"] {
            assert!(pages.packages.contains(&package.to_owned()), "{:?}", pages.packages);
        }
        let alone = stages.iter().filter(|stage| stage.name.contains(':'));
        for stage in alone.filter(|stage| !stage.name.ends_with(":caa") && !stage.name.ends_with(":podvm")) {
            assert!(stage.packages.iter().all(|package| *package == stage.packages[0]), "{}", stage.name);
        }
    }

    #[test]
    fn a_long_test_of_one_package_runs_alone() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let stages = all(&metadata);
        for provider in ["conformance", "libvirt", "local"] {
            let package = format!("cloud-providers-{provider}");
            let stage = stages.iter().find(|stage| stage.name == format!("{CONFORMANCE}:{package}")).unwrap();
            assert_eq!(stage.packages, [package]);
        }
        // The setting is read by the shell as it is written here.
        let setting: toml::Table = runner_of("here", "b").parse().unwrap();
        let runner: Vec<&str> = setting["target"]["here"]["runner"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| w.as_str().unwrap())
            .collect();
        for (package, said) in [("b", "ran\n"), ("a", "")] {
            let mut run = std::process::Command::new(runner[0]);
            let out =
                run.args(&runner[1..]).args(["echo", "ran"]).env("CARGO_PKG_NAME", package).output().unwrap();
            assert!(out.status.success());
            assert_eq!(String::from_utf8_lossy(&out.stdout), said);
        }
    }
}

//! The stages of the test, fast to slow.

mod integration;

use std::time::Duration;

use anyhow::Result;
use cargo_metadata::{Metadata, Package, TargetKind};

use crate::campaign::sim;
use crate::command::{Beside, Run};
use crate::context::Context;
use crate::inputs::Inputs;
use crate::machines::Provider;
use crate::test::count;
use crate::{
    bench, book, bundle, check_targets, demo, deny, dist, e2e, features, fuzz, kubernetes, light, limits,
    outside, podvm, programs, release, tidy,
};

/// No stage may take longer; a machine without any cache needs about a third of it for the slowest.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Does what a stage is for and returns a few words on it.
type Work = Box<dyn Fn(&Context) -> Result<String>>;

/// One stage.
pub(crate) struct Stage {
    /// What it is called.
    pub(crate) name: String,
    /// What it does, in a few words.
    pub(crate) about: &'static str,
    /// Whether it runs only when its inputs changed.
    pub(crate) heavy: bool,
    /// Why it runs with `--all` or by its name only; nothing for a stage that every run has.
    pub(crate) on_demand: Option<&'static str>,
    /// Whether it needs root.
    pub(crate) root: bool,
    /// The packages it depends on, when it is heavy.
    pub(crate) packages: Vec<String>,
    /// Files and folders beside those packages that it depends on.
    pub(crate) extra: Vec<String>,
    /// Does it.
    pub(crate) work: Work,
    /// Begins it beside the heavy stages before it; then `work` is for a run that has begun nothing.
    pub(crate) begin: Option<fn(&Context) -> Result<Beside>>,
}

/// Returns every stage in the order in which they run.
pub(crate) fn all(metadata: &Metadata) -> Vec<Stage> {
    let mut stages = vec![
        light("fmt", "rustfmt finds nothing to change", |context| {
            visible(context.cargo().args(["fmt", "--all", "--check"]))
        }),
        light("tidy", "layout, docs, faults, rules, dependency directions", tidy::stage),
        light("clippy", "no warning in any target", |context| {
            visible(light::command(context, "clippy")?.args(["--all-targets", "--", "-D", "warnings"]))
        }),
        light("unit", "unit tests of every package", |context| {
            tests(light::command(context, "test")?.args(["--lib", "--bins"]))
        })
        .needing_root(),
        light("doc", "examples in the documentation", |context| {
            tests(light::command(context, "test")?.arg("--doc"))
        }),
        light("campaign-sim", "the life of sandboxes under simulated faults", |context| {
            sim::stage(context, sim::NODE)
        }),
        light("rustdoc", "the documentation builds without a warning", |context| {
            let cargo = light::command(context, "doc")?.args(["--no-deps", "--document-private-items"]);
            visible(cargo.shown_env("RUSTDOCFLAGS", "-D warnings"))
        }),
        light("book", "the book builds, and every link in it leads somewhere", book::stage),
        light(
            "deny",
            "licences, sources, banned dependencies, and advisories where a database is given",
            deny::stage,
        ),
        light("release", "versions, requirements and changelogs of the packages", release::stage),
    ];
    stages.extend(integration::all(metadata));
    stages.extend(sdks(metadata));
    stages.push(
        heavy("guest", "the programs of the guest link statically", &["podvm", "test-agent"], |context| {
            programs::build_guest(context).map(|guest| guest.summary())
        })
        .without_root(),
    );
    let packages =
        ["caa", "peerpod-ctrl", "peerpod-gateway", "podvm", "testbed-cli", "fuzz-support", "xtask"];
    let about = "light programs for aarch64 and s390x; codecs and names tested under emulation";
    let why = "everything is compiled once more for each architecture";
    let targets = heavy("check-targets", about, &packages, check_targets::stage);
    stages.push(targets.without_root().on_demand(why));
    let packages = choosers(metadata);
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    let about = "programs with no, each and all light providers; a forgotten one is refused";
    stages.push(heavy("features", about, &packages, features::stage).without_root());
    let about = "every program alone with each provider, those with the SDK of a vendor, too";
    let why = "an SDK of a vendor takes many minutes and gigabytes to build";
    stages.push(heavy("features-heavy", about, &packages, features::stage_all).without_root().on_demand(why));
    stages.push(archives(metadata));
    let about = "a project outside the workspace builds from published packages";
    let why = "it builds every dependency once more";
    let packages = ["minimal-provider", "cloud-providers-libvirt", "podvm", "xtask"];
    stages.push(heavy("outside", about, &packages, outside::stage).on_demand(why));
    let about = "numbers of packages against xtask/limits.toml";
    stages.push(heavy("limits", about, &["caa", "xtask"], limits::stage).without_root());
    let about = "sizes of programs as they ship against xtask/limits.toml";
    let why = "optimised builds of every program take many minutes";
    stages.push(heavy("sizes", about, &["caa", "xtask"], limits::stage_all).without_root().on_demand(why));
    let about = "two programs as they ship, with bills of materials and containers";
    let why = "optimised builds of what ships take ten minutes";
    let packages = ["caa", "peerpod-ctrl", "peerpod-gateway", "xtask"];
    stages.push(heavy("dist", about, &packages, dist::stage).on_demand(why));
    let packages = ["caa", "peerpod-ctrl", "peerpod-gateway", "podvm", "xtask"];
    let about = "everything that ships, built twice with the same bytes";
    let why = "two optimised builds of everything take half an hour";
    stages.push(heavy("dist-twice", about, &packages, dist::stage_twice).on_demand(why));
    let programs = ["caa", "peerpod-gateway", "podvm", "test-agent", "xtask"];
    for (provider, name, about) in [
        (Provider::Local, "demo", "one pod from first call to last trace"),
        (Provider::Libvirt, "demo-libvirt", "the same with virtual machines and a second disk"),
    ] {
        let packages = [programs.as_slice(), provider.packages()].concat();
        stages.push(heavy(name, about, &packages, move |context| demo::stage(context, provider)));
    }
    let packages = [programs.as_slice(), Provider::Local.packages()].concat();
    let about = "the demo of an ordinary user, in namespaces of its own";
    stages.push(heavy("demo-rootless", about, &packages, demo::rootless_stage));
    for (provider, name, about) in [
        (
            Provider::Local,
            "e2e",
            "a pod on a worker machine from a reservation, the assessments, nothing left",
        ),
        (Provider::Libvirt, "e2e-libvirt", "the same on a virtual machine"),
    ] {
        let packages = [programs.as_slice(), provider.packages(), &["e2e", "testbed-cli"]].concat();
        let stage = heavy(name, about, &packages, move |context| e2e::worker::stage(context, provider));
        stages.push(Stage { extra: vec!["tests/setups".to_owned()], ..stage });
    }
    stages.extend(over_ec2());
    let packages = [programs.as_slice(), Provider::Local.packages()].concat();
    let about = "the daemon is killed at random moments under running pods";
    stages.push(heavy("campaign", about, &packages, crate::campaign::stage));
    let about = "controllers and daemons of a cluster under simulated faults";
    let cluster =
        heavy("campaign-cluster", about, &["peerpod-ctrl"], |context| sim::stage(context, sim::CLUSTER));
    stages.push(cluster.without_root());
    let packages =
        [programs.as_slice(), Provider::Local.packages(), &["peerpod-api", "peerpod-ctrl"]].concat();
    let about = "daemon, controllers and API server are killed while pods come and go";
    let together = heavy("together", about, &packages, crate::campaign::together::stage);
    stages.push(together.built_by(kubernetes::FILE));
    let fuzzed = fuzz::packages(metadata);
    let fuzzed: Vec<&str> = fuzzed.iter().map(String::as_str).collect();
    let about = "hostile input for every reader of it, a minute each";
    // Some are tests of packages whose other tests need root.
    let fuzzing = heavy("fuzz", about, &fuzzed, |context| ended(fuzz::begin(context)?));
    stages.push(Stage { begin: Some(fuzz::begin), ..fuzzing });
    let why = "it takes many minutes, and every run has a shorter one";
    let about = "the same with more pods and kills";
    let more = heavy("together-more", about, &packages, crate::campaign::together::stage_all);
    stages.push(more.built_by(kubernetes::FILE).on_demand(why));
    let about = "5,000 records deleted on an API server, with faults";
    let scale = heavy("scale", about, &["peerpod-api", "peerpod-ctrl", "test-support"], scale);
    stages.push(scale.built_by(kubernetes::FILE).without_root().on_demand(why));
    let about = "more seeds of the simulated faults";
    let why = "every run has the first seeds";
    for (name, packages, simulation) in [
        ("campaign-sim-more", &["caa"], sim::NODE),
        ("campaign-cluster-more", &["peerpod-ctrl"], sim::CLUSTER),
    ] {
        let more = heavy(name, about, packages, move |context| sim::stage_all(context, simulation));
        stages.push(more.without_root().on_demand(why));
    }
    let about =
        "the image with a whole system: built twice with the same bytes, booted to an agent that answers";
    let why = "it installs packages and boots a whole system under emulation, ten minutes";
    stages.push(heavy("debian", about, &["podvm", "test-agent", "xtask"], debian).on_demand(why));
    let about = "time and memory of 200 machines on this host, for information";
    let many = heavy("machines-200", about, &["testbed"], many).on_demand("every run makes a few of them");
    stages.push(many);
    for (provider, name) in [(Provider::Local, "bench"), (Provider::Libvirt, "bench-libvirt")] {
        let packages = [programs.as_slice(), provider.packages()].concat();
        let about = "a short benchmark, for information";
        let why = "what is measured must be optimised, which takes minutes to build";
        let bench = heavy(name, about, &packages, move |context| bench::start::stage(context, provider));
        stages.push(bench.on_demand(why));
    }
    let about = "a short benchmark of the way between shim and agent, for information";
    let why = "what is measured must be optimised, which takes minutes to build";
    let packages = ["path-bench", "peerpod-gateway", "podvm", "xtask"];
    stages.push(heavy("bench-path", about, &packages, bench::path::stage).on_demand(why));
    stages
}

/// What runs programs with the SDK of EC2 against its emulator. All but the last are compiled with the tests of the SDK.
fn over_ec2() -> Vec<Stage> {
    let packages = ["cloud-providers-aws", "setup-aws", "storm", "xtask"];
    let about = "100 instances of EC2's emulator under faults leave nothing; calls are counted";
    let storm = |name: &str, about, pods: &'static str| {
        heavy(name, about, &packages, move |context| crate::storm::stage_aws(context, pods)).without_root()
    };
    let why = "the emulator takes minutes for so many";
    let storms = [
        storm("storm-aws", about, "100"),
        storm("storm-aws-more", "the same with 500 instances", "500").on_demand(why),
    ];
    let about = "network, image and a pod VM, made and deleted on EC2's emulator";
    let packages = [packages.as_slice(), &["podvm", "test-agent"]].concat();
    let rehearsal = heavy("e2e-aws", about, &packages, e2e::stage).without_root();
    let about = "the daemon against EC2's emulator, up to the address that nobody answers at";
    let why = "it compiles the SDK once more, for the daemon";
    let packages = ["caa", "cloud-providers-aws", "fault-proxy", "peerpod-gateway", "xtask"];
    let demo = heavy("demo-aws", about, &packages, demo::aws::stage).on_demand(why);
    storms.into_iter().chain([rehearsal, demo]).collect()
}

/// What is packed follows from the manifests alone, so that they are its inputs and not all that is compiled for it.
fn archives(metadata: &Metadata) -> Stage {
    let about = "every packed package builds outside of the workspace";
    let manifests = metadata.workspace_packages().into_iter().filter_map(|package| {
        let manifest = package.manifest_path.strip_prefix(&metadata.workspace_root).ok()?;
        Some(manifest.to_string())
    });
    let extra = manifests.chain(["Cargo.lock".to_owned()]).collect();
    Stage { extra, ..heavy("archives", about, &[], release::archives_stage).without_root() }
}

/// One stage for each SDK of a vendor: the tests of its provider, and of what stands on that, compiled together, so that
/// the SDK is compiled once.
fn sdks(metadata: &Metadata) -> Vec<Stage> {
    let stage = |provider: &String, whole: bool| {
        let group = crate::sdk::group(metadata, provider);
        let chosen = group.clone();
        let work = move |context: &Context| {
            let mut cargo =
                context.cargo().args(["test", "--locked", "--all-features", "--lib", "--bins", "--tests"]);
            for package in &chosen {
                cargo = cargo.args(["--package", package]);
            }
            tests(linted(if whole { cargo } else { cargo.shown_env(SHORT_CONFORMANCE, "1") }))
        };
        let packages: Vec<&str> = group.iter().map(String::as_str).collect();
        let about = "clippy and tests with the SDK of a vendor";
        let name = if whole { format!("sdk-whole:{provider}") } else { format!("sdk:{provider}") };
        let stage = heavy(&name, about, &packages, work);
        if whole {
            stage.on_demand("all rules against an emulator take ten minutes; every run has some")
        } else {
            stage
        }
    };
    let providers = crate::sdk::providers(metadata);
    providers.iter().flat_map(|provider| [stage(provider, false), stage(provider, true)]).collect()
}

/// Suites that ask an emulator keep to a part of their cases when it is set.
const SHORT_CONFORMANCE: &str = "CLOUD_PROVIDERS_SHORT_CONFORMANCE";

/// Lets clippy compile the packages of the workspace, warnings being errors.
///
/// `cargo clippy` would compile the SDK a second time, since what it makes of dependencies is for looking only. In the
/// place of the compiler clippy makes the same as that, and dependencies stay those of the compiler.
fn linted(run: Run) -> Run {
    run.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver")
        .env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__")
}

fn light(name: &str, about: &'static str, work: impl Fn(&Context) -> Result<String> + 'static) -> Stage {
    let work = Box::new(work);
    Stage {
        name: name.to_owned(),
        about,
        heavy: false,
        on_demand: None,
        root: false,
        packages: vec![],
        extra: vec![],
        work,
        begin: None,
    }
}

fn heavy(
    name: &str,
    about: &'static str,
    packages: &[&str],
    work: impl Fn(&Context) -> Result<String> + 'static,
) -> Stage {
    let packages = packages.iter().map(|package| (*package).to_owned()).collect();
    Stage { heavy: true, root: true, packages, ..light(name, about, work) }
}

impl Stage {
    /// The hash of all that it depends on.
    ///
    /// # Errors
    ///
    /// As [`Inputs::hash`].
    pub(crate) fn hash(&self, inputs: &Inputs<'_>) -> Result<String> {
        let packages: Vec<&str> = self.packages.iter().map(String::as_str).collect();
        let extra: Vec<&str> = self.extra.iter().map(String::as_str).collect();
        inputs.hash(&packages, &extra)
    }

    fn needing_root(self) -> Self {
        Self { root: true, ..self }
    }

    /// Adds a file that it depends on, too.
    fn built_by(mut self, file: &str) -> Self {
        self.extra.push(file.to_owned());
        self
    }

    fn on_demand(self, why: &'static str) -> Self {
        Self { on_demand: Some(why), ..self }
    }

    fn without_root(self) -> Self {
        Self { root: false, ..self }
    }
}

/// The packages with programs that choose among the providers, and the task that looks at them.
fn choosers(metadata: &Metadata) -> Vec<String> {
    let chooses = |package: &&&Package| {
        package.targets.iter().any(|target| target.kind.contains(&TargetKind::Bin))
            && package.publish.as_ref().is_none_or(|registries| !registries.is_empty())
            && package.dependencies.iter().any(|dependency| dependency.name == bundle::BUNDLE)
    };
    let packages = metadata.workspace_packages();
    let mut names: Vec<String> =
        packages.iter().filter(chooses).map(|package| package.name.to_string()).collect();
    names.push("xtask".to_owned());
    names
}

fn visible(run: Run) -> Result<String> {
    run.visible(LIMIT).map(|_| String::new())
}

fn tests(run: Run) -> Result<String> {
    count::summary(&run.visible(LIMIT)?)
}

/// Waits for the end of what was begun beside other stages; its last line is its summary.
///
/// # Errors
///
/// When it failed.
pub(crate) fn ended(beside: Beside) -> Result<String> {
    Ok(beside.finish(LIMIT)?.pop().unwrap_or_default())
}

/// The test of many records with as many as it is about; the tests of its package have fewer.
fn scale(context: &Context) -> Result<String> {
    let cargo =
        light::command(context, "test")?.args(["--test", "api_server", "--", "--nocapture", "scale::"]);
    let cargo = cargo.env(kubernetes::VARIABLE, kubernetes::assets(context)?);
    tests(cargo.shown_env("PEERPOD_SCALE", "5000"))
}

/// The image with a whole system.
fn debian(context: &Context) -> Result<String> {
    let options = podvm::Options { flavour: podvm::Flavour::Debian, ..podvm::Options::default() };
    let image = podvm::build(context, &options)?;
    let same = podvm::twice(context)?;
    let cargo = light::command(context, "test")?.args(["--test", "debian", "--", "--nocapture"]);
    let passed = tests(cargo.env("PEERPOD_DEBIAN_IMAGE", image.path))?;
    Ok(format!("{passed}; {same}"))
}

/// Many machines at once; the tests of their package make a few.
fn many(context: &Context) -> Result<String> {
    visible(light::command(context, "test")?.args(["--test", "machines", "--", "--machines", "200"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_names_are_unique_and_heavy_ones_name_packages() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let stages = all(&metadata);
        let names: std::collections::BTreeSet<&str> =
            stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names.len(), stages.len());
        for stage in stages.iter().filter(|stage| stage.heavy) {
            assert!(!stage.packages.is_empty() || !stage.extra.is_empty(), "{}", stage.name);
        }
    }

    #[test]
    fn every_integration_test_belongs_to_a_stage() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let stages: Vec<Stage> = integration::all(&metadata).into_iter().chain(sdks(&metadata)).collect();
        for package in metadata.workspace_packages() {
            // What is no test for cargo has a stage of its own.
            let has = package.targets.iter().any(|t| t.test && t.kind.contains(&TargetKind::Test));
            let staged = stages.iter().any(|stage| stage.packages.contains(&package.name.to_string()));
            // A stage may depend on packages without such tests.
            assert!(staged || !has, "{}", package.name);
        }
    }

    #[test]
    fn no_light_test_has_the_name_of_one_with_an_sdk() {
        // Cargo refuses a choice by name when a package of that choice lacks the feature for its test of that name.
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let mut light = std::collections::BTreeSet::new();
        let mut with_sdk = std::collections::BTreeSet::new();
        for package in metadata.workspace_packages() {
            for target in package.targets.iter().filter(|target| target.kind.contains(&TargetKind::Test)) {
                let is_light = light::is_light(&metadata, package, &target.required_features);
                let names = if is_light { &mut light } else { &mut with_sdk };
                names.insert(target.name.clone());
            }
        }
        let both: Vec<&String> = light.intersection(&with_sdk).collect();
        assert!(both.is_empty() && !with_sdk.is_empty(), "rename one of each: {both:?}");
    }
}

//! The stages of the test, fast to slow.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use cargo_metadata::{Metadata, Package, TargetKind};

use crate::command::Run;
use crate::context::Context;
use crate::machines::Provider;
use crate::test::count;
use crate::{
    bench, bundle, demo, deny, dist, features, limits, outside, podvm, programs, release, tidy, tools,
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
}

/// Returns every stage in the order in which they run.
pub(crate) fn all(metadata: &Metadata) -> Vec<Stage> {
    let mut stages = vec![
        light("fmt", "rustfmt finds nothing to change", |context| {
            visible(context.cargo().args(["fmt", "--all", "--check"]))
        }),
        light("tidy", "layout, docs, faults, rules, dependency directions", tidy::stage),
        light("clippy", "no warning in any target", |context| {
            visible(workspace(context, "clippy").args(["--all-targets", "--", "-D", "warnings"]))
        }),
        light("unit", "unit tests of every package", |context| {
            tests(workspace(context, "test").args(["--lib", "--bins"]))
        })
        .needing_root(),
        light("doc", "examples in the documentation", |context| {
            tests(workspace(context, "test").arg("--doc"))
        }),
        light("campaign-sim", "the life of sandboxes under simulated faults", crate::campaign::sim::stage),
        light("rustdoc", "the documentation builds without a warning", |context| {
            let cargo = workspace(context, "doc").args(["--no-deps", "--document-private-items"]);
            visible(cargo.shown_env("RUSTDOCFLAGS", "-D warnings"))
        }),
        light("book", "the book builds", book),
        light(
            "deny",
            "licences, sources, banned dependencies, and advisories where a database is given",
            deny::stage,
        ),
        light("release", "versions, requirements and changelogs of the packages", release::stage),
    ];
    stages.extend(integration(metadata));
    stages.push(
        heavy("guest", "the programs of the guest link statically", &["podvm", "test-agent"], |context| {
            programs::build_guest(context).map(|guest| guest.summary())
        })
        .without_root(),
    );
    let packages = choosers(metadata);
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    let about = "each provider alone, none and all light ones; a forgotten provider is refused";
    stages.push(heavy("features", about, &packages, features::stage).without_root());
    let about = "providers with the SDK of a vendor, alone and together";
    let why = "an SDK of a vendor takes many minutes and gigabytes to build";
    stages.push(heavy("features-heavy", about, &packages, features::stage_all).without_root().on_demand(why));
    stages.push(archives(metadata));
    let about = "a project outside the workspace builds from published packages";
    let why = "it builds every dependency once more";
    let packages = ["minimal-provider", "cloud-providers-libvirt", "podvm", "xtask"];
    stages.push(heavy("outside", about, &packages, outside::stage).on_demand(why));
    let about = "sizes of programs and numbers of packages against xtask/limits.toml";
    stages.push(heavy("limits", about, &["caa", "xtask"], limits::stage).without_root());
    let about = "two programs as they ship, with bills of materials and containers";
    stages.push(heavy("dist", about, &["caa", "peerpod-gateway", "xtask"], dist::stage));
    let packages = ["caa", "peerpod-gateway", "podvm", "xtask"];
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
    let about = "the daemon is killed at random moments under running pods";
    stages.push(heavy("campaign", about, &packages, crate::campaign::stage));
    let about = "more seeds of the simulated faults";
    let why = "every run has the first seeds";
    let more = heavy("campaign-sim-more", about, &["caa"], crate::campaign::sim::stage_all);
    stages.push(more.without_root().on_demand(why));
    for (provider, name) in [(Provider::Local, "bench"), (Provider::Libvirt, "bench-libvirt")] {
        let packages = [programs.as_slice(), provider.packages()].concat();
        let about = "a short benchmark, for information";
        stages.push(heavy(name, about, &packages, move |context| bench::stage(context, provider)));
    }
    stages
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

/// The beginning of a cargo command for every package with every feature.
///
/// All stages choose the same: other packages or features would compile shared dependencies once more.
fn workspace(context: &Context, command: &str) -> Run {
    context.cargo().args([command, "--locked", "--workspace", "--all-features"])
}

/// The test that runs the conformance suite has this name in every package that has one.
const CONFORMANCE: &str = "conformance";

/// What a generated provider is put beside, and compiled with.
const NEW_PROVIDER: &[&str] = &[
    "CHANGELOG.md",
    "crates/caa/CHANGELOG.md",
    "crates/caa/Cargo.toml",
    "crates/caa/README.md",
    "crates/cloud-providers",
    "crates/cloud-providers-bundle",
    "crates/cloud-providers-conformance",
    "docs/SUMMARY.md",
    "docs/providers/index.md",
];

/// One stage for the integration tests of each package that has some, one for replays of recordings, and one for each
/// name that tests of several packages have, such as that of the conformance suite: they are chosen by name.
fn integration(metadata: &Metadata) -> Vec<Stage> {
    let packages = metadata.workspace_packages();
    let names_of = |package: &Package| -> Vec<String> {
        // What is no test for cargo has a stage of its own.
        let tests = package.targets.iter().filter(|t| t.test && t.kind.contains(&TargetKind::Test));
        tests.map(|target| target.name.clone()).collect()
    };
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    for name in packages.iter().flat_map(|package| names_of(package)) {
        *count.entry(name).or_default() += 1;
    }
    let mut groups: BTreeMap<String, (Vec<String>, Vec<String>)> = BTreeMap::new();
    for package in packages {
        for test in names_of(package) {
            let name = match test.as_str() {
                shared if count[shared] > 1 || shared == CONFORMANCE => shared.to_owned(),
                replay if replay.starts_with("replay") => format!("replay:{}", package.name),
                _ => format!("integration:{}", package.name),
            };
            let group = groups.entry(name).or_default();
            group.0.push(package.name.to_string());
            group.1.push(test);
        }
    }
    let stage = |(name, (mut packages, mut targets)): (String, (Vec<String>, Vec<String>))| {
        let conformance = name == CONFORMANCE;
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
        // The tasks' tests generate a provider in a copy of the workspace, and compile and run it there.
        let extra = match name.as_str() {
            "integration:xtask" => NEW_PROVIDER,
            // Tables and rules of pages are compared with the code.
            "docs" => &["docs"],
            "integration:cloud-providers" => &["docs/contract"],
            _ => &[],
        };
        let extra = extra.iter().map(|path| (*path).to_owned()).collect();
        let work = move |context: &Context| {
            // Tests are chosen by target and not by package: choosing packages changes the features of shared
            // dependencies, and everything would be compiled once more for each of them.
            let chosen = targets.iter().flat_map(|target| ["--test", target]);
            let mut cargo = workspace(context, "test").args(chosen);
            if guests {
                cargo = cargo.env("PEERPOD_GUEST_DIR", programs::build_guest(context)?.folder);
            }
            if images {
                let image = podvm::build(context, &podvm::Options::default())?;
                cargo = cargo.env("PEERPOD_IMAGE", image.path);
            }
            tests(cargo)
        };
        Stage {
            name,
            about: if conformance { "the conformance suite on every provider" } else { "integration tests" },
            heavy: true,
            on_demand: None,
            root: true,
            packages,
            extra,
            work: Box::new(work),
        }
    };
    groups.into_iter().map(stage).collect()
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
    fn needing_root(self) -> Self {
        Self { root: true, ..self }
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

fn book(context: &Context) -> Result<String> {
    let mdbook = tools::install(context, &tools::MDBOOK)?;
    let out = context.target.join("book");
    visible(context.program(mdbook).args(["build", "docs", "--dest-dir"]).arg(out))
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
        let stages = integration(&metadata);
        for package in metadata.workspace_packages() {
            let has = package.targets.iter().any(|target| target.kind.contains(&TargetKind::Test));
            let staged = stages.iter().any(|stage| stage.packages.contains(&package.name.to_string()));
            // A stage may depend on packages without such tests.
            assert!(staged || !has, "{}", package.name);
        }
    }

    #[test]
    fn a_changed_page_runs_the_tests_that_compare_it() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let stages = integration(&metadata);
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
    fn tests_of_one_name_are_one_stage_with_all_their_packages() {
        // Stages choose tests by name alone: elsewhere they would run twice, and for the inputs of one package only.
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let stages = integration(&metadata);
        let suite = stages.iter().find(|stage| stage.name == CONFORMANCE).unwrap();
        for provider in ["conformance", "libvirt", "local"] {
            assert!(suite.packages.contains(&format!("cloud-providers-{provider}")), "{:?}", suite.packages);
        }
        let alone = stages.iter().filter(|stage| stage.name.contains(':'));
        for stage in alone.filter(|stage| !stage.name.ends_with(":caa") && !stage.name.ends_with(":podvm")) {
            assert!(stage.packages.iter().all(|package| *package == stage.packages[0]), "{}", stage.name);
        }
    }
}

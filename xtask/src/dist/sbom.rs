//! What is in a program, as CycloneDX: every package that is linked, with licence and checksum, and who depends on whom.
//!
//! Written from what `cargo tree` says of exactly the features and the target that were built. The known tools describe
//! packages and not programs, with the features of the whole workspace put together, and write beside the manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use cargo_metadata::Metadata;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::build::{Builder, Built};
use super::programs::Program;
use crate::command::Run;
use crate::context::Context;

/// Between the fields of a line of `cargo tree`; no name, licence or address has it.
const FIELD: char = '|';

/// A package, as `cargo tree` prints it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Component {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Its licence, as an expression.
    pub(crate) licence: String,
    repository: String,
    features: String,
}

/// The graph of packages from which a program is made.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// All packages by `name@version`.
    pub(crate) components: BTreeMap<String, Component>,
    /// Who depends on whom.
    edges: BTreeMap<String, BTreeSet<String>>,
    /// The packages whose code is in the program; the others only took part in its making.
    pub(crate) linked: BTreeSet<String>,
    root: String,
}

impl Graph {
    /// Asks cargo.
    ///
    /// # Errors
    ///
    /// When `cargo tree` fails.
    pub(crate) fn read(
        context: &Context,
        builder: &Builder,
        package: &str,
        features: &[String],
    ) -> Result<Self> {
        let tree = |edges: &str| {
            let fields = ["{p}", "{l}", "{r}", "{f}"].join(&FIELD.to_string());
            let args = ["tree", "--locked", "--prefix", "depth", "--edges", edges, "--package", package];
            let run = builder.cargo(context).args(args).args(["--target", &builder.triple]);
            run.args(["--format", &format!("{FIELD}{fields}")]).args(features).stdout()
        };
        let mut graph = Self::parse(&tree("normal,build")?)?;
        graph.linked = Self::parse(&tree("normal,no-proc-macro")?)?.components.into_keys().collect();
        Ok(graph)
    }

    fn parse(tree: &str) -> Result<Self> {
        let mut graph = Self::default();
        let mut path: Vec<String> = Vec::new();
        for line in tree.lines().filter(|line| !line.is_empty()) {
            let wrong = || format!("`cargo tree` printed a line that is not understood: {line:?}");
            let mut fields = line.trim_end_matches(" (*)").split(FIELD);
            let mut next = || fields.next().with_context(wrong);
            let depth: usize = next()?.parse().with_context(wrong)?;
            let mut words = next()?.split_whitespace();
            let name = words.next().with_context(wrong)?.to_owned();
            let version = words.next().with_context(wrong)?.trim_start_matches('v').to_owned();
            let key = format!("{name}@{version}");
            path.truncate(depth);
            if let Some(parent) = path.last() {
                graph.edges.entry(parent.clone()).or_default().insert(key.clone());
            } else {
                graph.root.clone_from(&key);
            }
            path.push(key.clone());
            // Packages of old wrote a slash for a choice of licences.
            let licence = next()?.replace('/', " OR ");
            let (repository, features) = (next()?.to_owned(), next()?.to_owned());
            let component = Component { name, version, licence, repository, features };
            graph.components.entry(key).or_insert(component);
        }
        Ok(graph)
    }
}

/// Writes the bill of materials of a program.
///
/// # Errors
///
/// When the lock file cannot be read.
pub(crate) fn write(
    context: &Context,
    metadata: &Metadata,
    builder: &Builder,
    program: Program,
    built: &Built,
    graph: &Graph,
) -> Result<String> {
    let checksums = checksums(&builder.root.join("Cargo.lock"))?;
    let ours: BTreeSet<String> =
        metadata.workspace_packages().iter().map(|one| format!("{}@{}", one.name, one.version)).collect();
    let mut components: Vec<Value> = Vec::new();
    for (key, component) in graph.components.iter().filter(|(key, _)| **key != graph.root) {
        let mut value = component.describe(ours.contains(key), graph.linked.contains(key));
        if let Some(checksum) = checksums.get(key) {
            value["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        components.push(value);
    }
    let mut edges = graph.edges.clone();
    for system in system_components(context, builder, built) {
        let key = system["bom-ref"].as_str().unwrap_or_default().to_owned();
        edges.entry(graph.root.clone()).or_default().insert(key);
        components.push(system);
    }
    let mut described = graph.components[&graph.root].describe(true, true);
    let bytes =
        std::fs::read(&built.path).with_context(|| format!("cannot read {}", built.path.display()))?;
    described["type"] = json!("application");
    described["name"] = json!(program.name);
    described["hashes"] = json!([{ "alg": "SHA-256", "content": hex(&Sha256::digest(bytes)) }]);
    for (name, value) in [("target", builder.triple.as_str()), ("package", program.package)] {
        let properties = described["properties"].as_array_mut().context("a component has properties")?;
        properties.push(json!({ "name": format!("cargo:{name}"), "value": value }));
    }
    let dependencies: Vec<Value> = components
        .iter()
        .filter_map(|component| component["bom-ref"].as_str())
        .chain([graph.root.as_str()])
        .map(|key| json!({ "ref": key, "dependsOn": edges.get(key).cloned().unwrap_or_default() }))
        .collect();
    let mut bom = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": timestamp(builder.epoch)?,
            "tools": { "components": [
                { "type": "application", "name": "cargo xtask dist", "version": env!("CARGO_PKG_VERSION") },
            ] },
            "component": described,
        },
        "components": components,
        "dependencies": dependencies,
    });
    // A number of its own for each content, and the same for the same content.
    bom["serialNumber"] = json!(serial(&Sha256::digest(bom.to_string())));
    Ok(format!("{}\n", serde_json::to_string_pretty(&bom)?))
}

impl Component {
    fn describe(&self, ours: bool, linked: bool) -> Value {
        let key = format!("{}@{}", self.name, self.version);
        let mut value = json!({
            "type": "library",
            "bom-ref": key,
            "name": self.name,
            "version": self.version,
            // What only took part in the making, such as macros, is told as not in the program.
            "scope": if linked { "required" } else { "excluded" },
            "purl": format!("pkg:cargo/{key}"),
            "properties": [{ "name": "cargo:features", "value": self.features }],
        });
        if ours {
            let properties = value["properties"].as_array_mut().expect("just made");
            properties.push(json!({ "name": "cargo:workspace-member", "value": "true" }));
        }
        if !self.licence.is_empty() {
            value["licenses"] = json!([{ "expression": self.licence }]);
        }
        if !self.repository.is_empty() {
            value["externalReferences"] = json!([{ "type": "vcs", "url": self.repository }]);
        }
        value
    }
}

/// What is linked and comes from no package of cargo: the standard library, and the C library of this machine.
fn system_components(context: &Context, builder: &Builder, built: &Built) -> Vec<Value> {
    let system = |name: &str, version: &str, licence: &str, scope: &str| {
        let key = format!("system/{name}@{version}");
        let mut value = json!({
            "type": "library", "bom-ref": key, "name": name, "version": version, "scope": scope,
            "purl": format!("pkg:generic/{name}@{version}"),
        });
        if !licence.is_empty() {
            value["licenses"] = json!([{ "expression": licence }]);
        }
        value
    };
    let release = context.rustc.lines().find_map(|line| line.strip_prefix("release: ")).unwrap_or("unknown");
    let mut found = vec![system("rust-std", release, "MIT OR Apache-2.0", "required")];
    if built.needs.loader.is_none() && builder.triple.ends_with("-gnu") {
        let glibc = Run::new("getconf").arg("GNU_LIBC_VERSION").stdout().unwrap_or_default();
        let version = glibc.split_whitespace().nth(1).unwrap_or("unknown").to_owned();
        found.push(system("glibc", &version, "LGPL-2.1-or-later", "required"));
        let gcc = Run::new("gcc").arg("-dumpfullversion").stdout().unwrap_or_default();
        let gcc = if gcc.trim().is_empty() { "unknown" } else { gcc.trim() };
        found.push(system("libgcc", gcc, "GPL-3.0-or-later WITH GCC-exception-3.1", "required"));
    } else if builder.triple.ends_with("-musl") {
        found.push(system("musl", &format!("of-rust-{release}"), "MIT", "required"));
    }
    // Libraries that the machine must have are named; their version is that of the machine.
    let libraries = built.needs.libraries.iter().chain(&built.needs.loads);
    found.extend(libraries.map(|name| system(name, "any", "", "optional")));
    found
}

/// Reads the checksums of packages by `name@version`.
fn checksums(lock: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let lock: toml::Table = text.parse().context("Cargo.lock does not parse")?;
    let packages =
        lock.get("package").and_then(toml::Value::as_array).context("Cargo.lock has no package")?;
    let entry = |package: &toml::Value| {
        let text = |key: &str| package.get(key).and_then(toml::Value::as_str);
        Some((format!("{}@{}", text("name")?, text("version")?), text("checksum")?.to_owned()))
    };
    Ok(packages.iter().filter_map(entry).collect())
}

/// A version 8 UUID: made from a hash.
fn serial(hash: &[u8]) -> String {
    let mut bytes: [u8; 16] = std::array::from_fn(|index| hash[index]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let text = hex(&bytes);
    let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
    format!("urn:uuid:{}", parts.join("-"))
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Unix seconds as a date and time in UTC.
///
/// # Errors
///
/// When the year is beyond what dates are written for.
fn timestamp(seconds: u64) -> Result<String> {
    let time = time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds)?)?;
    let (hour, minute, second) = time.to_hms();
    Ok(format!("{}T{hour:02}:{minute:02}:{second:02}Z", time.date()))
}

#[cfg(test)]
mod tests {
    use cyclonedx_bom::prelude::*;

    use super::*;
    use crate::podvm::elf::Needs;

    fn made() -> (String, Graph) {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let builder = Builder::new(&context, &metadata).unwrap();
        let features = ["--no-default-features", "--features", "local"].map(str::to_owned);
        let graph = Graph::read(&context, &builder, "caa", &features).unwrap();
        let built = Built { path: std::env::current_exe().unwrap(), needs: Needs::default() };
        let program = Program { name: "cloud-api-adaptor", package: "caa", version: "version" };
        (write(&context, &metadata, &builder, program, &built, &graph).unwrap(), graph)
    }

    #[test]
    fn an_independent_reader_accepts_the_bill_of_materials() {
        let (text, graph) = made();
        let bom = Bom::parse_from_json_v1_5(text.as_bytes()).unwrap();
        let result = bom.validate_version(SpecVersion::V1_5);
        assert!(result.passed(), "{result:?}");
        let components = bom.components.unwrap().0;
        assert!(components.len() >= graph.components.len(), "{}", components.len());
        assert_eq!(bom.metadata.unwrap().component.unwrap().name.to_string(), "cloud-api-adaptor");
        // Every package of the registry has the checksum of the lock file.
        let value: Value = serde_json::from_str(&text).unwrap();
        for component in value["components"].as_array().unwrap() {
            let ours = component["properties"].to_string().contains("workspace-member");
            let system = component["bom-ref"].as_str().unwrap().starts_with("system/");
            assert_eq!(component.get("hashes").is_none(), ours || system, "{component}");
            assert!(component.get("licenses").is_some(), "{component}");
        }
    }

    #[test]
    fn exactly_what_was_built_is_listed() {
        let (text, graph) = made();
        let has = |name: &str| graph.components.values().any(|component| component.name == name);
        assert!(has("cloud-providers-local") && has("rustls") && has("cc"));
        for unwanted in ["cloud-providers-libvirt", "virt", "proptest", "test-support"] {
            assert!(!has(unwanted), "{unwanted}");
        }
        let linked = |name: &str| graph.linked.iter().any(|key| key.starts_with(&format!("{name}@")));
        assert!(linked("rustls") && linked("cloud-providers-local"));
        assert!(!linked("cc") && !linked("syn"));
        assert!(text.contains("glibc") || text.contains("musl"), "a static program contains its C library");
    }

    #[test]
    fn the_same_content_has_the_same_number_and_another_has_another() {
        let ((one, _), (two, _)) = (made(), made());
        assert!(one == two);
        assert_ne!(serial(&Sha256::digest("a")), serial(&Sha256::digest("b")));
        assert_eq!(&serial(&Sha256::digest("a"))[23..24], "8");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(timestamp(0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_786_061).unwrap(), "2000-02-29T01:01:01Z");
        assert!(timestamp(u64::MAX).is_err());
    }
}

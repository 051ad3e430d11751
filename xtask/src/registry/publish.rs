//! What `cargo publish` sends, and what a registry refuses of it.

use std::collections::BTreeMap;

use cargo_metadata::semver::{Version, VersionReq};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::entry::{Dependency, Entry};

/// How an index of crates.io may be called in a dependency.
const CRATES_IO: &[&str] =
    &["https://github.com/rust-lang/crates.io-index", "sparse+https://index.crates.io/"];

/// crates.io accepts no larger archive.
pub(super) const LARGEST: usize = 10 * 1024 * 1024;

/// An upload that is well formed.
#[derive(Debug)]
pub(super) struct Upload<'a> {
    pub(super) entry: Entry,
    pub(super) archive: &'a [u8],
}

/// The metadata before the archive. Fields that no registry needs are left out.
#[derive(Deserialize)]
struct NewCrate {
    name: String,
    vers: String,
    deps: Vec<NewDependency>,
    features: BTreeMap<String, Vec<String>>,
    description: Option<String>,
    license: Option<String>,
    license_file: Option<String>,
    links: Option<String>,
    rust_version: Option<String>,
}

#[derive(Deserialize)]
struct NewDependency {
    name: String,
    version_req: String,
    features: Vec<String>,
    optional: bool,
    default_features: bool,
    target: Option<String>,
    kind: String,
    registry: Option<String>,
    explicit_name_in_toml: Option<String>,
}

/// Takes an upload apart: length and metadata, length and archive, numbers with the lowest byte first.
///
/// # Errors
///
/// A sentence for the one who publishes.
pub(super) fn read(body: &[u8]) -> Result<Upload<'_>, String> {
    let (metadata, rest) = piece(body, "metadata")?;
    let (archive, rest) = piece(rest, "archive")?;
    if !rest.is_empty() {
        return Err(format!("{} bytes follow the archive", rest.len()));
    }
    if archive.len() > LARGEST {
        return Err(format!("max upload size is: {LARGEST}, and the archive has {} bytes", archive.len()));
    }
    if !archive.starts_with(&[0x1f, 0x8b]) {
        return Err(
            "uploaded tarball is malformed or too large when decompressed: it is not compressed by gzip"
                .into(),
        );
    }
    let new: NewCrate =
        serde_json::from_slice(metadata).map_err(|error| format!("invalid upload request: {error}"))?;
    Ok(Upload { entry: check(new, archive)?, archive })
}

fn piece<'a>(bytes: &'a [u8], what: &str) -> Result<(&'a [u8], &'a [u8]), String> {
    let short = || format!("invalid upload request: it ends within the {what}");
    let (length, rest) = bytes.split_first_chunk().ok_or_else(short)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| short())?;
    rest.split_at_checked(length).ok_or_else(short)
}

fn check(new: NewCrate, archive: &[u8]) -> Result<Entry, String> {
    check_name("crate", &new.name)?;
    Version::parse(&new.vers)
        .map_err(|error| format!("\"{}\" is an invalid semver version: {error}", new.vers))?;
    let is_empty = |field: &Option<String>| field.as_deref().is_none_or(|text| text.trim().is_empty());
    let mut missing = Vec::new();
    if is_empty(&new.description) {
        missing.push("description");
    }
    if is_empty(&new.license) && is_empty(&new.license_file) {
        missing.push("license");
    }
    if !missing.is_empty() {
        return Err(format!("missing or empty metadata fields: {}", missing.join(", ")));
    }
    let deps = new.deps.into_iter().map(dependency).collect::<Result<_, _>>()?;
    let entry = Entry {
        name: new.name,
        vers: new.vers,
        deps,
        cksum: hex(&Sha256::digest(archive)),
        features: BTreeMap::new(),
        features2: BTreeMap::new(),
        yanked: false,
        links: new.links,
        rust_version: new.rust_version,
        v: 1,
    };
    Ok(entry.with_features(new.features))
}

fn dependency(new: NewDependency) -> Result<Dependency, String> {
    check_name("dependency", &new.name)?;
    let requirement = VersionReq::parse(&new.version_req)
        .map_err(|error| format!("\"{}\" is an invalid version requirement: {error}", new.version_req))?;
    if requirement == VersionReq::STAR {
        return Err(format!(
            "wildcard (`*`) dependency constraints are not allowed on crates.io. Crate with this problem: `{}`",
            new.name
        ));
    }
    // This registry stands in for crates.io; another one is refused there as well.
    if let Some(other) = new.registry.filter(|url| !CRATES_IO.contains(&url.as_str())) {
        return Err(format!("dependency `{}` is hosted on another registry: {other}", new.name));
    }
    let renamed = new.explicit_name_in_toml;
    Ok(Dependency {
        package: renamed.is_some().then(|| new.name.clone()),
        name: renamed.unwrap_or(new.name),
        req: new.version_req,
        features: new.features,
        optional: new.optional,
        default_features: new.default_features,
        target: new.target,
        kind: new.kind,
        registry: None,
    })
}

/// Refuses what crates.io does not accept as a name.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let wrong = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > 64 {
        "it has more than 64 characters".to_owned()
    } else if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        "the first character must be an ASCII letter".to_owned()
    } else if let Some(c) = name.chars().find(|c| !allowed(*c)) {
        format!("the character `{c}` is none of ASCII letters, digits, `-` and `_`")
    } else {
        return Ok(());
    };
    Err(format!("invalid {what} name `{name}`: {wrong}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata() -> serde_json::Value {
        json!({
            "name": "shelf", "vers": "1.2.3", "features": { "default": ["dep:x"] },
            "description": "A shelf.", "license": "MIT", "license_file": null, "links": "shelf",
            "rust_version": "1.95",
            "deps": [{
                "name": "wood", "version_req": "^1", "features": ["oak"], "optional": true,
                "default_features": false, "target": "cfg(unix)", "kind": "normal",
                "registry": CRATES_IO[0], "explicit_name_in_toml": "x",
            }],
        })
    }

    fn body(metadata: &serde_json::Value, archive: &[u8]) -> Vec<u8> {
        let metadata = metadata.to_string();
        let mut body = u32::try_from(metadata.len()).unwrap().to_le_bytes().to_vec();
        body.extend(metadata.as_bytes());
        body.extend(u32::try_from(archive.len()).unwrap().to_le_bytes());
        body.extend(archive);
        body
    }

    const ARCHIVE: &[u8] = &[0x1f, 0x8b, 8, 0];

    #[test]
    fn a_renamed_dependency_has_both_names_and_no_registry() {
        let body = body(&metadata(), ARCHIVE);
        let upload = read(&body).unwrap();
        assert_eq!(upload.archive, ARCHIVE);
        let entry = upload.entry;
        assert_eq!((entry.links.as_deref(), entry.rust_version.as_deref()), (Some("shelf"), Some("1.95")));
        assert_eq!(entry.features2["default"], ["dep:x"]);
        assert_eq!(entry.cksum.len(), 64);
        let dependency = &entry.deps[0];
        assert_eq!((dependency.name.as_str(), dependency.package()), ("x", "wood"));
        assert_eq!(dependency.registry, None);
        assert!(dependency.optional && !dependency.default_features);
    }

    #[test]
    fn what_crates_io_refuses_is_refused() {
        let dep = "/deps/0";
        for (place, value, part) in [
            ("/name", json!("9lives"), "ASCII letter"),
            ("/name", json!("a b"), "invalid crate name `a b`"),
            ("/name", json!("x".repeat(65)), "64"),
            ("/vers", json!("1.2"), "invalid semver version"),
            ("/description", json!(" "), "description"),
            ("/license", json!(null), "license"),
            (&format!("{dep}/version_req"), json!("*"), "`wood`"),
            (&format!("{dep}/version_req"), json!("one"), "\"one\""),
            (&format!("{dep}/registry"), json!("https://example.org/index"), "example.org"),
            ("/deps", json!(null), "invalid upload request"),
        ] {
            let mut changed = metadata();
            *changed.pointer_mut(place).unwrap() = value;
            let error = read(&body(&changed, ARCHIVE)).unwrap_err();
            assert!(error.contains(part), "{place}: {error}");
        }
    }

    #[test]
    fn an_upload_that_is_cut_or_too_long_is_refused() {
        let whole = body(&metadata(), ARCHIVE);
        for length in [0, 3, 4, 50, whole.len() - 1] {
            assert!(read(&whole[..length]).unwrap_err().contains("ends within"), "{length}");
        }
        assert!(read(&[whole.as_slice(), b"x"].concat()).unwrap_err().contains("1 bytes follow"));
        assert!(read(&body(&metadata(), b"text")).unwrap_err().contains("gzip"));
    }
}

//! Init-data: a small TOML document whose hash can be bound to the hardware.

use std::io::ErrorKind;

use anyhow::{Context, Result};
use cloud_providers::initdata::{AA, CDH, InitData, POLICY};
use tracing::{info, warn};

use super::files;
use crate::paths::{self, Paths};

/// Digest of the init-data that stands in when a pod brings none. Its bytes are fixed, so that verifiers know it.
pub const DEFAULT_DIGEST: &str = "adb48cc14fea9403d3d51f3b5f5068fd4d80445a14e94f1b3d5dbabaad66478d";

/// Checks the encoded form.
pub(super) fn check(encoded: &str) -> Result<()> {
    Ok(InitData::decode(encoded).map(|_| ())?)
}

/// Writes the files of the init-data and its digest; answers the digest.
pub(super) fn unpack(paths: &Paths) -> Result<String> {
    let source = paths.at(paths::INITDATA);
    let (initdata, given) = match std::fs::read_to_string(&source) {
        Ok(encoded) => (InitData::decode(&encoded).with_context(|| source.display().to_string())?, true),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            info!("no init-data was given, using the built-in one");
            (InitData::default_document(), false)
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", source.display())),
    };
    for (name, text) in initdata.files() {
        let path = match name {
            AA => paths::AA_CONFIG,
            CDH => paths::CDH_CONFIG,
            POLICY => paths::POLICY,
            _ => continue,
        };
        // The attestation agent starts when its configuration appears, and everything else waits for it. So there is
        // always one: that of the init-data, else that of the user data, else an empty one.
        if name == AA && !(given && initdata.has_aa()) && paths.at(path).is_file() {
            continue;
        }
        files::write(paths, path, text.as_bytes())?;
    }
    for name in initdata.ignored() {
        warn!(name, "init-data may not write this file, skipped");
    }
    let digest = initdata.digest();
    files::write(paths, paths::INITDATA_DIGEST, digest.as_bytes())?;
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use base64::Engine as _;

    use super::*;

    fn encode(toml: &str) -> String {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(toml.as_bytes()).unwrap();
        base64::engine::general_purpose::STANDARD.encode(encoder.finish().unwrap())
    }

    fn unpacked(encoded: Option<&str>) -> (tempfile::TempDir, Paths, Result<String>) {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        std::fs::create_dir_all(paths.at(paths::PEERPOD_DIR)).unwrap();
        if let Some(encoded) = encoded {
            std::fs::write(paths.at(paths::INITDATA), encoded).unwrap();
        }
        let digest = unpack(&paths);
        (root, paths, digest)
    }

    fn read(paths: &Paths, path: &str) -> String {
        std::fs::read_to_string(paths.at(path)).unwrap()
    }

    #[test]
    fn without_init_data_the_built_in_one_is_used_with_its_known_digest() {
        let (_root, paths, digest) = unpacked(None);
        assert_eq!(digest.unwrap(), DEFAULT_DIGEST);
        assert_eq!(read(&paths, paths::INITDATA_DIGEST), DEFAULT_DIGEST);
        assert_eq!(read(&paths, paths::AA_CONFIG), "");
    }

    #[test]
    fn allowed_files_are_written_and_others_are_not() {
        let toml = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"aa.toml\" = \"a\"\n\"cdh.toml\" = \"c\"\n\
                    \"policy.rego\" = \"p\"\n\"../evil\" = \"e\"\n\"apf.json\" = \"x\"\n";
        let (root, paths, digest) = unpacked(Some(&encode(toml)));
        digest.unwrap();
        assert_eq!(read(&paths, paths::AA_CONFIG), "a");
        assert_eq!(read(&paths, paths::CDH_CONFIG), "c");
        assert_eq!(read(&paths, paths::POLICY), "p");
        assert!(!paths.at(paths::APF_CONFIG).exists());
        assert!(!root.path().join("run/evil").exists());
    }

    #[test]
    fn init_data_without_aa_toml_still_starts_the_attestation_agent() {
        let toml = "algorithm = \"sha384\"\nversion = \"0.1.0\"\n[data]\n\"policy.rego\" = \"p\"\n";
        let (_root, paths, digest) = unpacked(Some(&encode(toml)));
        assert_eq!(digest.unwrap().len(), 96);
        assert_eq!(read(&paths, paths::AA_CONFIG), "");
    }

    #[test]
    fn an_aa_toml_of_the_user_data_stays_when_init_data_has_none() {
        let toml = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n";
        for encoded in [None, Some(encode(toml))] {
            let root = tempfile::tempdir().unwrap();
            let paths = Paths::new(root.path());
            files::write(&paths, paths::AA_CONFIG, b"from user data").unwrap();
            if let Some(encoded) = encoded {
                files::write(&paths, paths::INITDATA, encoded.as_bytes()).unwrap();
            }
            unpack(&paths).unwrap();
            assert_eq!(read(&paths, paths::AA_CONFIG), "from user data");
        }
    }

    #[test]
    fn the_digest_covers_the_text_as_it_was_packed_for_every_algorithm() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/go-golden/initdata");
        let text = std::fs::read_to_string(format!("{golden}/0.in")).unwrap();
        let summary = std::fs::read_to_string(format!("{golden}/summary.txt")).unwrap();
        for algorithm in ["sha256", "sha384", "sha512"] {
            let prefix = format!("digest {algorithm} of case-0 text with that algorithm: ");
            let line = summary.lines().find_map(|l| l.strip_prefix(&prefix)).unwrap();
            let expected = line.split(' ').next().unwrap();
            let changed = text.replace("sha384", algorithm);
            let (_root, _, digest) = unpacked(Some(&encode(&changed)));
            assert_eq!(digest.unwrap(), expected);
        }
    }

    #[test]
    fn the_go_encoding_and_line_breaks_in_it_are_read() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/go-golden/initdata");
        let encoded = std::fs::read_to_string(format!("{golden}/0.out")).unwrap();
        let folded = format!("{}\r\n{}\n", &encoded[..40], &encoded[40..]);
        assert_eq!(unpacked(Some(&folded)).2.unwrap(), unpacked(Some(&encoded)).2.unwrap());
    }

    #[test]
    fn wrong_version_algorithm_and_shape_are_errors_that_say_what_is_wrong() {
        for (toml, word) in [
            ("algorithm = \"sha256\"\nversion = \"0.2.0\"\n", "version"),
            ("algorithm = \"SHA256\"\nversion = \"0.1.0\"\n", "algorithm"),
            ("version = \"0.1.0\"\n", "algorithm"),
            ("algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\nx = 3\n", "init-data"),
        ] {
            let error = format!("{:#}", unpacked(Some(&encode(toml))).2.unwrap_err());
            assert!(error.contains(word), "{error}");
        }
        assert!(format!("{:#}", unpacked(Some("!!")).2.unwrap_err()).contains("base64"));
        assert!(format!("{:#}", unpacked(Some("aGVsbG8=")).2.unwrap_err()).contains("gzip"));
    }
}

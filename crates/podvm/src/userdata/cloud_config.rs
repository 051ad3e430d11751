//! The `#cloud-config` document: `write_files` with `path` and `content`, nothing else.

use std::borrow::Cow;
use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use cloud_providers::cloud_config::CloudConfig;
use flate2::read::GzDecoder;

use super::{MAX_USER_DATA, initdata};
use crate::paths;

/// The files user data may write; all others are logged and left out.
pub const ALLOWED_FILES: &[&str] = &[
    paths::AA_CONFIG,
    paths::CDH_CONFIG,
    paths::APF_CONFIG,
    paths::AUTH_JSON,
    paths::INITDATA,
    paths::SCRATCH_MARKER,
];

/// Reads a document, unpacking it first when it is gzip.
///
/// # Errors
///
/// Truncated or oversized gzip, text that is not UTF-8, YAML with any other key than `write_files`, `path` and
/// `content`.
pub(super) fn parse(bytes: &[u8]) -> Result<CloudConfig> {
    Ok(CloudConfig::parse(std::str::from_utf8(&plain(bytes)?).context("not UTF-8 text")?)?)
}

/// Unpacks user data that was compressed on its way.
pub(super) fn plain(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    if bytes.starts_with(&[0x1f, 0x8b]) { Ok(gunzip(bytes)?.into()) } else { Ok(bytes.into()) }
}

/// Tells whether everything a pod VM cannot do without is there and whole.
///
/// A file that is still being written is often valid YAML with a shorter list or a cut text: the forwarder's
/// configuration must be one JSON object, and init-data must unpack.
///
/// # Errors
///
/// What is missing or cut.
pub(super) fn check_complete(config: &CloudConfig) -> Result<()> {
    let Some(apf) = last(config, paths::APF_CONFIG) else {
        bail!("{} is not among the files", paths::APF_CONFIG);
    };
    check_apf(apf).context(paths::APF_CONFIG)?;
    if let Some(initdata) = last(config, paths::INITDATA) {
        let text = std::str::from_utf8(initdata).context("not text");
        text.and_then(initdata::check).context(paths::INITDATA)?;
    }
    Ok(())
}

/// A path may come twice; the last one is what the file holds in the end.
fn last<'a>(config: &'a CloudConfig, path: &str) -> Option<&'a [u8]> {
    config.write_files.iter().rev().find(|file| file.path == path).map(|file| file.content.as_slice())
}

/// Checks that the forwarder's configuration begins with one whole JSON object.
pub(super) fn check_apf(text: &[u8]) -> Result<()> {
    let first = serde_json::Deserializer::from_slice(text).into_iter::<serde_json::Value>().next();
    match first {
        Some(Ok(value)) if value.is_object() => Ok(()),
        Some(Ok(_)) => bail!("not a JSON object"),
        Some(Err(error)) => Err(error).context("not complete JSON"),
        None => bail!("empty"),
    }
}

/// Unpacks gzip within [`MAX_USER_DATA`].
fn gunzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    GzDecoder::new(bytes).take(MAX_USER_DATA + 1).read_to_end(&mut unpacked).context("broken gzip")?;
    ensure!(unpacked.len() as u64 <= MAX_USER_DATA, "more than {MAX_USER_DATA} bytes after unpacking");
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/go-golden");

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{GOLDEN}/{name}")).unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_the_go_program_writes_is_read_back() {
        for name in ["vxlan", "no-tls", "external-net", "vxlan-profile-neigh", "zero"] {
            let config = parse(&golden(&format!("cloud-config/{name}.apf-only.yaml"))).unwrap();
            let mut expected = String::from_utf8(golden(&format!("apf/{name}.json"))).unwrap();
            expected.push('\n');
            assert_eq!(config.write_files.len(), 1, "{name}");
            assert_eq!(config.write_files[0].path, paths::APF_CONFIG);
            assert_eq!(config.write_files[0].content, expected.as_bytes(), "{name}");
            check_complete(&config).unwrap();
        }
        let full = parse(&golden("cloud-config/full.yaml")).unwrap();
        check_complete(&full).unwrap();
        assert!(full.write_files.iter().any(|f| f.path == paths::SCRATCH_MARKER && f.content.is_empty()));
    }

    #[test]
    fn gzip_is_recognised_and_bounded() {
        let plain = golden("cloud-config/vxlan.apf-only.yaml");
        assert_eq!(parse(&gzip(&plain)).unwrap(), parse(&plain).unwrap());
        let cut = &gzip(&plain)[..40];
        assert!(format!("{:#}", parse(cut).unwrap_err()).contains("gzip"));
        let bomb = gzip(&vec![b'#'; MAX_USER_DATA as usize + 1]);
        assert!(format!("{:#}", parse(&bomb).unwrap_err()).contains("after unpacking"));
    }

    #[test]
    fn any_other_key_is_an_error() {
        for text in ["users: []\n", "write_files:\n- path: /a\n  owner: root\n", "write_files: 3\n", "- a\n"]
        {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn every_cut_of_a_document_is_incomplete_until_the_last_needed_line() {
        let whole = golden("cloud-config/vxlan.apf-only.yaml");
        let text = String::from_utf8(whole).unwrap();
        let last_brace = text.rfind('}').unwrap();
        for end in 0..=last_brace {
            if !text.is_char_boundary(end) {
                continue;
            }
            let cut = parse(&text.as_bytes()[..end]).and_then(|config| check_complete(&config));
            assert!(cut.is_err(), "accepted after {end} bytes");
        }
    }

    #[test]
    fn a_document_without_the_forwarder_configuration_is_incomplete() {
        for text in
            ["", "#cloud-config\n", "write_files: []\n", "write_files:\n- path: /run/peerpod/apf.json\n"]
        {
            let config = parse(text.as_bytes()).unwrap();
            assert!(format!("{:#}", check_complete(&config).unwrap_err()).contains("apf.json"), "{text:?}");
        }
    }

    #[test]
    fn cut_init_data_is_incomplete() {
        let text = "write_files:\n- path: /run/peerpod/apf.json\n  content: '{}'\n- path: /run/peerpod/initdata\n  content: H4sIAAAA\n";
        let config = parse(text.as_bytes()).unwrap();
        assert!(format!("{:#}", check_complete(&config).unwrap_err()).contains("initdata"));
    }
}

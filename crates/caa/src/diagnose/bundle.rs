//! The file with everything in it.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};

/// The folder that everything in the file lies in.
pub(super) const FOLDER: &str = "peerpod-diagnose";
/// What a key between its marks is replaced by.
const REDACTED: &str = "[a private key was here]";

/// Files by name, and what is missing.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    files: BTreeMap<String, String>,
    missing: Vec<String>,
}

impl Bundle {
    /// Adds a file. An empty one says nothing and is left out.
    pub(super) fn add(&mut self, name: impl Into<String>, text: impl Into<String>) {
        let text = text.into();
        if !text.trim().is_empty() {
            self.files.insert(name.into(), without_keys(&text));
        }
    }

    /// Adds a file of JSON.
    pub(super) fn json(&mut self, name: impl Into<String>, value: &impl serde::Serialize) {
        let name = name.into();
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.add(name, text),
            Err(error) => self.lacks(format!("{name}: {error}")),
        }
    }

    /// Notes that something is missing, and why.
    pub(super) fn lacks(&mut self, what: impl Into<String>) {
        self.missing.push(without_keys(&what.into()));
    }

    /// Says what is there and what is not.
    pub(super) fn summary(&self) -> String {
        let mut text = String::new();
        for (name, content) in &self.files {
            text += &format!("{:>9}  {name}\n", content.len());
        }
        if !self.missing.is_empty() {
            text += "\nMissing, and why:\n";
            self.missing.iter().for_each(|what| text += &format!("  {what}\n"));
        }
        text
    }

    /// Writes `<folder>/<file>…` as a compressed tar file that only its owner can read. A file that is there is left alone.
    pub(super) fn write(mut self, path: &Path) -> Result<String> {
        let summary = self.summary();
        self.files.insert("README.txt".into(), format!("{README}{summary}"));
        let named = || format!("write {} (-o)", path.display());
        let file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(named)?;
        let result = self.pack(file).with_context(named);
        if result.is_err() {
            // Half of one would be taken for a whole one.
            let _ = fs::remove_file(path);
        }
        result.map(|()| summary)
    }

    fn pack(&self, file: fs::File) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        for (name, text) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(now);
            header.set_entry_type(tar::EntryType::Regular);
            tar.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes())?;
        }
        tar.into_inner()?.finish()?.flush()?;
        Ok(())
    }
}

const README: &str = "\
What cloud-api-adaptor, its gateway and this node know of sandboxes, as `caactl diagnose` collected it.

Private keys, user data, image pull secrets, init-data and secret options are not in it. Names of pods, addresses,
routes and what guests wrote to their consoles are: look at it before you hand it on.

";

/// Replaces what lies between the marks of a private key. Nothing that is collected should have one; this is the last look.
fn without_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "PRIVATE KEY-----";
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(END) {
        let (head, tail) = rest.split_at(at + END.len());
        match head.rfind(BEGIN).filter(|begin| !head[begin + BEGIN.len()..at].contains("-----")) {
            None => clean += head,
            Some(begin) => {
                clean += &head[..begin];
                clean += REDACTED;
                // Without a second mark all that follows is the key.
                rest = tail.find(END).map_or("", |end| &tail[end + END.len()..]);
                continue;
            }
        }
        rest = tail;
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----";

    #[test]
    fn a_private_key_is_taken_out_wherever_it_stands() {
        for (text, clean) in [
            (format!("a {KEY} b {KEY}\nc"), format!("a {REDACTED} b {REDACTED}\nc")),
            (KEY.replace("PRIVATE", "EC PRIVATE"), REDACTED.to_owned()),
            (KEY[..40].to_owned(), REDACTED.to_owned()),
            ("nothing".to_owned(), "nothing".to_owned()),
        ] {
            assert_eq!(without_keys(&text), clean);
        }
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----";
        assert_eq!(without_keys(certificate), certificate);
        let both = format!("{certificate}\n{KEY}");
        assert_eq!(without_keys(&both), format!("{certificate}\n{REDACTED}"));
    }

    #[test]
    fn the_file_is_private_and_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar.gz");
        let mut bundle = Bundle::default();
        bundle.add("sandboxes/s1/log.txt", "one line");
        bundle.add("empty.txt", " \n");
        bundle.lacks("the daemon does not answer");
        let summary = bundle.write(&path).unwrap();
        assert!(
            summary.contains("log.txt") && summary.contains("does not answer") && !summary.contains("empty")
        );
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&path).unwrap()));
        let names: Vec<String> =
            tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["peerpod-diagnose/README.txt", "peerpod-diagnose/sandboxes/s1/log.txt"]);
        let again = Bundle::default().write(&path).unwrap_err();
        assert!(format!("{again:#}").contains("-o"), "{again:#}");
    }
}

//! Secrets that are planted to see whether they come out somewhere.

use std::{fmt, io::Read as _};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// How deep forms within forms are looked into: base64 of gzip of tar of JSON of base64 is four.
const DEPTH: usize = 5;
/// The most that is unpacked of one stream.
const UNPACKED: u64 = 64 << 20;
/// The shortest run that is tried as base64 or hexadecimal digits.
const RUN: usize = 16;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Planted secrets.
#[derive(Clone, Default)]
pub struct Canaries(Vec<(String, Vec<u8>)>);

impl fmt::Debug for Canaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Canaries {
    /// Makes none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a secret for `name`; it has letters, digits and dashes, so that every form of an option takes it.
    pub fn plant(&mut self, name: impl Into<String>) -> String {
        let value = crate::unique(&format!("canary{}", self.0.len()));
        self.add(name, value.as_bytes());
        value
    }

    /// Adds a secret that somebody else made, such as a key.
    ///
    /// # Panics
    ///
    /// When it is so short that it would be found everywhere.
    pub fn add(&mut self, name: impl Into<String>, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        assert!(value.len() >= 8, "a secret of {} bytes would be found by chance", value.len());
        self.0.push((name.into(), value.to_vec()));
    }

    /// Adds every line of what lies between the marks of a PEM text.
    pub fn add_pem(&mut self, name: &str, pem: &str) {
        for line in pem.lines().filter(|line| !line.starts_with("-----") && line.len() >= 24) {
            self.add(name, line);
        }
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none: a test that looks for nothing finds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names of those that are in `bytes`: as they are, as hexadecimal or decimal digits, as base64, and in
    /// streams of gzip; also within each other.
    pub fn found_in(&self, bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        self.search(bytes, DEPTH, &mut found);
        found.sort();
        found.dedup();
        found
    }

    /// Checks that nothing of them is in `bytes`.
    ///
    /// # Panics
    ///
    /// When something is, and when there is nothing to look for.
    #[track_caller]
    pub fn assert_not_in(&self, what: &str, bytes: impl AsRef<[u8]>) {
        assert!(!self.is_empty(), "nothing was planted");
        let bytes = bytes.as_ref();
        let found = self.found_in(bytes);
        assert!(
            found.is_empty(),
            "{what} shows {found:?}: {}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(8000)])
        );
    }

    fn search(&self, bytes: &[u8], depth: usize, found: &mut Vec<String>) {
        for (name, value) in &self.0 {
            if contains(bytes, value) || contains(bytes, decimal(value).as_bytes()) {
                found.push(name.clone());
            }
        }
        if depth == 0 {
            return;
        }
        for inner in gzip_streams(bytes).into_iter().chain(encoded(bytes)) {
            self.search(&inner, depth - 1, found);
        }
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Bytes as the debug form of a list of numbers has them.
fn decimal(value: &[u8]) -> String {
    value.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn gzip_streams(bytes: &[u8]) -> Vec<Vec<u8>> {
    let begins = bytes.windows(3).enumerate().filter(|(_, window)| *window == [0x1f, 0x8b, 8]);
    let unpack = |(at, _): (usize, &[u8])| {
        let mut inner = Vec::new();
        // What is cut short is looked at as far as it goes.
        let _ = flate2::read::GzDecoder::new(&bytes[at..]).take(UNPACKED).read_to_end(&mut inner);
        (!inner.is_empty()).then_some(inner)
    };
    begins.filter_map(unpack).collect()
}

/// Returns what runs of digits stand for, whole and broken into lines, with real breaks or those of JSON.
fn encoded(bytes: &[u8]) -> Vec<Vec<u8>> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Vec::new() };
    let joined: String = text.replace("\\n", "").chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let mut all = Vec::new();
    for text in [text, &joined] {
        let hex = |c: char| c.is_ascii_hexdigit();
        for run in text.split(|c| !hex(c)).filter(|run| run.len() >= RUN) {
            for from in 0..2 {
                let pairs = run.as_bytes()[from..].chunks_exact(2);
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                all.extend(pairs.map(byte).collect::<Option<Vec<u8>>>());
            }
        }
        let digit = |c: char| c.is_ascii_alphanumeric() || "+/-_".contains(c);
        for run in text.split(|c| !digit(c)).filter(|run| run.len() >= RUN) {
            let run: String = run.replace('-', "+").replace('_', "/");
            // The secret may begin in the middle of a group of digits, and other text may be in front.
            for from in 0..4.min(run.len()) {
                let run = &run[from..];
                let whole = &run[..run.len() - usize::from(run.len() % 4 == 1)];
                all.extend(BASE64.decode(whole).ok());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_form_of_a_planted_secret_is_found() {
        let mut canaries = Canaries::new();
        let value = canaries.plant("key");
        let hex: String = value.bytes().map(|b| format!("{b:02x}")).collect();
        let base64 = base64::prelude::BASE64_STANDARD.encode(format!("{{\"auth\":\"{value}\"}}"));
        let wrapped: String =
            base64.as_bytes().chunks(20).map(|c| format!("  {}\n", str::from_utf8(c).unwrap())).collect();
        let packed = gzip(format!("before {value} after").as_bytes());
        for (form, bytes) in [
            ("plain", format!("x{value}x").into_bytes()),
            ("hexadecimal", format!("id {hex}.").into_bytes()),
            ("upper case", format!("0{}", hex.to_uppercase()).into_bytes()),
            ("numbers", format!("UserData({:?})", value.as_bytes()).into_bytes()),
            ("base64", format!("a: {base64}\n").into_bytes()),
            ("base64 in lines", wrapped.into_bytes()),
            (
                "base64 in lines of JSON",
                base64
                    .as_bytes()
                    .chunks(20)
                    .map(|c| str::from_utf8(c).unwrap())
                    .collect::<Vec<_>>()
                    .join("\\n")
                    .into_bytes(),
            ),
            (
                "base64 of the middle",
                base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(format!("xy{value}")).into_bytes(),
            ),
            ("base64 after other text", format!("prefix{base64}").into_bytes()),
            ("gzip", [b"junk".as_slice(), &packed].concat()),
            ("base64 of gzip", base64::prelude::BASE64_STANDARD.encode(&packed).into_bytes()),
            ("gzip of base64 of gzip", gzip(base64::prelude::BASE64_STANDARD.encode(&packed).as_bytes())),
        ] {
            assert_eq!(canaries.found_in(&bytes), ["key"], "{form}");
        }
    }

    #[test]
    fn what_has_no_secret_is_clean() {
        let mut canaries = Canaries::new();
        let value = canaries.plant("key");
        canaries.assert_not_in("half of it", &value[..value.len() / 2]);
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEG\nCCqGSM49AwEHBG0wawIBAQQg\n-----END PRIVATE KEY-----\n";
        canaries.add_pem("pem", pem);
        assert_eq!(canaries.len(), 3);
        assert_eq!(canaries.found_in(b"...CCqGSM49AwEHBG0wawIBAQQg..."), ["pem"]);
    }

    #[test]
    #[should_panic(expected = "the log shows [\"key\"]")]
    fn a_leak_fails_the_test() {
        let mut canaries = Canaries::new();
        let value = canaries.plant("key");
        canaries.assert_not_in("the log", format!("token={value}"));
    }

    #[test]
    #[should_panic(expected = "nothing was planted")]
    fn a_test_that_plants_nothing_fails() {
        Canaries::new().assert_not_in("the log", "");
    }
}

//! Init-data: what a pod hands to the trusted side of its VM, and the digest that binds it.
//!
//! Init-data is a TOML document. It travels as base64 over gzip over its bytes, and everything that attests it hashes
//! exactly those bytes. So this type keeps the text as it came and never writes TOML itself.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use sha2::{Digest, Sha256, Sha384, Sha512};
use toml_parser::{Source, lexer::TokenKind};

use crate::{Error, Result};

/// File of the attestation agent.
pub const AA: &str = "aa.toml";
/// File of the confidential data hub.
pub const CDH: &str = "cdh.toml";
/// File of the agent's policy.
pub const POLICY: &str = "policy.rego";
/// Every name that a guest takes out of `[data]`. Others are attested, too, but not written.
pub const ALLOWED: [&str; 3] = [AA, CDH, POLICY];
/// The only version there is.
pub const VERSION: &str = "0.1.0";
/// The most bytes of TOML that are unpacked, so that a small text cannot fill the memory.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// How deep tables and lists may nest; the reader of TOML takes as many.
const MAX_DEPTH: usize = 80;
/// What a guest without init-data works with: an empty `aa.toml`.
pub const DEFAULT_TOML: &str =
    "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\n'''";

/// A hash that init-data may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Returns the word that the document uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha384, Self::Sha512].into_iter().find(|a| a.as_str() == word)
    }

    /// Returns the digest of `bytes` in lower-case hexadecimal digits.
    pub fn digest(self, bytes: &[u8]) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Self::Sha256 => hex(&Sha256::digest(bytes)),
            Self::Sha384 => hex(&Sha384::digest(bytes)),
            Self::Sha512 => hex(&Sha512::digest(bytes)),
        }
    }
}

/// A valid init-data document.
#[derive(Clone, PartialEq, Eq)]
pub struct InitData {
    algorithm: Algorithm,
    data: BTreeMap<String, String>,
    toml: String,
}

impl InitData {
    /// Reads a TOML document.
    ///
    /// Unknown keys beside `algorithm`, `version` and `data` are tolerated: the digest covers them all the same, and
    /// components in the guest may know them. A missing `[data]` is an empty one.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Config`] when it is no TOML, names no known algorithm or another version than [`VERSION`],
    /// or when a value of `[data]` is no text.
    pub fn parse(toml: impl Into<String>) -> Result<Self> {
        let toml = toml.into();
        nests_at_most(&toml, MAX_DEPTH)?;
        let document: toml::Table = toml::from_str(&toml).map_err(|e| {
            let place = e.span().map_or(0, |s| toml[..s.start.min(toml.len())].matches('\n').count() + 1);
            // Only the reason and the line: the document may hold secrets, and the full error quotes it.
            Error::config("init-data is not valid TOML").with("line", place).with("reason", e.message())
        })?;
        let mut problems = Vec::new();
        // A key of the wrong type reads as an absent one: either way the message says what must stand there.
        let word = |key: &str| document.get(key).and_then(toml::Value::as_str).unwrap_or_default().to_owned();
        let (given, version) = (word("algorithm"), word("version"));
        let algorithm = Algorithm::parse(&given);
        if algorithm.is_none() {
            problems.push(format!("algorithm is {given:?}, expected sha256, sha384 or sha512"));
        }
        if version != VERSION {
            problems.push(format!("version is {version:?}, expected \"{VERSION}\""));
        }
        let mut data = BTreeMap::new();
        match document.get("data") {
            None => {}
            Some(toml::Value::Table(table)) => {
                for (name, value) in table {
                    match value {
                        toml::Value::String(text) => {
                            data.insert(name.clone(), text.clone());
                        }
                        other => problems.push(format!(
                            "{name:?} in [data] is of type {}, expected text",
                            other.type_str()
                        )),
                    }
                }
            }
            Some(other) => problems.push(format!("data is of type {}, expected a table", other.type_str())),
        }
        match (algorithm, problems.is_empty()) {
            (Some(algorithm), true) => Ok(Self { algorithm, data, toml }),
            _ => Err(Error::config(format!("init-data is refused: {}", problems.join("; ")))),
        }
    }

    /// Reads the encoded form, see [`decode`].
    ///
    /// # Errors
    ///
    /// As [`decode`] and [`InitData::parse`].
    pub fn decode(text: &str) -> Result<Self> {
        let toml = String::from_utf8(decode(text)?).map_err(|_| Error::config("init-data is not UTF-8"))?;
        if encoded_form(&toml).is_some() {
            return Err(Error::config(
                "init-data is encoded twice: encode it once, or hand over the TOML text",
            ));
        }
        Self::parse(toml)
    }

    /// Reads either form: the TOML text, or its encoded form with or without gzip.
    ///
    /// Shims hand over both. They are told apart without guessing: a document needs at least one `key = value` or
    /// table, so no text that is base64 from end to end is one.
    ///
    /// # Errors
    ///
    /// As [`InitData::decode`] for the one form and [`InitData::parse`] for the other.
    pub fn accept(text: &str) -> Result<Self> {
        if text.len() > 2 * MAX_BYTES {
            return Err(too_large());
        }
        match encoded_form(text) {
            None => Self::parse(text),
            Some(bytes) if bytes.starts_with(&[0x1f, 0x8b]) => Self::decode(text),
            Some(bytes) => match String::from_utf8(bytes) {
                Ok(toml) => Self::parse(toml),
                Err(_) => Err(Error::config("init-data is base64, but of neither gzip nor TOML")),
            },
        }
    }

    /// Returns the document of a guest that was given none: [`DEFAULT_TOML`].
    pub fn default_document() -> Self {
        let data = BTreeMap::from([(AA.to_owned(), String::new())]);
        Self { algorithm: Algorithm::Sha256, data, toml: DEFAULT_TOML.to_owned() }
    }

    /// Returns the algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the exact text.
    pub fn toml(&self) -> &str {
        &self.toml
    }

    /// Returns the digest over the exact bytes, in lower-case hexadecimal digits.
    pub fn digest(&self) -> String {
        self.algorithm.digest(self.toml.as_bytes())
    }

    /// Returns the encoded form. The same document always gives the same text.
    pub fn encode(&self) -> String {
        encode(self.toml.as_bytes())
    }

    /// Returns the text of `name` in `[data]`.
    pub fn file(&self, name: &str) -> Option<&str> {
        self.data.get(name).map(String::as_str)
    }

    /// Returns whether the document brings an `aa.toml` of its own.
    ///
    /// Without the file the attestation agent does not start, and the VM never gets ready.
    pub fn has_aa(&self) -> bool {
        self.data.contains_key(AA)
    }

    /// Returns the files that a guest writes, always with an `aa.toml`: an empty one where the document has none.
    pub fn files(&self) -> Vec<(&'static str, &str)> {
        ALLOWED
            .into_iter()
            .filter_map(|name| match self.file(name) {
                None if name == AA => Some((name, "")),
                text => text.map(|t| (name, t)),
            })
            .collect()
    }

    /// Returns the names in `[data]` that no guest writes.
    pub fn ignored(&self) -> Vec<&str> {
        self.data.keys().map(String::as_str).filter(|name| !ALLOWED.contains(name)).collect()
    }
}

impl Default for InitData {
    fn default() -> Self {
        Self::default_document()
    }
}

impl std::fmt::Debug for InitData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Files may hold tokens: their names are enough.
        f.debug_struct("InitData")
            .field("algorithm", &self.algorithm)
            .field("names", &self.data.keys())
            .field("bytes", &self.toml.len())
            .finish()
    }
}

/// Encodes bytes as base64 over gzip, on one line and without a time stamp: equal input gives equal text.
pub fn encode(bytes: &[u8]) -> String {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(bytes).expect("writing to memory never fails");
    STANDARD.encode(gzip.finish().expect("writing to memory never fails"))
}

/// Decodes base64 over gzip. White space in the base64 text is passed over.
///
/// # Errors
///
/// [`crate::ErrorKind::Config`] when it is not base64, not gzip, cut short, or unpacks to more than [`MAX_BYTES`].
pub fn decode(text: &str) -> Result<Vec<u8>> {
    if text.len() > 2 * MAX_BYTES {
        return Err(too_large());
    }
    let packed = STANDARD
        .decode(without_space(text))
        .map_err(|e| Error::config("init-data is not base64").with_source(e))?;
    let mut bytes = Vec::new();
    MultiGzDecoder::new(packed.as_slice())
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::config("init-data is not gzip, or was cut short").with_source(e))?;
    if bytes.len() > MAX_BYTES { Err(too_large()) } else { Ok(bytes) }
}

/// Returns the bytes when `text` is base64 from end to end, which no TOML document is.
fn encoded_form(text: &str) -> Option<Vec<u8>> {
    let text = without_space(text);
    if text.is_empty() { None } else { STANDARD.decode(text).ok() }
}

fn without_space(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_whitespace()).collect()
}

fn too_large() -> Error {
    Error::config("init-data is too large").with("limit in bytes", MAX_BYTES)
}

/// Refuses a document that opens more tables and lists within each other than `most`.
///
/// The reader of TOML bounds its recursion by the tables and lists it takes for opened and closed, and miscounts where it
/// goes on after certain mistakes: some kilobytes then use up any stack and end the process. What is counted here is never
/// less than its recursion: a closing bracket counts only where it fits the last one that was opened.
fn nests_at_most(toml: &str, most: usize) -> Result<()> {
    let mut open = Vec::new();
    for token in Source::new(toml).lex() {
        let opening = match token.kind() {
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => {
                open.push(token.kind());
                if open.len() > most {
                    let line = toml[..token.span().start()].matches('\n').count() + 1;
                    return Err(Error::config(format!("init-data nests deeper than {most} levels"))
                        .with("line", line));
                }
                continue;
            }
            TokenKind::RightSquareBracket => TokenKind::LeftSquareBracket,
            TokenKind::RightCurlyBracket => TokenKind::LeftCurlyBracket,
            _ => continue,
        };
        open.pop_if(|last| *last == opening);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str =
        "algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\n\"policy.rego\" = \"package x\"\n";

    #[test]
    fn the_default_document_is_the_one_guests_make() {
        let default = InitData::default_document();
        assert_eq!(DEFAULT_TOML.len(), 66);
        assert_eq!(default.digest(), "adb48cc14fea9403d3d51f3b5f5068fd4d80445a14e94f1b3d5dbabaad66478d");
        assert_eq!(InitData::parse(DEFAULT_TOML).unwrap(), default);
    }

    #[test]
    fn what_nests_without_end_is_refused_and_ends_no_process() {
        // The first one made the reader recurse for each line, whatever its own bound.
        for line in ["a = {x = 1 [data]\n", "a = {\n", "a = [{x = [\n", "a = {x [y]\n", "a = {x = 1 [ }\n"] {
            let error = InitData::parse(format!("{PLAIN}{}", line.repeat(50_000))).unwrap_err().to_string();
            assert!(error.contains("init-data nests deeper than 80 levels"), "{line:?}: {error}");
        }
        let deep = |levels: usize| {
            format!("{PLAIN}[more]\nx = {}1{}\n", "[{y = ".repeat(levels / 2), "}]".repeat(levels / 2))
        };
        InitData::parse(deep(60)).unwrap();
        // Brackets in texts and comments are no levels.
        let text = format!("{PLAIN}[more]\nx = \"\"\"{0}\"\"\"\ny = '{0}' # {0}\n", "[{".repeat(1000));
        InitData::parse(text).unwrap();
    }

    #[test]
    fn every_form_is_accepted_and_means_the_same_bytes() {
        let expected = InitData::parse(PLAIN).unwrap();
        let encoded = encode(PLAIN.as_bytes());
        let wrapped: String = encoded.chars().enumerate().fold(String::new(), |mut s, (i, c)| {
            s.push(c);
            if i % 20 == 19 {
                s.push_str("\r\n");
            }
            s
        });
        for text in [PLAIN, &encoded, &wrapped, &STANDARD.encode(PLAIN)] {
            assert_eq!(InitData::accept(text).unwrap(), expected, "{text}");
        }
        assert_eq!(expected.encode(), encoded);
    }

    #[test]
    fn encoding_twice_is_named() {
        let twice = encode(encode(PLAIN.as_bytes()).as_bytes());
        assert!(InitData::accept(&twice).unwrap_err().to_string().contains("encoded twice"));
    }

    #[test]
    fn a_document_without_aa_is_told_and_its_files_have_one() {
        let without = InitData::parse(PLAIN).unwrap();
        assert!(!without.has_aa());
        assert_eq!(without.files(), [(AA, ""), (POLICY, "package x")]);
        assert!(InitData::default_document().has_aa());
    }

    #[test]
    fn names_outside_the_list_are_ignored_however_they_are_spelled() {
        let text = "algorithm='sha256'\nversion='0.1.0'\n[data]\n'../../etc/passwd'='x'\n'./aa.toml'='y'\n";
        let data = InitData::parse(text).unwrap();
        assert_eq!(data.files(), [(AA, "")]);
        assert_eq!(data.ignored(), ["../../etc/passwd", "./aa.toml"]);
    }

    #[test]
    fn bad_documents_name_what_to_mend() {
        for (text, part) in [
            ("algorithm = 'SHA256'\nversion = '0.1.0'", "algorithm is \"SHA256\""),
            ("version = '0.1.0'", "algorithm is \"\""),
            ("algorithm = 'md5'\nversion = '1'", "version is \"1\", expected \"0.1.0\""),
            ("algorithm = 'sha256'\n", "version is \"\""),
            ("algorithm = 'sha256'\nversion = '0.1.0'\n[data]\na = 1", "\"a\" in [data] is of type integer"),
            ("algorithm = 'sha256'\nversion = '0.1.0'\ndata = 'x'", "data is of type string"),
            ("algorithm = 'sha256'\nversion = \n", "line: 2"),
            ("", "algorithm is \"\""),
            ("####", "algorithm is \"\""),
            ("AAAA", "not valid TOML"),
            ("H4sIAAAAAAAA", "not gzip"),
            ("/////w==", "neither gzip nor TOML"),
        ] {
            let error = InitData::accept(text).unwrap_err().report();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_text_of_a_document_is_in_no_error_and_no_debug_output() {
        let broken = "algorithm = 'sha256'\nversion = '0.1.0'\n[data]\n'aa.toml' = 'canary' canary\n";
        let error = InitData::accept(broken).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        let typed = "algorithm = 'sha256'\nversion = '0.1.0'\ndata = 'canary'\n";
        assert!(!format!("{:?}", InitData::accept(typed).unwrap_err()).contains("canary"));
        let whole = InitData::parse(broken.replace(" canary", "")).unwrap();
        assert!(!format!("{whole:?}").contains("canary"));
    }

    #[test]
    fn a_bomb_is_refused_before_it_unpacks() {
        let at_limit = encode(&vec![b'x'; MAX_BYTES]);
        assert_eq!(decode(&at_limit).unwrap().len(), MAX_BYTES);
        let bomb = encode(&vec![b'x'; 2 * MAX_BYTES]);
        assert!(bomb.len() < MAX_BYTES);
        assert!(decode(&bomb).unwrap_err().to_string().contains("too large"));
        assert!(InitData::accept(&"x".repeat(2 * MAX_BYTES + 1)).is_err());
    }

    #[test]
    fn a_text_that_was_cut_short_is_an_error() {
        let bytes = STANDARD.decode(encode(PLAIN.as_bytes())).unwrap();
        for len in 0..bytes.len() {
            assert!(decode(&STANDARD.encode(&bytes[..len])).is_err(), "{len} of {}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_survive_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(decode(&encode(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn any_text_is_answered_without_panic(text in any::<String>()) {
            let _ = InitData::accept(&text);
        }

        #[test]
        fn every_document_is_accepted_in_both_forms(value in "[a-zA-Z0-9+/= \n]{0,200}") {
            let toml = format!("algorithm = \"sha512\"\nversion = \"0.1.0\"\n[data]\n\"cdh.toml\" = '''\n{value}'''\n");
            let plain = InitData::accept(&toml).unwrap();
            prop_assert_eq!(plain.file(CDH), Some(value.as_str()));
            prop_assert_eq!(InitData::accept(&plain.encode()).unwrap(), plain);
        }
    }
}

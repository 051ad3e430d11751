//! The `#cloud-config` text that carries files into a machine.
//!
//! Only `write_files` with `path` and `content` is written and read: the guest programs in use refuse every other key.
//! So there is no `encoding: b64`, and content must be UTF-8.
//!
//! Whatever the content is, every YAML reader returns it unchanged. Text that is safe in a block is written as a block,
//! for people who look at it; anything else is double-quoted with escapes, the one form that can carry all characters.

use std::fmt::{self, Write};

use serde::Deserialize;

use crate::{Error, ErrorKind, Result};

/// The line that every cloud-config begins with.
pub const HEADER: &str = "#cloud-config";

/// Files to be written inside a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloudConfig {
    /// The files, in the order of writing.
    pub write_files: Vec<WriteFile>,
}

/// One file. `Debug` shows its size only: content may be a private key.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteFile {
    /// Where it goes.
    pub path: String,
    /// What is in it, byte for byte.
    pub content: Vec<u8>,
}

impl WriteFile {
    /// Makes a file.
    pub fn new(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content: content.into() }
    }
}

impl fmt::Debug for WriteFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({} bytes)", self.path, self.content.len())
    }
}

impl CloudConfig {
    /// Starts without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file.
    #[must_use]
    pub fn with_file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.write_files.push(WriteFile::new(path, content));
        self
    }

    /// Returns the text, to be handed over as user data.
    ///
    /// ```
    /// # use cloud_providers::cloud_config::CloudConfig;
    /// let config = CloudConfig::new().with_file("/run/a", "one\ntwo\n").with_file("/run/b", " tab\there");
    /// assert_eq!(
    ///     config.to_text().unwrap(),
    ///     "#cloud-config\n\nwrite_files:\n- path: /run/a\n  content: |\n    one\n    two\n\
    ///      - path: /run/b\n  content: \" tab\\there\"\n"
    /// );
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming every file whose content is not UTF-8, whose path is empty, or whose path was
    /// given twice.
    pub fn to_text(&self) -> Result<String> {
        let mut text = format!("{HEADER}\n");
        let mut problems = Vec::new();
        if !self.write_files.is_empty() {
            text.push_str("\nwrite_files:\n");
        }
        for (i, file) in self.write_files.iter().enumerate() {
            if file.path.is_empty() {
                problems.push(format!("file {} has an empty path", i + 1));
            }
            if self.write_files[..i].iter().any(|f| f.path == file.path) {
                problems.push(format!("two files go to {:?}", file.path));
            }
            text.push_str("- path: ");
            push_path(&mut text, &file.path);
            text.push_str("\n  content: ");
            match std::str::from_utf8(&file.content) {
                Ok(content) => push_content(&mut text, content),
                Err(e) => problems.push(format!(
                    "the content of {:?} is not UTF-8 at byte {}: cloud-config carries text only",
                    file.path,
                    e.valid_up_to()
                )),
            }
        }
        match Error::all(ErrorKind::Config, problems) {
            Some(error) => Err(error),
            None => Ok(text),
        }
    }

    /// Returns the number of bytes of [`CloudConfig::to_text`].
    ///
    /// # Errors
    ///
    /// As [`CloudConfig::to_text`].
    pub fn size(&self) -> Result<usize> {
        Ok(self.to_text()?.len())
    }

    /// Refuses a config that is larger than a provider takes, before anything is made in the cloud.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] with the size, the limit and the bytes of each file, largest first.
    pub fn check_size(&self, limit: usize) -> Result<()> {
        let size = self.size()?;
        if size <= limit {
            return Ok(());
        }
        let mut files: Vec<&WriteFile> = self.write_files.iter().collect();
        files.sort_by_key(|f| std::cmp::Reverse(f.content.len()));
        let files: Vec<String> = files.iter().map(|f| format!("{} {}", f.path, f.content.len())).collect();
        Err(Error::config("the user data is larger than the provider takes")
            .with("bytes", size)
            .with("limit", limit)
            .with("files by bytes", files.join(", ")))
    }

    /// Reads a cloud-config as the guest does: any key beside `write_files`, `path` and `content` is an error.
    ///
    /// A file without `content` is empty. The text may be a comment only.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] with the line, without quoting the text, which may hold keys.
    pub fn parse(text: &str) -> Result<Self> {
        let document: Option<Document> = serde_yaml::from_str(text).map_err(|e| {
            let place = e.location().map_or(0, |l| l.line());
            Error::config("user data is not a cloud-config with only write_files, path and content")
                .with("line", place)
        })?;
        let files = document.and_then(|d| d.write_files).unwrap_or_default();
        let file = |f: DocumentFile| WriteFile::new(f.path, f.content.unwrap_or_default());
        Ok(Self { write_files: files.into_iter().map(file).collect() })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    write_files: Option<Vec<DocumentFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentFile {
    path: String,
    content: Option<String>,
}

/// Writes a path bare when no reader can take it for anything but text.
fn push_path(text: &mut String, path: &str) {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if path.starts_with('/') && path.chars().all(bare) {
        text.push_str(path)
    } else {
        push_quoted(text, path)
    }
    // The end of the line is written by the caller: the content follows on its own line.
}

/// Writes content as a block when that is exact, else quoted.
fn push_content(text: &mut String, content: &str) {
    if !fits_block(content) {
        push_quoted(text, content);
        text.push('\n');
        return;
    }
    // `|` ends in one line feed, `|-` in none.
    let (style, body) = match content.strip_suffix('\n') {
        Some(body) => ("|\n", body),
        None => ("|-\n", content),
    };
    text.push_str(style);
    for line in body.split('\n') {
        // An empty line needs no indentation, and one of blanks would be ambiguous (see fits_block).
        if !line.is_empty() {
            text.push_str("    ");
            text.push_str(line);
        }
        text.push('\n');
    }
}

/// Returns whether a literal block carries `content` unchanged through every reader.
fn fits_block(content: &str) -> bool {
    let body = content.strip_suffix('\n').unwrap_or(content);
    // Readers find the indentation from the first line, so it must begin with a visible character. Empty lines at
    // the end would be cut. Tabs, carriage returns, other controls and all that is not ASCII are left to the quoted
    // form, as readers differ in what they take for a line break.
    !body.is_empty()
        && !body.starts_with([' ', '\n'])
        && !body.ends_with('\n')
        && body.chars().all(|c| c == '\n' || c == ' ' || c.is_ascii_graphic())
        && body.split('\n').all(|line| line.is_empty() || !line.trim_matches(' ').is_empty())
}

/// Returns `value` as a double-quoted scalar on one line, which every YAML reader turns back into the same text.
///
/// ```
/// assert_eq!(cloud_providers::cloud_config::quoted("a\n\"b\""), r#""a\n\"b\"""#);
/// ```
pub fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    push_quoted(&mut text, value);
    text
}

/// Writes a double-quoted scalar on one line.
fn push_quoted(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            ' '..='~' => text.push(c),
            // Visible characters of other scripts stay as they are, since escapes triple their size. The rest is what
            // some reader refuses raw or takes for a line break: controls, NEL, separators, BOM, noncharacters.
            '\u{a1}'..='\u{1fff}' | '\u{2030}'..='\u{d7ff}' | '\u{10000}'..='\u{1fffd}' => text.push(c),
            _ => push_escape(text, u32::from(c)),
        }
    }
    text.push('"');
}

fn push_escape(text: &mut String, code: u32) {
    let written = match code {
        0..=0xff => write!(text, "\\x{code:02x}"),
        0x100..=0xffff => write!(text, "\\u{code:04x}"),
        _ => write!(text, "\\U{code:08x}"),
    };
    written.expect("writing to a String never fails");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(content: &str) -> String {
        CloudConfig::new().with_file("/x", content).to_text().unwrap()
    }

    #[test]
    fn plain_text_is_a_block_and_the_rest_is_quoted() {
        for (content, expected) in [
            ("a\n\n  b\n", "|\n    a\n\n      b\n"),
            ("{\n}", "|-\n    {\n    }\n"),
            ("", "\"\"\n"),
            ("\n", "\"\\n\"\n"),
            ("a\n\n", "\"a\\n\\n\"\n"),
            (" a", "\" a\"\n"),
            ("a\n  \nb", "\"a\\n  \\nb\"\n"),
            ("\0\u{7f}\u{85}\u{feff}\u{2028}", "\"\\x00\\x7f\\x85\\ufeff\\u2028\"\n"),
            ("ö😀\u{10ffff}", "\"ö😀\\U0010ffff\"\n"),
        ] {
            let whole = text(content);
            assert_eq!(whole, format!("#cloud-config\n\nwrite_files:\n- path: /x\n  content: {expected}"));
            assert_eq!(CloudConfig::parse(&whole).unwrap().write_files[0].content, content.as_bytes());
        }
    }

    #[test]
    fn without_files_only_the_header_is_left() {
        assert_eq!(CloudConfig::new().to_text().unwrap(), "#cloud-config\n");
        assert_eq!(CloudConfig::parse("#cloud-config\n").unwrap(), CloudConfig::new());
        assert_eq!(CloudConfig::parse("").unwrap(), CloudConfig::new());
    }

    #[test]
    fn what_cannot_be_carried_is_named_all_at_once() {
        let config = CloudConfig::new()
            .with_file("/bin", b"ab\xff".to_vec())
            .with_file("", "x")
            .with_file("/twice", "x")
            .with_file("/twice", "y");
        let error = config.to_text().unwrap_err().to_string();
        for part in
            ["\"/bin\" is not UTF-8 at byte 2", "file 2 has an empty path", "two files go to \"/twice\""]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_config_over_the_limit_names_its_largest_files_first() {
        let config = CloudConfig::new().with_file("/small", "x").with_file("/large", "y".repeat(100));
        let size = config.size().unwrap();
        config.check_size(size).unwrap();
        let error = config.check_size(size - 1).unwrap_err().to_string();
        assert!(error.contains(&format!("bytes: {size}, limit: {}", size - 1)), "{error}");
        assert!(error.contains("/large 100, /small 1"), "{error}");
    }

    #[test]
    fn the_reader_refuses_every_other_key() {
        for bad in [
            "packages: [x]",
            "write_files:\n- path: /a\n  content: x\n  owner: root:root",
            "write_files:\n- path: /a\n  permissions: '0600'",
            "write_files:\n- content: x",
            "write_files: /a",
            "#!/bin/sh\necho hello",
            "write_files:\n- path: /a\n  path: /b",
            "\"canary",
        ] {
            let error = CloudConfig::parse(bad).unwrap_err();
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn unquoted_words_are_read_as_text() {
        for (plain, expected) in
            [("123", "123"), ("yes", "yes"), ("0600", "0600"), ("1.50", "1.50"), ("~", "")]
        {
            let text = format!("write_files:\n- path: /a\n  content: {plain}\n");
            assert_eq!(
                CloudConfig::parse(&text).unwrap().write_files[0].content,
                expected.as_bytes(),
                "{plain}"
            );
        }
    }

    #[test]
    fn content_is_in_no_debug_output() {
        let config = CloudConfig::new().with_file("/key", "canary");
        assert!(!format!("{config:?}").contains("canary"));
    }
}

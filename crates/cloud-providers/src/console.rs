//! The end of what an instance wrote to its console, as plain text.

use serde::{Deserialize, Serialize};

/// The last part of a console.
///
/// Whoever runs the guest writes it, so nothing in it may reach a terminal or a log as it is: [`ConsoleTail::new`] takes
/// out what is no text, and there is no other way to make one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Told")]
#[non_exhaustive]
pub struct ConsoleTail {
    /// Lines, without control characters and terminal sequences.
    text: String,
    /// Whether there was more before.
    cut: bool,
}

/// A tail as another process tells it, who may have left in what does not belong there.
#[derive(Deserialize)]
struct Told {
    text: String,
    #[serde(default)]
    cut: bool,
}

impl From<Told> for ConsoleTail {
    fn from(told: Told) -> Self {
        Self { text: plain(&told.text), cut: told.cut }
    }
}

impl ConsoleTail {
    /// Takes the last `limit` bytes of what a console has, from the beginning of a line where there is one.
    pub fn new(bytes: &[u8], limit: usize) -> Self {
        let text = plain(&String::from_utf8_lossy(bytes));
        if text.len() <= limit {
            return Self { text, cut: false };
        }
        let mut from = text.len() - limit;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        let end = &text[from..];
        // Half a line says less than it seems to.
        let whole = match end.split_once('\n') {
            Some((_, rest)) if !rest.is_empty() => rest,
            _ => end,
        };
        Self { text: whole.to_owned(), cut: true }
    }

    /// Says that there was more before, where a provider knows only the end.
    #[must_use]
    pub fn with_more_before(mut self) -> Self {
        self.cut = true;
        self
    }

    /// The lines.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether there was more before.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Returns the last `count` lines that say something.
    pub fn lines(&self, count: usize) -> Vec<&str> {
        let lines: Vec<&str> =
            self.text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }

    /// Takes out every line that has a line of `secret` in it; short ones stand in other texts as well.
    #[must_use]
    pub fn without(mut self, secret: &str) -> Self {
        const SHORT: usize = 6;
        let secrets: Vec<&str> = secret.lines().map(str::trim).filter(|line| line.len() >= SHORT).collect();
        let kept = |line: &&str| !secrets.iter().any(|secret| line.contains(secret));
        self.text = self.text.lines().filter(kept).map(|line| format!("{line}\n")).collect();
        self
    }
}

/// Takes out terminal sequences, control characters and what turns the direction of writing.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\u{1b}' | '\u{9b}' | '\u{90}' | '\u{9d}' => skip_sequence(c, &mut characters),
            '\n' => plain.push('\n'),
            // One that begins its line anew shows what comes last; both are kept.
            '\r' if characters.peek() != Some(&'\n') => plain.push('\n'),
            '\t' => plain.push(' '),
            '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'
            | '\u{2029}' => {}
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

/// Skips what follows the begin of a terminal sequence.
fn skip_sequence(begin: char, characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    let kind = match begin {
        '\u{1b}' => characters.next(),
        '\u{9b}' => Some('['),
        '\u{90}' => Some('P'),
        _ => Some(']'),
    };
    match kind {
        // CSI: to its final letter.
        Some('[') => {
            while let Some(c) = characters.next_if(|c| *c != '\n') {
                if ('\u{40}'..='\u{7e}').contains(&c) {
                    break;
                }
            }
        }
        // Titles and the like: to BEL, or to ESC \. One that does not end in its line is no title.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = characters.next_if(|c| *c != '\n') {
                match c {
                    '\u{7}' | '\u{9c}' => break,
                    '\u{1b}' => {
                        characters.next_if_eq(&'\\');
                        break;
                    }
                    _ => {}
                }
            }
        }
        // Which set of characters: one more.
        Some('(' | ')' | '#' | '%' | ' ') => {
            characters.next_if(|c| *c != '\n');
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_taken_out() {
        let bytes = b"\x1bc\x1b[?7l\x1b[2JSeaBIOS\r\n\x1b]0;title\x07\x1b]2;other\x1b\\\x1b[1;31mpanic:\x1b[0m no \x00root\x07\x08\r\n\x1b(Bdone\t1\rnew\xc2\x9b31m\xe2\x80\xae.";
        assert_eq!(ConsoleTail::new(bytes, 999).text(), "SeaBIOS\npanic: no root\ndone 1\nnew.");
        // Sequences that never end take their line at most.
        assert_eq!(ConsoleTail::new(b"\x1b]0;half\nnext", 99).text(), "\nnext");
        assert_eq!(ConsoleTail::new(b"\x1b[12\nnext\x1b", 99).text(), "\nnext");
        assert_eq!(ConsoleTail::new(b"a\xffb", 99).text(), "a\u{fffd}b");
    }

    #[test]
    fn the_end_counts_and_begins_with_a_whole_line() {
        let tail = ConsoleTail::new(b"one\ntwo\nthree\n", 8);
        assert_eq!((tail.text(), tail.is_cut()), ("three\n", true));
        assert_eq!(ConsoleTail::new("äöü".as_bytes(), 3).text(), "ü");
        let all = ConsoleTail::new(b"one\n\n  \ntwo", 99);
        assert!(!all.is_cut() && all.clone().with_more_before().is_cut());
        assert_eq!((all.lines(1), all.lines(9)), (vec!["two"], vec!["one", "two"]));
    }

    #[test]
    fn what_another_process_tells_is_made_plain_too() {
        let tail: ConsoleTail = serde_json::from_str(r#"{"text":"a\u001b[2Jb","new":1}"#).unwrap();
        assert_eq!(tail.text(), "ab");
    }

    #[test]
    fn lines_with_a_secret_go() {
        let tail = ConsoleTail::new(b"begin\n+ echo canary-1\nend of it\n", 99);
        assert_eq!(tail.without("x\ncanary-1\nend\n").text(), "begin\nend of it\n");
    }
}

//! Blocks of code in pages: what a program would read is read here, so that no page shows what cannot work.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Problem, Tree};

/// What a block may be. Text is what no program reads.
const LANGUAGES: &[&str] =
    &["console", "ini", "json", "markdown", "python", "rust", "sh", "text", "toml", "xml", "yaml"];

/// A block of a page.
struct Block<'a> {
    page: &'a Path,
    line: usize,
    language: &'a str,
    /// Words after the language, such as `no_run`.
    rest: &'a str,
    text: String,
}

/// Checks all blocks of the book and of the pages at the top.
pub(super) fn blocks(tree: &Tree) -> Vec<Problem> {
    let is_ours = |page: &Path| page.starts_with("docs") || page.components().count() == 1;
    let pages = tree.with_extension("md").filter(|(page, _)| is_ours(page));
    let mut problems = Vec::new();
    for (page, text) in pages {
        for block in blocks_of(page, text) {
            let place = format!("{}:{}", page.display(), block.line);
            if !LANGUAGES.contains(&block.language) {
                let what = format!("begins a block of {:?}", block.language);
                let mend = format!("say what it is, one of {}", LANGUAGES.join(", "));
                problems.push(Problem::new(place, what, mend));
            } else if let Err((what, mend)) = check(tree, &block) {
                problems.push(Problem::new(place, what, mend));
            }
        }
    }
    problems
}

fn blocks_of<'a>(page: &'a Path, text: &'a str) -> Vec<Block<'a>> {
    let mut found: Vec<Block<'a>> = Vec::new();
    let mut indent = None;
    for (index, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        match (indent, bare.strip_prefix("```")) {
            (None, Some(kind)) => {
                indent = Some(line.len() - bare.len());
                let (language, rest) = kind.trim().split_once(',').unwrap_or((kind.trim(), ""));
                found.push(Block { page, line: index + 1, language, rest, text: String::new() });
            }
            (Some(_), Some("")) => indent = None,
            (Some(depth), _) => {
                let block = found.last_mut().expect("a block has begun");
                let cut = line.len().min(depth);
                block.text.push_str(line.get(cut..).unwrap_or(bare));
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

/// What is wrong with a block, and how to mend it.
fn check(tree: &Tree, block: &Block<'_>) -> Result<(), (String, String)> {
    if let Some(file) = included(block) {
        // Behind a colon is the part of the file.
        let file = file.split_once(':').map_or(file, |(file, _)| file);
        let path = super::normalize(&block.page.parent().unwrap_or(Path::new("")).join(file));
        return match path.filter(|path| tree.text(path).is_some()) {
            Some(_) => Ok(()),
            None => Err((format!("includes {file}, which does not exist"), "correct the path".to_owned())),
        };
    }
    let wrong = |what: String| (what, "write what the program that reads it would accept".to_owned());
    match block.language {
        "json" => {
            let values = serde_json::Deserializer::from_str(&block.text).into_iter::<serde_json::Value>();
            match values.collect::<Result<Vec<_>, _>>() {
                Ok(_) => Ok(()),
                Err(error) => Err(wrong(format!("has JSON that does not parse: {error}"))),
            }
        }
        "toml" => match toml::from_str::<toml::Table>(&block.text) {
            Ok(_) => Ok(()),
            Err(error) => Err(wrong(format!("has TOML that does not parse: {}", error.message()))),
        },
        "yaml" => match serde_yaml::from_multiple::<serde_json::Value>(&block.text) {
            Ok(_) => Ok(()),
            Err(error) => {
                let first = error.to_string().lines().next().unwrap_or_default().to_owned();
                Err(wrong(format!("has YAML that does not parse: {first}")))
            }
        },
        "ini" => ini(&block.text).map_err(|line| wrong(format!("has {line:?}, which is no line of a unit"))),
        "sh" => shell(&block.text).map_err(|error| wrong(format!("has a script that a shell refuses: {error}"))),
        "rust" if block.rest.contains("ignore") && !is_excerpt(tree, &block.text) => Err((
            "has Rust that nothing compiles".to_owned(),
            "take it from a file of the workspace, word by word, so that the compiler sees it there".to_owned(),
        )),
        "rust" if !block.rest.contains("ignore") && !is_tested(tree, block.page) => Err((
            "has Rust that nothing compiles".to_owned(),
            "include the page in the documentation of a crate, or take an excerpt of a file and say `rust,ignore`".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// The file that a block consists of.
fn included<'a>(block: &'a Block<'_>) -> Option<&'a str> {
    block.text.trim().strip_prefix("{{#include ")?.strip_suffix("}}").map(str::trim)
}

/// Units and files of variables: sections, values, comments.
fn ini(text: &str) -> Result<(), &str> {
    let is_key = |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let fine = |line: &str| {
        line.is_empty()
            || line.starts_with('#')
            || (line.starts_with('[') && line.ends_with(']'))
            || line.split_once('=').is_some_and(|(key, _)| is_key(key))
    };
    text.lines().map(str::trim).find(|line| !fine(line)).map_or(Ok(()), Err)
}

/// Lets a shell read a script without running it.
fn shell(text: &str) -> Result<(), String> {
    let child = Command::new("bash")
        .arg("-n")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| format!("bash cannot be started: {error}"))?;
    // A shell that has seen enough closes its end.
    let _ = child.stdin.take().expect("it is a pipe").write_all(text.as_bytes());
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    // What stands for something else, such as <address>, reads as a redirect, and some of it as a wrong one.
    match output.status.success() {
        true => Ok(()),
        false => Err(errors.lines().next().unwrap_or_default().to_owned()),
    }
}

/// Whether the lines stand in a Rust file, one after another; indents and blank lines aside.
fn is_excerpt(tree: &Tree, text: &str) -> bool {
    let lines = |text: &str| -> Vec<String> {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    // A line of dots stands for what is left out.
    let wanted = lines(text);
    let parts: Vec<&[String]> = wanted
        .split(|line| ["…", "// …", "..."].contains(&line.as_str()))
        .filter(|part| !part.is_empty())
        .collect();
    !parts.is_empty()
        && tree.with_extension("rs").any(|(_, source)| {
            let source = lines(source);
            let mut at = 0;
            parts.iter().all(|part| {
                let found = source[at..].windows(part.len()).position(|window| window == *part);
                found.inspect(|found| at += found + part.len()).is_some()
            })
        })
}

/// Whether a crate has the page as documentation, whose examples are compiled.
fn is_tested(tree: &Tree, page: &Path) -> bool {
    let name = page.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let beside = page.parent().unwrap_or(Path::new("")).join("src/lib.rs");
    let includes = |text: &str| text.contains("#![doc = include_str!(") && text.contains(name);
    tree.text(beside).is_some_and(includes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str, more: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<(&str, &str)> =
            [("docs/x.md", page)].into_iter().chain(more.iter().copied()).collect();
        blocks(&Tree::of(&files))
            .into_iter()
            .map(|problem| format!("{} {}", problem.place, problem.what))
            .collect()
    }

    #[test]
    fn what_a_program_reads_must_be_readable() {
        let wrong = [
            ("json", "{\"a\": 1,}"),
            ("toml", "a = "),
            ("yaml", "a: [1"),
            ("ini", "[Service]\nExec Start /x"),
            ("sh", "if true; then"),
            ("rust,ignore", "let x = nowhere();"),
            ("rust", "let x = 1;"),
            ("", "x"),
            ("perl", "x"),
        ];
        for (language, text) in wrong {
            let what = found(&format!("# X\n\n```{language}\n{text}\n```\n"), &[]);
            assert!(what.len() == 1 && what[0].starts_with("docs/x.md:3 "), "{language}: {what:?}");
        }
        let right = [
            ("json", "{\"a\": 1}\n{\"b\": 2}"),
            ("toml", "a = 1"),
            ("yaml", "a: 1\n---\nb: 2"),
            ("ini", "# x\n[Service]\nExecStart=/x y"),
            ("sh", "ls | wc -l   # counts"),
            ("text", "anything <at> all"),
        ];
        for (language, text) in right {
            assert_eq!(found(&format!("```{language}\n{text}\n```\n"), &[]), [""; 0], "{language}");
        }
    }

    #[test]
    fn rust_is_an_excerpt_of_what_is_compiled() {
        let source = ("crates/x/src/lib.rs", "fn a() {\n    one();\n\n    two();\n    three();\n}\n");
        assert_eq!(found("```rust,ignore\none();\ntwo();\n```\n", &[source]), [""; 0]);
        assert_eq!(found("```rust,ignore\none();\n// …\nthree();\n```\n", &[source]), [""; 0]);
        assert_eq!(found("```rust,ignore\ntwo();\none();\n```\n", &[source]).len(), 1);
        let page = ("docs/examples/y/src/lib.rs", "#![doc = include_str!(\"../README.md\")]\n");
        let readme = ("docs/examples/y/README.md", "```rust\nlet x = 1;\n```\n");
        assert_eq!(found("", &[page, readme]), [""; 0]);
        assert_eq!(found("", &[readme]).len(), 1);
    }

    #[test]
    fn an_included_file_exists() {
        let page = "```ini\n{{#include ../crates/x/a.service:part}}\n```\n";
        assert_eq!(found(page, &[("crates/x/a.service", "")]), [""; 0]);
        assert_eq!(found(page, &[]).len(), 1);
    }

    #[test]
    fn blocks_in_lists_lose_their_indent() {
        assert_eq!(found("1. x\n\n   ```yaml\n   a: 1\n   b:\n     c: 2\n   ```\n", &[]), [""; 0]);
    }
}

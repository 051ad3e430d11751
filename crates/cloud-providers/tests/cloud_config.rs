//! Reads generated cloud-config with PyYAML, the reader of cloud-init, and reads what the Go programs generate.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use cloud_providers::cloud_config::CloudConfig;
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};

/// Answers each line of JSON `{text}` with what every loader of PyYAML makes of the text.
const SERVER: &str = r#"
import json, sys, yaml
loaders = [yaml.SafeLoader] + ([yaml.CSafeLoader] if hasattr(yaml, "CSafeLoader") else [])
print(json.dumps([l.__name__ for l in loaders]), flush=True)
for line in sys.stdin:
    text = json.loads(line)["text"].encode("utf-8")
    answers = []
    for loader in loaders:
        try:
            answers.append(yaml.load(text, Loader=loader))
        except Exception as e:
            answers.append({"error": str(e)})
    print(json.dumps(answers), flush=True)
"#;

/// One Python process for all cases of a test.
struct PyYaml {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    loaders: usize,
}

impl PyYaml {
    fn start() -> Self {
        let has_yaml = |python: &&&str| {
            let probe = Command::new(python).args(["-c", "import yaml"]).stderr(Stdio::null()).status();
            probe.is_ok_and(|s| s.success())
        };
        let Some(python) = ["python3", "/usr/bin/python3"].iter().find(has_yaml) else {
            panic!("no python3 can import yaml: install the package python3-yaml");
        };
        let mut child = Command::new(python)
            .args(["-c", SERVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python was just run");
        let to = child.stdin.take().expect("stdin is piped");
        let mut from = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        from.read_line(&mut line).expect("python prints its loaders");
        let loaders: Vec<String> = serde_json::from_str(&line).expect("python prints its loaders");
        assert!(!loaders.is_empty());
        Self { child, to, from, loaders: loaders.len() }
    }

    fn read(&mut self, text: &str) -> Vec<Value> {
        writeln!(self.to, "{}", json!({ "text": text })).unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        let answers: Vec<Value> = serde_json::from_str(&line).unwrap();
        assert_eq!(answers.len(), self.loaders);
        answers
    }

    /// Fails unless PyYAML and our own strict reader return exactly what went in.
    fn check(&mut self, files: &[(String, String)]) -> Result<(), String> {
        let config =
            files.iter().fold(CloudConfig::new(), |c, (p, t)| c.with_file(p.clone(), t.clone().into_bytes()));
        let text = config.to_text().map_err(|e| e.to_string())?;
        if !text.starts_with("#cloud-config\n") {
            return Err(format!("no header: {text:?}"));
        }
        let expected = json!({
            "write_files": files.iter().map(|(p, t)| json!({"path": p, "content": t})).collect::<Vec<_>>()
        });
        for answer in self.read(&text) {
            if answer != expected {
                return Err(format!("{files:?}\nwritten as {text}\nread as {answer}"));
            }
        }
        let ours = CloudConfig::parse(&text).map_err(|e| format!("our reader: {e}\n{text}"))?;
        if ours != config {
            return Err(format!("{files:?}\nwritten as {text}\nour reader read {ours:?}"));
        }
        Ok(())
    }
}

impl Drop for PyYaml {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Content that a YAML writer is likely to get wrong.
fn awkward() -> Vec<String> {
    let fixed = [
        "",
        " ",
        "\n",
        "\n\n",
        "\t",
        "yes",
        "no",
        "on",
        "off",
        "y",
        "true",
        "True",
        "null",
        "Null",
        "~",
        "10:20",
        "1_000",
        "0x1f",
        "0o17",
        "017",
        "1e3",
        "+1",
        "-1",
        ".inf",
        "-.inf",
        ".nan",
        "2001-12-14",
        "2001-12-14T21:59:43.10-05:00",
        "=",
        "<<",
        "- a",
        "-",
        "? a",
        ": a",
        ":",
        "a: b",
        "a:",
        "# c",
        "a # b",
        "%TAG",
        "@a",
        "`a`",
        "&anchor",
        "*alias",
        "!tag",
        "|",
        ">",
        "|-\n  x",
        "'",
        "\"",
        "\\",
        "\\n",
        "[a",
        "]",
        "{a",
        "}",
        ",",
        "---",
        "...",
        "--- a\n",
        "a\n---\nb\n",
        "a\n...\nb\n",
        "\u{feff}",
        "a\u{feff}b",
        "\u{85}",
        "a\u{85}b",
        "\u{2028}",
        "\u{2029}a",
        "\u{a0}",
        "\u{ad}",
        "\u{7f}",
        "\0",
        "a\0b",
        "\u{1}",
        "\u{1b}[0m",
        "\r",
        "\r\n",
        "a\r\nb\r\n",
        "a\rb",
        "\u{fffd}",
        "\u{fffe}",
        "\u{ffff}",
        "\u{d7ff}",
        "\u{e000}",
        "\u{10ffff}",
        "\u{1fffe}",
        "😀",
        "a😀\n",
        "👩‍👩‍👧",
        "\\ud83d\\ude00",
        "ö",
        "日本語\n",
        "שלום",
        "\u{202e}x",
        "\u{200b}",
        "a ",
        "a \n",
        "a  \nb",
        " a",
        "  a\n",
        "\ta",
        "a\n\tb\n",
        "a\n b",
        "a\n \nb",
        "a\n  ",
        "\n a",
        "\n\na",
        "a\n\n",
        "a\n\n\nb\n",
        "{\n    \"x\": 1\n}",
        "{\n    \"x\": 1\n}\n",
        "key: |\n  block\n",
        "${x} $(y) %s {{ z }}",
        "<&>",
        "## template: jinja\n",
        "#cloud-config\n",
        "#!/bin/sh\n",
        "\u{c}",
        "\u{b}",
        "a\u{8}",
    ];
    let mut all: Vec<String> = fixed.iter().map(|s| (*s).to_owned()).collect();
    all.push("x".repeat(100_000));
    all.push("word ".repeat(20_000));
    all.push("é".repeat(2_000));
    all.push(format!("{}\n", " ".repeat(2_000)));
    all.push("\n".repeat(1_000));
    // Every character that fits one byte, and the edges of what YAML calls printable.
    all.push((0..=0xffu32).filter_map(char::from_u32).collect());
    all.push(
        (0x2000..=0x206f).chain(0xfdd0..=0xfdef).chain(0xfff0..=0xffff).filter_map(char::from_u32).collect(),
    );
    all
}

#[test]
fn pyyaml_reads_every_awkward_text_unchanged() {
    let mut python = PyYaml::start();
    let texts = awkward();
    assert!(texts.len() > 100);
    let mut failures = Vec::new();
    for text in &texts {
        failures.extend(python.check(&[("/run/a".into(), text.clone())]).err());
        // As a path as well: it is written by other code.
        if !text.is_empty() {
            failures.extend(python.check(&[(text.clone(), "x\n".into()), ("/b".into(), text.clone())]).err());
        }
    }
    assert!(failures.is_empty(), "{} failures, the first: {}", failures.len(), failures[0]);
}

#[test]
fn pyyaml_reads_any_generated_config_unchanged() {
    let mut python = PyYaml::start();
    let fragment = prop_oneof![
        proptest::sample::select(awkward()).prop_filter("short", |s| s.len() < 300),
        any::<String>(),
        "[ -~\n\t]{0,60}",
        "( {0,3}[a-z:#'\"-]{0,5} {0,2}\n){0,6}",
        proptest::collection::vec(any::<char>(), 0..20).prop_map(|c| c.into_iter().collect()),
    ];
    let content = proptest::collection::vec(fragment, 0..4).prop_map(|parts| parts.concat());
    let files = proptest::collection::btree_map(
        any::<String>().prop_filter("a path", |p| !p.is_empty()),
        content,
        1..4,
    );
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let python = std::cell::RefCell::new(&mut python);
    runner
        .run(&files, |files| {
            let files: Vec<(String, String)> = files.into_iter().collect();
            python.borrow_mut().check(&files).map_err(TestCaseError::fail)
        })
        .unwrap();
}

#[test]
fn our_reader_takes_what_the_go_programs_generate() {
    let folder =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/go-golden/cloud-config");
    let mut python = PyYaml::start();
    let mut read = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let parsed = CloudConfig::parse(&text);
        if path.ends_with("odd.yaml") {
            // It uses owner and permissions, which the guest programs refuse.
            assert!(parsed.is_err());
            continue;
        }
        let ours = parsed.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for answer in python.read(&text) {
            let files = answer["write_files"].as_array().cloned().unwrap_or_default();
            assert_eq!(files.len(), ours.write_files.len(), "{}", path.display());
            for (theirs, ours) in files.iter().zip(&ours.write_files) {
                assert_eq!(theirs["path"], ours.path);
                assert_eq!(theirs["content"].as_str().unwrap_or_default().as_bytes(), ours.content);
            }
        }
        read += 1;
    }
    assert_eq!(read, 7);
}

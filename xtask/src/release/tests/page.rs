//! docs/development/releasing.md, followed word by word.

use super::scratch::*;
use crate::context::Context;

/// The page of the project itself, not of the generated workspace.
fn page() -> String {
    let path = Context::from_process().unwrap().root.join("docs/development/releasing.md");
    std::fs::read_to_string(path).unwrap()
}

/// The command lines of a section, without their comments.
fn commands(page: &str, section: &str) -> Vec<String> {
    let start =
        page.find(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("there is no section {section}"));
    let text = &page[start + 1..];
    let text = &text[..text[1..].find("\n## ").map_or(text.len(), |end| end + 1)];
    let mut lines = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
        } else if inside {
            let line = line.split(" #").next().unwrap_or(line).trim();
            lines.extend((!line.is_empty()).then(|| line.to_owned()));
        }
    }
    lines
}

/// The words of a line; quotes hold several together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('"').enumerate() {
        if at % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// Types the lines of a section. What leaves the machine, or tests it, is left out, and the registry is on loopback.
fn follow(scratch: &Scratch, lines: &[String]) {
    let mut typed = 0;
    for line in lines {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match &words[..] {
            ["cargo", "xtask", "test", ..] | ["git", "push", ..] => continue,
            ["cargo", "xtask", "release", "publish", rest @ ..] => {
                scratch.publish(rest).unwrap_or_else(|error| panic!("{line}: {error:#}"));
            }
            ["cargo", "xtask", "release", rest @ ..] => {
                scratch.xtask(rest).unwrap_or_else(|error| panic!("{line}: {error:#}"));
            }
            ["git", rest @ ..] => drop(scratch.git(rest)),
            _ => panic!("nobody said what `{line}` is"),
        }
        typed += 1;
    }
    assert!(typed >= 7, "{lines:?}");
}

#[test]
fn who_follows_the_page_cuts_a_release_of_everything_and_a_patch_of_one_provider() {
    let page = page();
    let mut scratch = Scratch::new();
    scratch.serve();
    follow(&scratch, &commands(&page, "A release of everything"));
    assert_eq!(scratch.published().len(), 5);
    assert_eq!(scratch.tags().len(), 5);

    scratch.touch(LOCAL);
    scratch.news(LOCAL, "- **fixed:** a fault");
    scratch.commit("[cloud-providers-local] mend");
    let mut lines = commands(&page, "A patch of one provider");
    // The last two make a branch for another case.
    let branch = lines.split_off(lines.len() - 2);
    assert!(branch[0].starts_with("git switch --create"), "{branch:?}");
    follow(&scratch, &lines);
    let published = scratch.published();
    for package in [LOCAL, BUNDLE, CAA] {
        assert!(published.contains(&format!("{package} 0.1.1")), "{published:?}");
    }
    assert_eq!((published.len(), scratch.tags().len()), (8, 8));
    // The page shows what `plan` prints for just this.
    assert!(
        page.contains("cloud-providers-bundle  0.1.0     0.1.1  pins cloud-providers-local, feature there")
    );
}

#[test]
fn every_task_that_the_page_names_exists() {
    let page = page();
    let lines = page.lines().filter(|line| line.starts_with("cargo xtask release "));
    let mut count = 0;
    for line in lines {
        let words = words(line.split(" #").next().unwrap_or(line));
        let args = words.iter().skip(2);
        crate::release::command()
            .try_get_matches_from(args)
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        count += 1;
    }
    assert!(count > 15, "{count}");
}

//! New entries in sorted lists of text files, beside the entries that are there.

use anyhow::{Context as _, Result, ensure};

/// Adds `entry` to the list whose entries `key_of` recognises, sorted by key.
///
/// `key_of` is given the lines from an entry's first line on, and returns its key; an entry has as many lines as the new
/// one.
///
/// # Errors
///
/// When there is no such list, or the key is in it.
pub(super) fn insert_sorted(
    text: &str,
    what: &str,
    key: &str,
    entry: &str,
    key_of: impl Fn(&[&str]) -> Option<String>,
) -> Result<String> {
    let lines: Vec<&str> = text.lines().collect();
    let height = entry.lines().count();
    let mut at = None;
    for start in 0..lines.len() {
        let Some(found) = key_of(&lines[start..]) else { continue };
        ensure!(found != key, "{what}: {key} is there already");
        if found.as_str() < key {
            at = Some(start + height);
        } else {
            at = at.or(Some(start));
        }
    }
    let at = at.with_context(|| format!("{what}: no entry to put the new one beside"))?;
    let mut out: Vec<&str> = lines[..at.min(lines.len())].to_vec();
    out.extend(entry.lines());
    out.extend(&lines[at.min(lines.len())..]);
    Ok(out.join("\n") + "\n")
}

/// Returns what stands between `before` and `after` at the beginning of a line.
pub(super) fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    line.strip_prefix(before)?.split_once(after).map(|(key, _)| key)
}

/// Adds a line to the section `## Unreleased` of a changelog.
///
/// # Errors
///
/// When there is no such section.
pub(super) fn add_changelog_line(text: &str, line: &str) -> Result<String> {
    const HEADING: &str = "## Unreleased\n";
    let at = text.find(HEADING).context("no heading `## Unreleased`")? + HEADING.len();
    let (head, tail) = text.split_at(at);
    let tail = tail.trim_start_matches('\n');
    // A section without lines is followed by the next heading or by nothing.
    let gap = if tail.is_empty() || tail.starts_with("- ") { "" } else { "\n" };
    Ok(format!("{head}\n{line}\n{gap}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lines: &[&str]) -> Option<String> {
        between(lines[0], "| `", "` ").map(str::to_owned)
    }

    #[test]
    fn an_entry_goes_to_its_place() {
        let table = "x\n\n| a |\n|---|\n| `b` | |\n| `d` | |\n\ny\n";
        for (key, expected) in [
            ("a", "| `a` |\n| `b` | |\n| `d`"),
            ("c", "| `b` | |\n| `c` |\n| `d`"),
            ("e", "| `d` | |\n| `e` |\n\ny"),
        ] {
            let out = insert_sorted(table, "table", key, &format!("| `{key}` |"), row).unwrap();
            assert!(out.contains(expected), "{out}");
        }
        let error = insert_sorted(table, "table", "b", "| `b` |", row).unwrap_err().to_string();
        assert!(error.contains("b is there already"), "{error}");
        assert!(insert_sorted("no table\n", "table", "b", "| `b` |", row).is_err());
    }

    #[test]
    fn a_changelog_line_comes_first_in_its_section() {
        let out = add_changelog_line("# C\n\n## Unreleased\n\n- **added:** a\n", "- **added:** b").unwrap();
        assert_eq!(out, "# C\n\n## Unreleased\n\n- **added:** b\n- **added:** a\n");
        let out = add_changelog_line("# C\n\n## Unreleased\n\n## 0.1.0\n", "- **added:** b").unwrap();
        assert_eq!(out, "# C\n\n## Unreleased\n\n- **added:** b\n\n## 0.1.0\n");
        let out = add_changelog_line("# C\n\n## Unreleased\n", "- **added:** b").unwrap();
        assert_eq!(out, "# C\n\n## Unreleased\n\n- **added:** b\n");
        assert!(add_changelog_line("# C\n", "- x").is_err());
    }
}

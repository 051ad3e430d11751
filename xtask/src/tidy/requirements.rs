//! Versions of our packages in pages: whoever copies a line gets the package that the page is about.

use cargo_metadata::Metadata;
use cargo_metadata::semver::{Version, VersionReq};

use super::{Problem, Tree};

/// Checks that requirements in TOML examples accept the version that the package has.
pub(super) fn fit(tree: &Tree, metadata: &Metadata) -> Vec<Problem> {
    let versions: Vec<(String, Version)> = metadata
        .workspace_packages()
        .into_iter()
        .map(|package| (package.name.to_string(), package.version.clone()))
        .collect();
    let pages = tree.with_extension("md");
    pages.flat_map(|(page, text)| unfit(&page.display().to_string(), text, &versions)).collect()
}

fn unfit(page: &str, text: &str, versions: &[(String, Version)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut toml = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            toml = line.trim() == "```toml";
            continue;
        }
        let Some((name, requirement)) = toml.then(|| requirement(line)).flatten() else { continue };
        let Some((_, version)) = versions.iter().find(|(package, _)| package == name) else { continue };
        if !VersionReq::parse(requirement).is_ok_and(|wanted| wanted.matches(version)) {
            let place = format!("{page}:{}", number + 1);
            let what = format!("asks for {name} {requirement:?}, and the package is {version}");
            problems.push(Problem::new(place, what, "write the version that the package has now"));
        }
    }
    problems
}

/// `name = "requirement"` or `name = { version = "requirement", … }`.
fn requirement(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.split_once(" = ")?;
    let rest = match rest.trim().strip_prefix('{') {
        Some(table) => table.split_once("version = ")?.1,
        None => rest.trim(),
    };
    Some((name.trim(), rest.strip_prefix('"')?.split_once('"')?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_that_the_package_does_not_meet_is_named() {
        let text = "```toml\nours = \"0.1\"\nours = { default-features = false, version = \"=0.1.0\" }\ntheirs = \"9\"\n\
                    ours = { path = \"x\" }\n```\nours = \"0.1\"\n```toml\nours = \"=0.2.0\"\n```\n";
        let found = unfit("a.md", text, &[("ours".to_owned(), Version::new(0, 2, 0))]);
        let places: Vec<&str> = found.iter().map(|problem| problem.place.as_str()).collect();
        assert_eq!(places, ["a.md:2", "a.md:3"]);
    }
}

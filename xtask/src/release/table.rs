//! The page that says which versions belong together.

use std::fmt::Write as _;

use anyhow::Result;

use super::changelog::Changelog;
use super::packages::{Package, Packages};

/// Where the page is.
pub(crate) const PAGE: &str = "docs/versions.md";

/// Writes the page; `changelog` returns that of a package.
///
/// # Errors
///
/// When a changelog cannot be had, or packages need each other in a circle.
pub(super) fn page(packages: &Packages, changelog: impl Fn(&Package) -> Result<String>) -> Result<String> {
    let mut text = String::from(
        "# Versions\n\n\
         <!-- Written by `cargo xtask release table --execute`; `cargo xtask tidy` says when it is out of date. -->\n\n\
         Every package has a version of its own. A provider, the bundle and the programs with a requirement `=` were built and\n\
         tested with exactly that version. [Releasing](development/releasing.md) says when a version changes.\n\n\
         | package | version | released | needs |\n|---|---|---|---|\n",
    );
    for package in packages.order()? {
        let log = Changelog::parse(&changelog(package)?);
        let date = log.version(&package.version).and_then(|section| section.date.clone());
        let date = date.unwrap_or_else(|| "not yet".to_owned());
        let shipped = package.needs.iter().filter(|need| need.ships());
        let mut needs: Vec<String> = shipped
            .filter_map(|need| Some(format!("{} {}", need.name, plain(need.requirement.as_ref()?))))
            .collect();
        needs.sort();
        needs.dedup();
        let needs = if needs.is_empty() { "-".to_owned() } else { needs.join(", ") };
        writeln!(text, "| {} | {} | {date} | {needs} |", package.name, package.version)?;
    }
    Ok(text)
}

/// A requirement as it is written in manifests.
fn plain(requirement: &semver::VersionReq) -> String {
    requirement.to_string().trim_start_matches('^').to_owned()
}

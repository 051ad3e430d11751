//! Publishing to a registry on loopback.

use super::scratch::*;

/// A repository with everything tagged, and a registry that has nothing.
fn tagged() -> Scratch {
    let mut scratch = Scratch::released();
    scratch.serve();
    scratch
}

fn versions(version: &str) -> Vec<String> {
    let mut all: Vec<String> = ALL.iter().map(|package| format!("{package} {version}")).collect();
    all.sort();
    all
}

#[test]
fn everything_is_published_in_order_and_a_patch_adds_what_moved() {
    let scratch = tagged();
    let shown = scratch.publish(&[]).unwrap();
    assert_eq!(shown.matches("to be published").count(), 5, "{shown}");
    assert!(shown.contains("add --execute") && scratch.published().is_empty());
    // The index may need a moment to show what was published.
    scratch.registry.as_ref().unwrap().faults().hide_newest(3);
    let said = scratch.publish(&["--execute"]).unwrap();
    let order: Vec<usize> = [CONTRACT, LOCAL, VSPHERE, BUNDLE, CAA]
        .map(|package| said.find(&format!("publishing {package} 0.1.0")).unwrap())
        .to_vec();
    assert!(order.is_sorted(), "{said}");
    assert_eq!(scratch.published(), versions("0.1.0"));
    let again = scratch.publish(&["--execute"]).unwrap();
    assert_eq!(again.matches("is there already: the same checksum").count(), 5, "{again}");

    scratch.touch(LOCAL);
    scratch.news(LOCAL, "- **fixed:** a fault");
    scratch.xtask(&["prepare", LOCAL, "patch", "--execute"]).unwrap();
    scratch.commit("[cloud-providers-local] version 0.1.1");
    scratch.xtask(&["tag", "--execute"]).unwrap();
    let said = scratch.publish(&["--execute"]).unwrap();
    assert!(said.contains(&format!("published to rehearsal: {LOCAL}, {BUNDLE}, {CAA}")), "{said}");
    assert_eq!(scratch.published().len(), 8);
    // What is not part of this commit's release is refused by name.
    assert!(
        scratch.refused(&["publish", VSPHERE]).contains("git switch --detach cloud-providers-vsphere-v0.1.0")
    );
}

#[test]
fn a_publish_that_broke_off_goes_on_where_it_was() {
    let mut scratch = tagged();
    let faults =
        |scratch: &Scratch, name: Option<&str>| scratch.registry.as_ref().unwrap().faults().refuse(name);
    faults(&scratch, Some(BUNDLE));
    let error = scratch.publish(&["--execute"]).unwrap_err().to_string();
    assert!(error.contains("cloud-providers-bundle was not published"), "{error}");
    assert!(
        error.contains(
            "published in this run: cloud-providers, cloud-providers-local, cloud-providers-vsphere"
        ),
        "{error}"
    );
    assert!(error.contains("left: cloud-providers-bundle, caa"), "{error}");
    assert!(error.contains("run the same command again"), "{error}");
    assert_eq!(scratch.published().len(), 3);
    faults(&scratch, None);

    // A registry that is gone is no registry without packages.
    scratch.registry = None;
    let error = scratch.publish(&["--execute"]).unwrap_err().to_string();
    assert!(error.contains("cannot look for") || error.contains("failed"), "{error}");
    assert!(!error.contains("was not published"), "{error}");

    // The answer to an upload is lost: cargo reports a failure, and the registry has the package.
    scratch.serve();
    scratch.registry.as_ref().unwrap().faults().lose_answer(BUNDLE);
    let error = scratch.publish(&["--execute"]).unwrap_err().to_string();
    assert!(error.contains("published in this run: nothing"), "{error}");
    let said = scratch.publish(&["--execute"]).unwrap();
    assert_eq!(said.matches("is there already: the same checksum").count(), 4, "{said}");
    assert!(said.contains("published to rehearsal: caa\n"), "{said}");
    assert_eq!(scratch.published(), versions("0.1.0"));
}

#[test]
fn a_version_that_others_have_with_other_content_is_not_taken_for_ours() {
    let scratch = tagged();
    scratch.publish(&[CONTRACT, "--execute"]).unwrap();
    // The same files in another commit: the package names its commit, so its checksum differs.
    scratch.git(&["commit", "--quiet", "--amend", "--message", "[release] the same in other words"]);
    let retag = |scratch: &Scratch| {
        for package in ALL {
            scratch.git(&["tag", "--force", "--annotate", "--message", "x", &format!("{package}-v0.1.0")]);
        }
    };
    retag(&scratch);
    let shown = scratch.publish(&[]).unwrap();
    assert!(shown.contains("cloud-providers 0.1.0: is there already: the same content"), "{shown}");
    // Other files.
    scratch.touch(CONTRACT);
    scratch.commit("[cloud-providers] a change after the release");
    retag(&scratch);
    let refusal = scratch.publish(&["--execute"]).unwrap_err().to_string();
    assert!(
        refusal.contains("rehearsal has cloud-providers 0.1.0 with other content (src/lib.rs)"),
        "{refusal}"
    );
    assert_eq!(scratch.published(), ["cloud-providers 0.1.0"]);
}

#[test]
fn only_tagged_commits_without_changes_are_published() {
    let mut scratch = Scratch::new();
    scratch.serve();
    let refusal = scratch.publish(&["--execute"]).unwrap_err().to_string();
    assert!(refusal.contains("no package is tagged at this commit"), "{refusal}");
    assert!(refusal.contains("cargo xtask release tag --execute"), "{refusal}");
    let refusal = scratch.publish(&[CAA, "--execute"]).unwrap_err().to_string();
    assert!(refusal.contains("caa 0.1.0 is not tagged"), "{refusal}");
    let scratch = tagged();
    scratch.write("crates/caa/notes.txt", "untracked\n");
    let refusal = scratch.publish(&["--execute"]).unwrap_err().to_string();
    assert!(
        refusal.contains("differs from its commit") && refusal.contains("crates/caa/notes.txt"),
        "{refusal}"
    );
    assert_eq!(scratch.published(), [""; 0]);
}

#[test]
fn what_a_package_needs_has_to_be_there() {
    let scratch = tagged();
    let refusal = scratch.publish(&[LOCAL, "--execute"]).unwrap_err().to_string();
    let says = "cloud-providers-local needs cloud-providers ^0.1.0, which rehearsal does not have";
    assert!(refusal.contains(says), "{refusal}");
    scratch.publish(&[CONTRACT, LOCAL, "--execute"]).unwrap();
    assert_eq!(scratch.published(), ["cloud-providers 0.1.0", "cloud-providers-local 0.1.0"]);
}

//! What is refused, and what the refusal says.

use super::scratch::*;

#[test]
fn versions_that_cannot_follow_are_refused() {
    let scratch = Scratch::released();
    scratch.touch(LOCAL);
    scratch.news(LOCAL, "- **fixed:** a fault");
    scratch.git(&["tag", "cloud-providers-local-v0.1.5"]);
    scratch.commit("[cloud-providers-local] mend");
    scratch.git(&["tag", "--delete", "cloud-providers-local-v0.1.5"]);
    for (level, says) in [
        ("0.1.0", "is not above 0.1.0, its last release"),
        ("0.0.9", "versions only go up"),
        ("1.0", "neither a version"),
        ("huge", "patch, minor, major, breaking, auto"),
        ("0.1.1+5", "build metadata"),
    ] {
        let refusal = scratch.refused(&["prepare", LOCAL, level]);
        assert!(refusal.contains(says), "{level}: {refusal}");
    }
    // A tag on another branch counts as well: the version is taken.
    scratch.git(&["switch", "--quiet", "--create", "other"]);
    scratch.git(&["commit", "--quiet", "--allow-empty", "--message", "x"]);
    scratch.git(&["tag", "--annotate", "--message", "x", "cloud-providers-local-v0.1.1"]);
    scratch.git(&["switch", "--quiet", "main"]);
    let refusal = scratch.refused(&["prepare", LOCAL, "patch"]);
    assert!(refusal.contains("the tag cloud-providers-local-v0.1.1 exists already, at "), "{refusal}");
    let refusal = scratch.refused(&["prepare", LOCAL, "auto"]);
    assert!(refusal.contains("the tag cloud-providers-local-v0.1.1 exists already"), "{refusal}");
    scratch.xtask(&["prepare", LOCAL, "0.1.2"]).unwrap();
}

#[test]
fn what_was_prepared_is_not_lowered() {
    let scratch = Scratch::released();
    scratch.news(LOCAL, "- **breaking:** another key");
    scratch.xtask(&["prepare", LOCAL, "0.3.0", "--execute"]).unwrap();
    let refusal = scratch.refused(&["prepare", LOCAL, "0.2.0"]);
    assert!(refusal.contains("below 0.3.0") && refusal.contains("take that back with git"), "{refusal}");
    // A manifest that somebody set back by hand.
    let scratch = Scratch::released();
    for (file, from, to) in [
        ("crates/caa/Cargo.toml", "version = \"0.1.0\" #", "version = \"0.0.9\" #"),
        ("Cargo.lock", "name = \"caa\"\nversion = \"0.1.0\"", "name = \"caa\"\nversion = \"0.0.9\""),
    ] {
        scratch.replace(file, from, to);
    }
    let refusal = scratch.refused(&["check"]);
    assert!(refusal.contains("has version 0.0.9, below its last release caa-v0.1.0"), "{refusal}");
}

#[test]
fn packages_that_are_none_are_refused() {
    let scratch = Scratch::released();
    for task in [
        &["prepare", "nobody", "patch"][..],
        &["check", "nobody"],
        &["tag", "nobody"],
        &["publish", "nobody"],
    ] {
        let refusal = scratch.refused(task);
        assert!(
            refusal.contains("there is no package `nobody`: the packages are caa, cloud-providers,"),
            "{refusal}"
        );
    }
    assert!(scratch.refused(&["prepare", "helper", "patch"]).contains("publish = false"));
    assert!(scratch.refused(&["prepare"]).contains("prepare --all"));
    assert!(scratch.refused(&["prepare", LOCAL]).contains("<level or version>"));
    assert!(scratch.refused(&["prepare", LOCAL, "patch", "--all"]).contains("cannot be used with"));
}

#[test]
fn a_release_without_news_is_refused() {
    let scratch = Scratch::released();
    scratch.touch(LOCAL);
    let refusal = scratch.refused(&["prepare", LOCAL, "patch", "--execute"]);
    assert!(refusal.contains("has no line under `## Unreleased`"), "{refusal}");
    let refusal = scratch.refused(&["prepare", "--all", "--execute"]);
    assert!(refusal.contains("cloud-providers-local/CHANGELOG.md has no line"), "{refusal}");
    scratch.news(LOCAL, "- mended");
    let refusal = scratch.refused(&["prepare", LOCAL, "patch", "--execute"]);
    assert!(
        refusal.contains("crates/cloud-providers-local/CHANGELOG.md:5: `- mended` has no kind"),
        "{refusal}"
    );
    assert!(scratch.refused(&["prepare", VSPHERE, "auto"]).contains("did not change"));
    assert!(
        Scratch::new().refused(&["prepare", LOCAL, "patch"]).contains("prepare cloud-providers-local 0.1.0")
    );
}

#[test]
fn a_failure_while_writing_puts_everything_back() {
    let scratch = Scratch::released();
    scratch.touch(LOCAL);
    scratch.news(LOCAL, "- **fixed:** a fault");
    // A package beside the others that demands the old version: cargo accepts no new one.
    scratch.replace(
        "helper/Cargo.toml",
        "[dependencies]\n",
        "[dependencies]\ncloud-providers-local = \"=0.1.0\"\n",
    );
    scratch.write("stray.toml", "");
    scratch.replace("Cargo.toml", "[profile.dev]", "[patch.crates-io]\ncloud-providers-local = { path = \"crates/cloud-providers-local\" }\n\n[profile.dev]");
    scratch.context.cargo().args(["update", "--workspace", "--quiet"]).stdout().unwrap();
    scratch.commit("[all] a stranger");
    let refusal = scratch.refused(&["prepare", LOCAL, "patch", "--execute"]);
    assert!(refusal.contains("do not fit together"), "{refusal}");
    assert_eq!(scratch.git(&["status", "--porcelain"]), "");
}

//! The golden definitions, given to libvirt itself: its schema, its test driver, and a real libvirtd.

use std::{fs, path::PathBuf, process::Command};

use test_support::{Libvirtd, run};

const SCHEMAS: &str = "/usr/share/libvirt/schemas";
/// Elements that are younger than the schema of some libvirt in use.
const YOUNG: [&str; 2] = ["sev-snp", "tdx"];

fn golden(prefix: &str) -> Vec<(String, PathBuf)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .filter(|(name, _)| name.starts_with(prefix))
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

/// Takes out the protection that this libvirt does not know yet.
fn without_young(text: &str) -> String {
    let Some(start) = YOUNG.iter().find_map(|word| text.find(&format!("  <launchSecurity type='{word}'")))
    else {
        return text.to_owned();
    };
    let end = "</launchSecurity>\n";
    let after = text[start..].find(end).unwrap() + start + end.len();
    format!("{}{}", &text[..start], &text[after..])
}

fn check(schema: &str, path: &std::path::Path) {
    let schema = format!("{SCHEMAS}/{schema}.rng");
    let output = Command::new("xmllint")
        .args(["--noout", "--relaxng", &schema])
        .arg(path)
        .output()
        .expect("xmllint is there (package libxml2-utils)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_definition_follows_libvirts_schema() {
    let dir = tempfile::tempdir().unwrap();
    for (name, path) in golden("domain-") {
        let copy = dir.path().join(name);
        fs::write(&copy, without_young(&fs::read_to_string(path).unwrap())).unwrap();
        check("domain", &copy);
    }
    for (_, path) in golden("volume-") {
        check("storagevol", &path);
    }
}

/// Machines of other architectures need an emulator that need not be installed; protected ones need the hardware.
#[test]
fn libvirt_takes_every_definition_for_this_architecture_and_keeps_what_it_says() {
    let libvirtd = Libvirtd::start().unwrap();
    let mut defined = 0;
    for (name, path) in golden("domain-x86_64-") {
        if YOUNG.iter().any(|word| name.contains(word)) {
            continue;
        }
        libvirtd.virsh(&["define", "--validate", &path.to_string_lossy()]).unwrap();
        let kept = libvirtd.virsh(&["dumpxml", "podvm-web-0a1b2c3d"]).unwrap();
        for part in [
            "peerpod-token-text",
            "cluster:c-1/0a1b2c3d4e5f/1",
            "podvm-web-0a1b2c3d-cloudinit.iso</peerpod:volume>",
            "<readonly/>",
        ] {
            assert!(kept.contains(part), "{name}: no {part} in {kept}");
        }
        if name.contains("bios") {
            assert!(!kept.contains("<loader"), "{name}: {kept}");
        }
        libvirtd.virsh(&["undefine", "--nvram", "podvm-web-0a1b2c3d"]).unwrap();
        defined += 1;
    }
    assert!(defined >= 6, "{defined}");
}

#[test]
fn the_test_driver_takes_a_definition_of_its_type() {
    let (_, path) = golden("domain-x86_64-bios.").remove(0);
    let text = fs::read_to_string(path).unwrap().replace("type='kvm'", "type='test'");
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("domain.xml");
    fs::write(&copy, text).unwrap();
    // The driver forgets everything with its connection, so one call must do.
    let script = format!("define {}; dumpxml podvm-web-0a1b2c3d", copy.display());
    let kept = run("virsh", &["-q", "-c", "test:///default", &script]).unwrap();
    assert!(kept.contains("peerpod-token-text"), "{kept}");
}

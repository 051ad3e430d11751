//! Compares with what the existing Go programs print for the same input.

use std::{fs, path::PathBuf};

use cloud_providers::{
    initdata::{Algorithm, InitData, decode},
    names::instance_name,
};

fn golden(path: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/go-golden").join(path);
    fs::read_to_string(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()))
}

#[test]
fn instance_names_equal_the_recorded_ones() {
    let mut cases = 0;
    for line in golden("instance-names.txt").lines() {
        // "pod" "sandbox" max -> "name" (length)
        let quoted: Vec<&str> = line.split('"').collect();
        let [_, pod, _, sandbox, max, name, _] = quoted[..] else { panic!("unexpected line {line}") };
        let max = max.trim().trim_end_matches("->").trim().parse().unwrap();
        assert_eq!(instance_name(pod, sandbox, max).unwrap(), name, "{line}");
        cases += 1;
    }
    assert_eq!(cases, 13);
}

#[test]
fn encoded_init_data_of_the_go_programs_is_read_byte_for_byte() {
    for case in 0..4 {
        let input = golden(&format!("initdata/{case}.in"));
        let encoded = golden(&format!("initdata/{case}.out"));
        assert_eq!(decode(&encoded).unwrap(), input.as_bytes(), "case {case}");
    }
}

#[test]
fn init_data_digests_equal_the_recorded_ones() {
    let text = golden("initdata/0.in");
    let mut cases = 0;
    for line in golden("initdata/summary.txt").lines() {
        let Some(rest) = line.strip_prefix("digest ") else { continue };
        let algorithm = rest.split(' ').next().unwrap();
        let digest = rest.split(": ").nth(1).unwrap().split(' ').next().unwrap();
        let data = InitData::parse(text.replace("sha384", algorithm)).unwrap();
        assert_eq!(data.algorithm().as_str(), algorithm);
        assert_eq!(data.digest(), digest);
        assert_eq!(InitData::accept(&data.encode()).unwrap().digest(), digest);
        cases += 1;
    }
    assert_eq!(cases, 3);
    assert_eq!(Algorithm::Sha256.digest(b"").len(), 64);
}

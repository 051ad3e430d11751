//! Journals that something damaged.

use fuzz_support::{Seen, Target};

use super::tests::record;
use super::*;
use crate::sandbox::Phase;

/// A file with some records, as the library writes it.
fn file(records: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    make_file(&SystemDisk, &path, MIGRATIONS).unwrap();
    let database = SystemDisk.open(&builder(), &path).unwrap();
    let change = begin(&database, true).unwrap();
    for (id, json) in records {
        change.open_table(SANDBOXES).unwrap().insert(*id, json.as_slice()).unwrap();
    }
    change.commit().unwrap();
    drop(database);
    fs::read(&path).unwrap()
}

#[test]
fn journal_records() {
    let mut ready = record("s2");
    ready.phase = Phase::Ready;
    ready.pod_uid = Some("u".into());
    let seeds = [record("s1"), ready].map(|record| (record.id.clone(), serde_json::to_vec(&record).unwrap()));
    let empty = file(&[]);
    Target::new("journal-records")
        .seeds(seeds)
        .words(&["Planned", "Ready", "phase", "null", "\\u0000"])
        .json()
        .run(|input| {
            let read: Result<SandboxRecord, _> = serde_json::from_slice(input);
            match read {
                Ok(record) => {
                    let text = serde_json::to_vec(&record).unwrap();
                    let again: SandboxRecord =
                        serde_json::from_slice(&text).expect("what is written is read");
                    assert_eq!(serde_json::to_vec(&again).unwrap(), text, "a repeat is byte-identical");
                    assert_eq!(again.view(), record.view());
                    let shown = format!("{:?} {}", record, record.view());
                    let user_data = String::from_utf8_lossy(record.request.user_data.as_bytes()).into_owned();
                    assert!(user_data.len() < 12 || !shown.contains(&user_data), "user data is shown");
                    Seen::accepted((
                        format!("{:?}", record.phase),
                        record.identity.is_some(),
                        record.instance.is_some(),
                    ))
                }
                Err(error) => {
                    // The entry is named by its sandbox wherever records are listed.
                    let (_, database) = try_copy(&empty).unwrap();
                    let change = begin(&database, false).unwrap();
                    change.open_table(SANDBOXES).unwrap().insert("s-bad", input).unwrap();
                    change.commit().unwrap();
                    let text = format!("{:#}", records(&database).unwrap_err());
                    assert!(text.contains("s-bad") && text.len() < 2048, "{text}");
                    Seen::refused(&error)
                }
            }
        });
}

#[test]
fn journal_file() {
    let entries: Vec<(String, Vec<u8>)> = (0..20)
        .map(|n| format!("s{n}"))
        .map(|id| {
            let json = serde_json::to_vec(&record(&id)).unwrap();
            (id, json)
        })
        .collect();
    let entries: Vec<(&str, Vec<u8>)> =
        entries.iter().map(|(id, json)| (id.as_str(), json.clone())).collect();
    let whole = file(&entries);
    let longest = whole.len() + 4096;
    Target::new("journal-file")
        .seed("empty journal", file(&[]))
        .seed("twenty", whole)
        .longest(longest)
        // What a disk does: pages that are zero, that are those of another place, and bits that flip.
        .mutator(|dice, input| {
            let mut bytes = input.to_vec();
            for _ in 0..=dice.below(3) {
                let pages = bytes.len() / 4096;
                if pages == 0 {
                    return None;
                }
                let (to, from) = (dice.below(pages) * 4096, dice.below(pages) * 4096);
                match dice.below(4) {
                    0 => bytes[to..to + 4096].fill(0),
                    1 => bytes.copy_within(from..from + 4096, to),
                    2 => bytes[dice.below(4096)] ^= 1 << dice.below(8),
                    _ => bytes.truncate(to),
                }
            }
            Some(bytes)
        })
        .memory(64 << 20, 64)
        .short(40)
        .run(|input| match try_copy(input) {
            Ok((version, database)) => match records(&database) {
                Ok(records) => Seen::accepted((version.min(3), records.len())),
                Err(error) => Seen::refused(&format!("{error:#}")),
            },
            Err(error) => {
                let text = format!("{error:#}");
                assert!(!text.is_empty() && text.len() < 2048, "{text}");
                Seen::refused(&text)
            }
        });
}

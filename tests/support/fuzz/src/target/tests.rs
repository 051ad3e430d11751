//! Planted faults, all of which must be found.

use super::*;
use crate::finding::processor_time;

fn plan(seed: u64, folder: &Path) -> Plan {
    Plan { time: None, seed, repeat: None, folder: Some(folder.to_owned()) }
}

/// A reader with the usual fault: it believes the length that it reads.
fn believes_the_length(input: &[u8]) -> Seen {
    let Some((b"LEN", rest)) = input.split_at_checked(3) else { return Seen::refused("no magic") };
    let [length, rest @ ..] = rest else { return Seen::refused("no length") };
    if rest.is_empty() {
        return Seen::refused("nothing follows");
    }
    Seen::accepted(rest[..usize::from(*length)].len().min(3))
}

fn target() -> Target {
    Target::new("planted").seed("whole", "LEN\x03abc").short(20_000)
}

#[test]
fn a_planted_fault_is_found_shortened_kept_and_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(1, folder.path());
    let found = target().search(&plan, &believes_the_length).unwrap_err();
    assert!(matches!(found.finding, Finding::Panic { .. }), "{found:?}");
    let text = target().tell(&plan, &found, &believes_the_length);
    for part in ["the target planted panicked at", "range end index", "--target planted --repeat", "seed 1"] {
        assert!(text.contains(part), "{text}");
    }
    let kept = std::fs::read_dir(folder.path().join("planted")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read(&kept).unwrap(), b"LEN00", "shorter and plainer it cannot be");
    let repeat = Plan { repeat: Some(kept), ..plan };
    assert!(target().search(&repeat, &believes_the_length).is_err());
}

#[test]
fn a_function_without_a_fault_passes_and_its_executions_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let report = target().search(&plan(1, folder.path()), &|input| Seen::accepted(input.len() / 4)).unwrap();
    assert_eq!(report.executions, 20_000);
    let line = report.to_string();
    assert!(
        line.starts_with("fuzz planted: 20000 executions in ") && line.contains(" per second, "),
        "{line}"
    );
}

#[test]
fn the_same_seed_finds_the_same_input_and_another_seed_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = [1, 1, 2]
        .map(|seed| target().search(&plan(seed, folder.path()), &believes_the_length).unwrap_err().input);
    assert_eq!(inputs[0], inputs[1]);
    assert_ne!(inputs[0], inputs[2]);
}

#[test]
fn what_an_input_led_to_guides_the_search() {
    // Each letter is one answer of its own: without keeping what is new nobody guesses all of them at once.
    let check = |input: &[u8]| {
        let right = input.iter().zip(b"open sesame").take_while(|(a, b)| a == b).count();
        assert!(right < 8, "the door is open");
        Seen::accepted(right)
    };
    let folder = tempfile::tempdir().unwrap();
    let target = Target::new("door").seed("nothing", "").short(400_000);
    let found = target.search(&plan(1, folder.path()), &check).unwrap_err();
    assert!(found.input.starts_with(b"open ses"), "{found:?}");
    let blind = |input: &[u8]| {
        check(input);
        Seen::accepted(0)
    };
    assert!(
        Target::new("door").seed("nothing", "").short(20_000).search(&plan(1, folder.path()), &blind).is_ok()
    );
}

#[test]
fn memory_that_grows_with_a_number_in_the_input_is_found() {
    let check = |input: &[u8]| {
        let length = input.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes) as usize);
        Seen::accepted(Vec::<u8>::with_capacity(length.min(1 << 30)).capacity().min(1))
    };
    let folder = tempfile::tempdir().unwrap();
    let target = || Target::new("memory").seed("small", "\0\0\0\x10rest").memory(1 << 20, 4).short(20_000);
    let found = target().search(&plan(1, folder.path()), &check).unwrap_err();
    assert!(matches!(found.finding, Finding::Memory { bytes, .. } if bytes > 1 << 20), "{found:?}");
}

#[test]
fn processor_time_without_bound_is_found() {
    let check = |input: &[u8]| {
        if input.starts_with(b"spin!") {
            let start = processor_time();
            while processor_time() - start < Duration::from_millis(100) {}
        }
        Seen::accepted(input.iter().zip(b"spin!").take_while(|(a, b)| a == b).count())
    };
    let folder = tempfile::tempdir().unwrap();
    let target = Target::new("time").seed("near", "spin?").words(&["!"]).time(Duration::from_millis(20));
    let found = target.short(50_000).search(&plan(1, folder.path()), &check).unwrap_err();
    assert!(matches!(found.finding, Finding::Time { .. }), "{found:?}");
}

#[test]
fn a_crash_of_the_process_leaves_the_input_in_hand() {
    let folder = tempfile::tempdir().unwrap();
    let ended = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "target::tests::crashes", "--ignored"])
        .env(crate::variables::FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(!ended.status.success());
    let kept = std::fs::read(folder.path().join("crash.current")).unwrap();
    let length = u64::from_be_bytes(*kept.first_chunk().unwrap()) as usize;
    assert!(kept[8..8 + length].starts_with(b"boom"), "{kept:?}");
}

/// Started as a process of its own by the test above.
#[test]
#[ignore = "it ends its process"]
fn crashes() {
    Target::new("crash").seed("it", "boom").run(|_| std::process::abort());
}

#[test]
#[should_panic(expected = "the target bare has no seed")]
fn a_target_without_seeds_fails() {
    Target::new("bare").run(|_| Seen::skipped());
}

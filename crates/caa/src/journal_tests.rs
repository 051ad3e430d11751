//! The journal over real files.

use cloud_providers::{CreateRequest, Scope, Token, Unit};

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::sandbox::Phase;

pub(super) fn record(id: &str) -> SandboxRecord {
    let token = Token::new(Scope::Cluster("c".into()), id, 1);
    let unit = Unit { id: id.into(), name_hint: "web".into() };
    SandboxRecord {
        id: id.into(),
        pod_name: "web".into(),
        pod_namespace: "default".into(),
        pod_uid: None,
        netns: "/run/netns/x".into(),
        instance_name: format!("podvm-web-{id}"),
        tunnel_id: 555_000,
        tunnel_port: 4789,
        pod_interface: "eth0".into(),
        dedicated: false,
        underlay: None,
        volumes: Vec::new(),
        phase: Phase::Planned,
        request: CreateRequest::new(token, unit, "node-1").with_user_data("keys"),
        identity: None,
        instance: None,
        resources: Vec::new(),
        created_unix: 7,
        order: Some(7),
        shim: None,
    }
}

fn ids(records: &[SandboxRecord]) -> Vec<&str> {
    records.iter().map(|r| r.id.as_str()).collect()
}

/// Opens, expects a refusal, and that the file is what it was.
async fn refused(dir: &Path) -> String {
    let path = dir.join(FILE);
    let before = fs::read(&path).unwrap();
    let error = format!("{:#}", Journal::open(dir).await.unwrap_err());
    assert_eq!(fs::read(&path).unwrap(), before, "a file that cannot be read is not touched");
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    error
}

#[tokio::test]
async fn records_outlive_the_daemon_and_are_readable_by_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).await.unwrap();
    let mut one = record("s1");
    journal.put(&one).await.unwrap();
    journal.put(&record("s2")).await.unwrap();
    one.phase = Phase::Ready;
    journal.put(&one).await.unwrap();
    journal.remove("s2").await.unwrap();
    journal.remove("s2").await.unwrap();
    drop(journal);
    let path = dir.path().join(FILE);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let kept = Journal::open(dir.path()).await.unwrap().list().await.unwrap();
    assert_eq!(ids(&kept), ["s1"]);
    assert_eq!(kept[0].phase, Phase::Ready);
    assert_eq!(kept[0].request, one.request, "a repeat asks for exactly the same");
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_crash() {
    // A crash closes nothing: what it leaves is the file as it is.
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).await.unwrap();
    for n in 0..20 {
        journal.put(&record(&format!("s{n:02}"))).await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        fs::copy(dir.path().join(FILE), copy.path().join(FILE)).unwrap();
        let kept = Journal::open(copy.path()).await.unwrap().list().await.unwrap();
        assert_eq!(kept.len(), n + 1, "what was answered is there");
    }
}

#[tokio::test]
async fn damaged_empty_and_foreign_files_end_the_start_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let journal = Journal::open(dir.path()).await.unwrap();
    for n in 0..10 {
        journal.put(&record(&format!("s{n}"))).await.unwrap();
    }
    drop(journal);
    let whole = fs::read(&path).unwrap();
    let spoilt: Vec<u8> =
        whole.iter().enumerate().map(|(i, b)| if i > 4096 { b ^ 0x5a } else { *b }).collect();
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("foreign", b"something else entirely".repeat(500)),
        ("half", whole[..whole.len() / 2].to_vec()),
        ("spoilt", spoilt),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = refused(dir.path()).await;
        assert!(error.contains("damaged and was not touched"), "{what}: {error}");
    }
    fs::write(&path, whole).unwrap();
    assert_eq!(Journal::open(dir.path()).await.unwrap().list().await.unwrap().len(), 10);
}

#[tokio::test]
async fn an_older_journal_is_migrated_and_a_newer_one_is_refused() {
    fn rename_pods(change: &WriteTransaction) -> Result<()> {
        let mut table = change.open_table(SANDBOXES)?;
        let mut changed = Vec::new();
        for entry in table.iter()? {
            let (id, json) = entry?;
            let mut value: serde_json::Value = serde_json::from_slice(json.value())?;
            value["pod_name"] = "migrated".into();
            changed.push((id.value().to_owned(), serde_json::to_vec(&value)?));
        }
        for (id, json) in changed {
            table.insert(id.as_str(), json.as_slice())?;
        }
        Ok(())
    }
    fn broken(_: &WriteTransaction) -> Result<()> {
        bail!("this step fails")
    }
    static NEXT: [Migration; 1] = [rename_pods];
    static BROKEN: [Migration; 2] = [rename_pods, broken];
    let dir = tempfile::tempdir().unwrap();
    Journal::open(dir.path()).await.unwrap().put(&record("s1")).await.unwrap();
    // A migration that fails half-way leaves the old version.
    assert!(open_with(dir.path(), &BROKEN).is_err());
    let old = Journal::open(dir.path()).await.unwrap().list().await.unwrap();
    assert_eq!(old[0].pod_name, "web");
    let newer = open_with(dir.path(), &NEXT).unwrap();
    assert_eq!(newer.list().await.unwrap()[0].pod_name, "migrated");
    drop(newer);
    let error = refused(dir.path()).await;
    assert!(error.contains("has version 2") && error.contains("up to 1"), "{error}");
}

#[tokio::test]
async fn a_second_daemon_waits_for_the_first_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let first = Journal::open(dir.path()).await.unwrap();
    first.put(&record("s1")).await.unwrap();
    let folder = dir.path().to_owned();
    let second = tokio::spawn(async move { Journal::open(&folder).await?.list().await });
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    drop(first);
    assert_eq!(second.await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn a_write_that_fails_is_told_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).await.unwrap();
    journal.put(&record("s1")).await.unwrap();
    let failed: Result<()> = journal.with(|_| bail!("the disk is full")).await;
    assert!(format!("{:#}", failed.unwrap_err()).contains("the disk is full"));
    journal.put(&record("s2")).await.unwrap();
    assert_eq!(ids(&journal.list().await.unwrap()), ["s1", "s2"]);
}

fn open_with(dir: &Path, migrations: &'static [Migration]) -> Result<Journal> {
    Journal::open_with(Arc::new(SystemDisk), dir, migrations, Hooks::default())
}

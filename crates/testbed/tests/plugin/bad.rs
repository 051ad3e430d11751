//! Programs that do what no provider may: each is a clear error, and none stays.

use std::sync::Arc;

use testbed::{Environment, Error, ErrorKind, ProviderConfig, Testbed, find, plugin::Executable};

use super::support::{BOUND, Memory, Program, context, limits, reservation};

const OPENED: &str = "echo '{\"type\":\"result\",\"id\":1}'\nread -r call\n";

/// Opens the program and calls it once.
async fn fails(program: &Program) -> Error {
    let call = async {
        let testbed = program.open().await?;
        testbed.init(&context(&Arc::default()), &reservation("one", 1)).await
    };
    tokio::time::timeout(BOUND, call).await.expect("the call is bounded").expect_err("the program is bad")
}

async fn refused(program: &Program, parts: &[&str]) {
    let error = fails(program).await;
    let text = error.report();
    for part in parts {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[tokio::test]
async fn one_that_dies_is_told_with_its_last_words() {
    let program = Program::sh(&format!("{OPENED}echo 'first words' >&2\necho 'no licence' >&2\nexit 3\n"));
    refused(&program, &["ended before it answered", "exit status: 3", "no licence", "testbed-provider-try"])
        .await;
    let program = Program::sh(&format!("{OPENED}kill -9 $$\n"));
    refused(&program, &["signal: 9"]).await;
    let program = Program::new("#!/bin/sh\necho 'what is this?' >&2\nexit 1\n");
    refused(&program, &["ended before it answered", "what is this?"]).await;
}

#[tokio::test]
async fn every_later_call_says_the_same() {
    let program = Program::sh(&format!("{OPENED}exit 3\n"));
    let testbed = program.open().await.unwrap();
    let (ctx, wanted) = (context(&Arc::default()), reservation("one", 1));
    let first = testbed.init(&ctx, &wanted).await.unwrap_err();
    let second = testbed.destroy(&ctx, &Environment::new(vec![wanted])).await.unwrap_err();
    assert_eq!(first, second);
}

#[tokio::test]
async fn garbage_is_shown_and_ends_the_program() {
    for line in ["Loading modules... done", "{\"type\":\"reslt\",\"id\":2}", "[1]", "{\"type\":\"result\"}"] {
        let program = Program::sh(&format!("{OPENED}echo '{line}'\nexec sleep 1000\n"));
        refused(&program, &["a line that is no message", line.get(..5).unwrap_or(line)]).await;
    }
    let program = Program::new("#!/bin/sh\nprintf '\\377\\n'\n");
    refused(&program, &["UTF-8"]).await;
}

#[tokio::test]
async fn an_answer_to_another_call_is_refused() {
    let program = Program::sh(&format!("{OPENED}echo '{{\"type\":\"result\",\"id\":7}}'\nread -r none\n"));
    refused(&program, &["a call that is not open (id: 7"]).await;
    let twice = "echo '{\"type\":\"result\",\"id\":1}'\n";
    refused(&Program::sh(&format!("{twice}{twice}read -r none\n")), &["not open (id: 1"]).await;
}

#[tokio::test]
async fn an_answer_of_another_form_is_refused() {
    let answer =
        "echo '{\"type\":\"result\",\"id\":2,\"value\":{\"hosts\":[{\"alias\":\"m0\"}]}}'\nread -r none\n";
    refused(&Program::sh(&format!("{OPENED}{answer}")), &["something else", "call: init", "missing field"])
        .await;
}

#[tokio::test]
async fn another_version_is_refused_with_both() {
    let program =
        Program::new("#!/bin/sh\nread -r h\necho '{\"type\":\"hello\",\"version\":9}'\nread -r none\n");
    refused(&program, &["another version of the protocol (its version: 9, ours: [1]"]).await;
    let early = Program::new("#!/bin/sh\necho '{\"type\":\"result\",\"id\":1}'\nread -r none\n");
    refused(&early, &["before it said hello"]).await;
    let twice = "echo '{\"type\":\"hello\",\"version\":1}'\n";
    refused(&Program::sh(&format!("{twice}read -r none\n")), &["hello twice"]).await;
    let error = "{\"type\":\"error\",\"error\":{\"kind\":\"permission\",\"message\":\"no licence\"}}";
    let program = Program::new(&format!("#!/bin/sh\nread -r h\necho '{error}'\nread -r none\n"));
    let error = fails(&program).await;
    assert_eq!(*error.kind(), ErrorKind::Permission);
}

#[tokio::test]
async fn one_that_says_no_hello_is_not_waited_for() {
    let program = Program::new("#!/bin/sh\necho $$ > \"$0.pid\"\nsleep 1000 &\nwait\n");
    let mut limits = limits();
    limits.hello = std::time::Duration::from_millis(500);
    let error = Executable::open(&program.file, &ProviderConfig::new("try"), limits).await.unwrap_err();
    assert!(error.to_string().contains("did not say hello"), "{error}");
    gone(&program).await;
}

#[tokio::test]
async fn one_that_ignores_cancel_and_sigterm_is_killed_with_all_it_started() {
    let stubborn = "trap '' TERM\necho $$ > \"$0.pid\"\necho '{\"type\":\"progress\",\"id\":2,\"machine\":\"m0\",\"event\":\"creating\"}'\nwhile :; do sleep 1000; done\n";
    let program = Program::sh(&format!("{OPENED}{stubborn}"));
    let testbed = program.open().await.unwrap();
    let memory = Arc::new(Memory::default());
    let ctx = context(&memory);
    let cancel = ctx.op.cancel.clone();
    let wanted = reservation("one", 1);
    let when_creating = async {
        while memory.told.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let both = async { tokio::join!(testbed.init(&ctx, &wanted), when_creating) };
    let (result, ()) = tokio::time::timeout(BOUND, both).await.unwrap();
    let error = result.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("was stopped: `destroy` gives back what it made"), "{error}");
    gone(&program).await;
}

/// Waits until no process is left of the program's group, which it leads.
async fn gone(program: &Program) {
    let pid = std::fs::read_to_string(program.path().join("testbed-provider-try.pid")).unwrap();
    let group: u32 = pid.trim().parse().unwrap();
    let left = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // The fields after the name in parentheses: state, parent, group.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            fields.get(2) == Some(&group.to_string().as_str()) && fields.first() != Some(&"Z")
        })
    };
    let wait = async {
        while left() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.expect("the group ends");
}

#[tokio::test]
async fn a_line_without_end_is_bounded() {
    let program = Program::new("#!/bin/sh\nexec cat /dev/zero\n");
    let mut limits = limits();
    limits.line = 1 << 16;
    let error = Executable::open(&program.file, &ProviderConfig::new("try"), limits).await.unwrap_err();
    assert!(error.to_string().contains("too long (limit: 65536 bytes"), "{error}");
}

#[tokio::test]
async fn secrets_are_in_no_error_whatever_the_program_prints() {
    let hello = "{\"type\":\"hello\",\"version\":1,\"keys\":[{\"name\":\"password\",\"secret\":true,\"kind\":\"text\"}]}";
    for act in ["echo \"oops $open\" >&2; exit 1", "echo \"oops $open\"; read -r none"] {
        let program = Program::new(&format!("#!/bin/sh\nread -r h\necho '{hello}'\nread -r open\n{act}\n"));
        let config = ProviderConfig::new("try").with("password", "canary-4711");
        let error = find::open(&program.search(), &config).await.unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains("[redacted]") || text.contains("oops"), "{text}");
        assert!(!text.contains("canary"), "{text}");
        let found = find::find(&program.search(), &config).await.unwrap();
        assert!(found.without_secrets(&config).extra.is_empty());
    }
}

#[tokio::test]
async fn a_program_that_cannot_start_is_named() {
    let program = Program::new("#!/not/there\n");
    let error = program.open().await.unwrap_err();
    assert!(error.to_string().contains("cannot be started") && error.to_string().contains("try"), "{error}");
}

//! The provider of the book, and calls that end early.

use std::{fs, path::Path, sync::Arc};

use testbed::{
    Environment, ErrorKind, Event, ProviderConfig, Testbed,
    find::{self, Origin},
    several,
};

use super::support::{Memory, Program, context, limits, reservation};

/// The program of the book, where Python is.
fn of_the_book() -> Program {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/testbed/examples/testbed-provider-directory.py");
    let text = fs::read_to_string(file).unwrap();
    Program::new(&text)
}

fn folders(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn the_program_of_the_book_makes_finds_and_destroys() {
    let (program, data) = (of_the_book(), tempfile::tempdir().unwrap());
    let config = ProviderConfig::new("TRY").with("folder", data.path().to_str().unwrap());
    let found = find::find(&program.search(), &config).await.unwrap();
    assert_eq!(found.origin, Origin::Executable(program.file.clone()));
    assert_eq!(found.keys.len(), 1);
    let testbed = found.open(&program.search(), &config).await.unwrap();
    assert!(testbed.features().status && testbed.features().makes_machines);

    let memory = Arc::new(Memory::default());
    let (ctx, wanted) = (context(&memory), reservation("one", 3));
    let plan = testbed.plan(&ctx, &wanted).await.unwrap();
    assert_eq!((plan.machines.len(), folders(data.path())), (3, 0), "a plan makes nothing");
    let got = several::settle(&wanted, testbed.init(&ctx, &wanted).await.unwrap()).unwrap();
    assert_eq!((got.hosts.len(), got.made.len(), folders(&data.path().join("one"))), (3, 3, 3));
    assert_eq!((got.hosts[1].port, got.hosts[1].address.as_str()), (2201, "127.0.0.1"));
    assert_eq!(memory.kept.lock().unwrap().len(), 3);
    let created = Event::Created { address: "127.0.0.1".into() };
    assert_eq!(memory.told.lock().unwrap()[0], ("m0".into(), created));

    let again = testbed.init(&ctx, &wanted).await.unwrap();
    assert!(again.made.is_empty());
    assert_eq!(memory.told.lock().unwrap().last().unwrap().1, Event::Found);
    let mut environment = Environment::new(vec![wanted]);
    environment.obtained = got;
    testbed.before_preinstall(&ctx, &environment).await.unwrap();
    testbed.after_preinstall(&ctx, &environment).await.unwrap();
    assert_eq!(testbed.status(&ctx, &environment).await.unwrap().len(), 3);
    let single = testbed.give_back(&ctx, &environment, &["m0".to_owned()].into()).await.unwrap_err();
    assert_eq!(*single.kind(), ErrorKind::Unsupported);
    testbed.destroy(&ctx, &environment).await.unwrap();
    testbed.destroy(&ctx, &environment).await.unwrap();
    assert_eq!(folders(data.path()), 0);
}

#[tokio::test]
async fn what_cannot_be_kept_is_undone_and_the_error_comes_back() {
    let (program, data) = (of_the_book(), tempfile::tempdir().unwrap());
    let config = ProviderConfig::new("try").with("folder", data.path().to_str().unwrap());
    let testbed = find::open(&program.search(), &config).await.unwrap();
    let memory = Arc::new(Memory { full: true, ..Memory::default() });
    let error = testbed.init(&context(&memory), &reservation("one", 2)).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (&ErrorKind::Quota, "the disk is full"));
    assert_eq!(folders(&data.path().join("one")), 0);
}

#[tokio::test]
async fn its_keys_are_checked_before_it_is_told_anything() {
    let program = of_the_book();
    let config = ProviderConfig::new("try").with("foldr", "x");
    let text = find::open(&program.search(), &config).await.unwrap_err().to_string();
    assert!(text.contains("did you mean \"folder\"?") && text.contains("\"folder\" is missing"), "{text}");
    let config = ProviderConfig::new("try").with("folder", "/not/there");
    let error = find::open(&program.search(), &config).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Config);
    assert!(error.to_string().contains("'/not/there' is not there"), "{error}");
}

/// Answers `open`, then waits for the cancel of the call and answers it.
const POLITE: &str = r#"echo '{"type":"result","id":1}'
read -r call
echo '{"type":"progress","id":2,"machine":"m0","event":"creating"}'
read -r cancel
case "$cancel" in
*'"cancel"'*) echo '{"type":"error","id":2,"error":{"kind":"cancelled","message":"undone"}}' ;;
*) echo "not a cancel: $cancel" ;;
esac
read -r next
"#;

#[tokio::test]
async fn a_cancelled_call_is_told_and_its_answer_is_waited_for() {
    let program = Program::sh(POLITE);
    let testbed = program.open().await.unwrap();
    let memory = Arc::new(Memory::default());
    let ctx = context(&memory);
    let cancel = ctx.op.cancel.clone();
    let wanted = reservation("one", 1);
    let call = testbed.init(&ctx, &wanted);
    let when_creating = async {
        while memory.told.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(call, when_creating);
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (&ErrorKind::Cancelled, "undone"));
}

#[tokio::test]
async fn a_deadline_cancels_too() {
    let program = Program::sh(POLITE);
    let testbed = program.open().await.unwrap();
    let mut ctx = context(&Arc::default());
    ctx.op = ctx.op.with_timeout(std::time::Duration::from_millis(100));
    let error = testbed.init(&ctx, &reservation("one", 1)).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (&ErrorKind::Cancelled, "undone"));
}

#[tokio::test]
async fn a_dropped_call_stops_the_program_and_the_next_one_starts_it_anew() {
    let act = r#"echo $$ >> "$0.pids"
echo '{"type":"result","id":1}'
read -r call
case "$call" in
*'"method":"destroy"'*) echo '{"type":"result","id":2}' ;;
*) echo '{"type":"progress","id":2,"machine":"m0","event":"creating"}' ;;
esac
read -r cancel
echo undone > "$0.undone"
"#;
    let program = Program::sh(act);
    let testbed = program.open().await.unwrap();
    let memory = Arc::new(Memory::default());
    let (ctx, wanted) = (context(&memory), reservation("one", 1));
    {
        let call = testbed.init(&ctx, &wanted);
        let started = async {
            while memory.told.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = call => panic!("it waits to be cancelled"),
            () = started => {}
        }
    }
    // It was killed as it stood: what it would undo now, somebody else may have found already.
    testbed.destroy(&ctx, &Environment::new(vec![wanted])).await.unwrap();
    let pids = fs::read_to_string(program.path().join("testbed-provider-try.pids")).unwrap();
    assert_eq!(pids.lines().count(), 2);
    assert!(!program.path().join("testbed-provider-try.undone").exists());
}

#[tokio::test]
async fn the_program_ends_when_nobody_needs_it() {
    let program =
        Program::sh("echo '{\"type\":\"result\",\"id\":1}'\nread -r none\necho over > \"$0.ended\"\n");
    let testbed = program.open().await.unwrap();
    drop(testbed);
    let ended = program.path().join("testbed-provider-try.ended");
    let wait = async {
        while !ended.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::support::BOUND, wait).await.unwrap();
    assert_eq!(limits().line, 16 << 20);
}

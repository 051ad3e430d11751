//! The provider's end, spoken to line by line.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use testbed::{
    Context, Environment, Error, Event, Host, Obtained, Reservation, Result, Testbed, async_trait,
    plugin::{Served, serve},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf, split},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::support::{BOUND, reservation};

/// Counts what it does. `init` keeps something, and then waits to be cancelled where there are two machines.
#[derive(Debug, Default)]
struct Counting {
    undone: AtomicUsize,
}

#[async_trait]
impl Testbed for Counting {
    async fn init(&self, ctx: &Context, wanted: &Reservation) -> Result<Obtained> {
        assert_ne!(wanted.experiment, "panic", "as asked for");
        ctx.keep.keep("k", Some(json!([ctx.state.len(), ctx.force]))).await?;
        ctx.tell("m0", Event::Creating);
        if wanted.machines.len() == 2 {
            ctx.op.cancel.cancelled().await;
            self.undone.fetch_add(1, Ordering::SeqCst);
            ctx.op.check()?;
        }
        Ok(Obtained::new(vec![Host::new("m0", "192.0.2.1", "i-0")], Vec::new()))
    }

    async fn destroy(&self, _: &Context, _: &Environment) -> Result<()> {
        Err(Error::new(testbed::ErrorKind::Permission, "not yours"))
    }
}

struct Line {
    to: WriteHalf<DuplexStream>,
    from: Lines<BufReader<ReadHalf<DuplexStream>>>,
    served: JoinHandle<Result<()>>,
    stop: CancellationToken,
    testbed: Arc<Counting>,
}

impl Line {
    fn new() -> Self {
        let testbed = Arc::new(Counting::default());
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (input, output) = split(theirs);
        let stop = CancellationToken::new();
        let served =
            tokio::spawn(serve(Served::testbed("counting", testbed.clone()), input, output, stop.clone()));
        let (from, to) = split(ours);
        Self { to, from: BufReader::new(from).lines(), served, stop, testbed }
    }

    async fn open() -> Self {
        let mut host = Self::new();
        host.say(json!({"type": "hello", "versions": [1, 7]})).await;
        assert_eq!(host.hear().await["version"], 1);
        let config = json!({"type": "counting", "name": "counting", "extra": {}});
        host.say(json!({"type": "call", "id": 1, "method": "open", "params": {"config": config}})).await;
        assert_eq!(host.hear().await["type"], "result");
        host
    }

    async fn say(&mut self, message: Value) {
        self.to.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let line = tokio::time::timeout(BOUND, self.from.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line.expect("it says something")).unwrap()
    }

    async fn call(&mut self, id: u64, method: &str, params: Value) {
        self.say(json!({"type": "call", "id": id, "method": method, "params": params})).await;
    }

    /// Asks for machines, and answers what is to be kept.
    async fn init(&mut self, id: u64, wanted: &Reservation) -> Value {
        let context = json!({"state": {"a": 1}, "force": true, "dir": "/x", "deadline_ms": 60_000});
        self.call(id, "init", json!({"context": context, "reservation": wanted})).await;
        let keep = self.hear().await;
        assert_eq!(
            (&keep["type"], &keep["id"], &keep["value"]),
            (&json!("keep"), &json!(id), &json!([1, true]))
        );
        keep
    }

    async fn kept(&mut self, keep: &Value) {
        self.say(json!({"type": "kept", "id": keep["id"], "keep": keep["keep"]})).await;
        assert_eq!(
            self.hear().await,
            json!({"type": "progress", "id": keep["id"], "machine": "m0", "event": "creating"})
        );
    }

    async fn ended(mut self) -> (Result<()>, usize) {
        // It may have ended already.
        let _ = self.to.shutdown().await;
        let served = tokio::time::timeout(BOUND, self.served).await.unwrap().unwrap();
        (served, self.testbed.undone.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn a_call_keeps_tells_and_is_answered() {
    let mut host = Line::open().await;
    let keep = host.init(2, &reservation("one", 1)).await;
    host.kept(&keep).await;
    let answer = host.hear().await;
    assert_eq!((&answer["id"], &answer["value"]["hosts"][0]["alias"]), (&json!(2), &json!("m0")));
    let environment = Environment::new(vec![reservation("one", 1)]);
    host.call(3, "destroy", json!({"environment": environment})).await;
    let answer = host.hear().await;
    assert_eq!((&answer["id"], &answer["error"]["kind"]), (&json!(3), &json!("permission")));
    assert!(host.ended().await.0.is_ok());
}

#[tokio::test]
async fn what_was_not_kept_is_the_error_of_the_call() {
    let mut host = Line::open().await;
    let keep = host.init(2, &reservation("one", 1)).await;
    let error = json!({"kind": "quota", "message": "the disk is full"});
    host.say(json!({"type": "kept", "id": 2, "keep": keep["keep"], "error": error})).await;
    assert_eq!(host.hear().await["error"]["message"], "the disk is full");
}

#[tokio::test]
async fn a_cancel_reaches_its_call_only() {
    let mut host = Line::open().await;
    let keep = host.init(2, &reservation("one", 2)).await;
    host.kept(&keep).await;
    host.say(json!({"type": "cancel", "id": 9})).await;
    host.say(json!({"type": "cancel", "id": 2})).await;
    assert_eq!(host.hear().await["error"]["kind"], "cancelled");
    assert_eq!(host.ended().await.1, 1);
}

#[tokio::test]
async fn the_end_of_the_input_ends_it_without_undoing() {
    let mut host = Line::open().await;
    let keep = host.init(2, &reservation("one", 2)).await;
    host.kept(&keep).await;
    // Whoever comes next may have found the machines already.
    let (served, undone) = host.ended().await;
    assert!(served.is_ok());
    assert_eq!(undone, 0);
}

#[tokio::test]
async fn a_program_that_is_told_to_end_undoes_first() {
    let mut host = Line::open().await;
    let keep = host.init(2, &reservation("one", 2)).await;
    host.kept(&keep).await;
    host.stop.cancel();
    assert_eq!(host.hear().await["error"]["kind"], "cancelled");
    assert_eq!(host.ended().await.1, 1);
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_program_serves_on() {
    let mut host = Line::open().await;
    host.call(2, "init", json!({"reservation": reservation("panic", 1)})).await;
    assert!(host.hear().await["error"]["message"].as_str().unwrap().contains("panicked"));
    let keep = host.init(3, &reservation("one", 1)).await;
    host.kept(&keep).await;
    assert_eq!(host.hear().await["type"], "result");
}

#[tokio::test]
async fn a_host_that_does_not_keep_to_the_protocol_is_told() {
    for (line, part) in [
        (json!({"type": "hello", "versions": [7]}), "no version of the protocol that both speak"),
        (json!({"type": "call", "id": 1, "method": "init"}), "hello comes first"),
        (json!({"type": "helo"}), "no message"),
    ] {
        let mut host = Line::new();
        host.say(line).await;
        let answer = host.hear().await;
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
        assert!(host.ended().await.0.is_err());
    }
    let mut host = Line::new();
    host.say(json!({"type": "hello", "versions": [1]})).await;
    host.hear().await;
    host.call(1, "plan", json!({"reservation": reservation("one", 1)})).await;
    assert!(host.hear().await["error"]["message"].as_str().unwrap().contains("`open` comes before"));
    let mut host = Line::open().await;
    host.call(2, "init", json!({})).await;
    assert_eq!(host.hear().await["error"]["message"], "params without reservation");
}

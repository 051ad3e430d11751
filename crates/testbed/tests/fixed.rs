//! The testbed `static`, with servers on the loopback interface.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use testbed::{Context, Environment, Error, Event, OpContext, Progress, Reservation, Result, document};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// A server that says `greeting`, until it is dropped.
struct Server {
    address: SocketAddr,
    accepted: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn new(ip: &str, greeting: &'static str) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("the loopback interface is there");
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(Notify::new());
        let told = accepted.clone();
        let task = tokio::spawn(async move {
            let mut open: Vec<TcpStream> = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(greeting.as_bytes()).await;
                open.push(stream);
                told.notify_one();
            }
        });
        Self { address, accepted, task }
    }

    async fn ssh() -> Self {
        Self::new("127.0.0.1", "welcome\r\nSSH-2.0-test\r\n").await
    }

    fn host(&self) -> String {
        format!("address: {}, port: {}", self.address.ip(), self.address.port())
    }
}

fn reservation(text: &str) -> Reservation {
    let read = document::check(text, Path::new("/tmp/demo"), "r.yaml");
    read.unwrap_or_else(|e| panic!("{e}\n{text}")).remove(0)
}

async fn testbed(reservation: &Reservation) -> Arc<dyn testbed::Testbed> {
    let registration = testbed::lookup("static").expect("static is linked in");
    (registration.new)(&reservation.provider).await.unwrap()
}

async fn init(text: &str) -> Result<testbed::Obtained> {
    let reservation = reservation(text);
    let dir = tempfile::tempdir().unwrap();
    testbed(&reservation).await.init(&Context::new(dir.path()), &reservation).await
}

#[tokio::test]
async fn hosts_that_answer_are_there_with_all_their_roles() -> Result<()> {
    let (a, b) = (Server::ssh().await, Server::ssh().await);
    let text = format!(
        "provider: static\nuser: root\nx-a: &a {{alias: a, {}, extra: {{rack: 7}}}}\nresources:\n  control: *a\n  \
         compute: [*a, {{alias: b, user: me, {}}}]\n",
        a.host(),
        b.host()
    );
    let got = init(&text).await?;
    assert!(got.missing.is_empty() && got.made.is_empty(), "{got:?}");
    let names: Vec<_> = got.hosts.iter().map(|h| (h.alias.as_str(), h.port)).collect();
    assert_eq!(names, [("a", a.address.port()), ("b", b.address.port())]);
    assert_eq!(got.hosts[0].roles.iter().collect::<Vec<_>>(), ["compute", "control"]);
    assert_eq!(got.hosts[0].extra["rack"], 7);
    assert_eq!(got.hosts[0].addresses, [IpAddr::from([127, 0, 0, 1])]);
    assert_eq!(got.hosts[1].user.as_deref(), Some("me"));
    Ok(())
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_missing_with_the_reason() -> Result<()> {
    let (good, other) = (Server::ssh().await, Server::new("127.0.0.1", "HTTP/1.1 400\r\n\r\n").await);
    let mute = Server::new("127.0.0.1", "").await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let text = format!(
        "provider: {{type: static, timeout: 1s}}\nresources:\n  r:\n    - {{alias: good, {}}}\n    - {{alias: web, {}}}\n    \
         - {{alias: mute, {}}}\n    - {{alias: closed, address: 127.0.0.1, port: {}}}\n    - {{alias: nobody, address: \
         nobody.invalid}}\n",
        good.host(),
        other.host(),
        mute.host(),
        closed.port()
    );
    let start = Instant::now();
    let got = init(&text).await?;
    assert!(start.elapsed() < Duration::from_secs(8), "hosts are asked at once");
    assert_eq!(got.hosts.len(), 1);
    for (name, reason) in [
        ("web", "does not greet"),
        ("mute", "does not greet"),
        ("closed", "cannot connect"),
        ("nobody", "nobody.invalid"),
    ] {
        assert!(got.missing[name].contains(reason), "{name}: {}", got.missing[name]);
    }
    Ok(())
}

#[tokio::test]
async fn one_host_under_two_names_is_an_error() {
    let server = Server::ssh().await;
    let port = server.address.port();
    let text = format!(
        "provider: static\nresources:\n  r:\n    - {{alias: a, address: 127.0.0.1, port: {port}}}\n    - {{alias: b, \
         address: '::ffff:127.0.0.1', port: {port}}}\n    - {{alias: c, address: localhost, port: {port}}}\n"
    );
    let error = init(&text).await.expect_err("all three are one");
    assert!(error.to_string().contains("`a` and `b`"), "{error}");
    assert!(error.to_string().contains("`c`"), "{error}");
    assert!(error.to_string().contains("name each host once"), "{error}");
}

#[tokio::test]
async fn destroy_touches_nothing_and_may_be_called_twice() -> Result<()> {
    let server = Server::ssh().await;
    let reservation =
        reservation(&format!("provider: static\nresources: {{r: {{alias: a, {}}}}}\n", server.host()));
    let testbed = testbed(&reservation).await;
    let dir = tempfile::tempdir().unwrap();
    let ctx = Context::new(dir.path());
    let mut environment = Environment::new(vec![reservation.clone()]);
    environment.obtained = testbed.init(&ctx, &reservation).await?;
    testbed.destroy(&ctx, &environment).await?;
    testbed.destroy(&ctx, &environment).await?;
    let status = testbed.status(&ctx, &environment).await?;
    assert_eq!((status[0].name.as_str(), status[0].state.as_str()), ("a", "running"));
    Ok(())
}

#[derive(Debug, Default)]
struct Notes(std::sync::Mutex<Vec<String>>);

impl Progress for Notes {
    fn tell(&self, _: &str, event: &Event) {
        if let Event::Note { text } = event {
            self.0.lock().unwrap().push(text.clone());
        }
    }
}

#[tokio::test]
async fn the_pool_is_that_of_the_document_or_it_says_that_there_is_none() -> Result<()> {
    let server = Server::ssh().await;
    let host = server.host();
    let mut got = init(&format!(
        "provider:\n  type: static\n  eths: [eno1, eno2]\n  network: {{cidr: 10.9.0.0/24, start: 10.9.0.10, end: 10.9.0.12, \
         gateway: 10.9.0.1, dns: 10.9.0.2, extra_ips: [10.9.0.99]}}\nresources: {{r: {{{host}}}}}\n"
    ))
    .await?;
    let taken: Vec<String> = (0..4).map(|_| got.take_ip(None, None, None).unwrap().to_string()).collect();
    assert_eq!(taken, ["10.9.0.99", "10.9.0.12", "10.9.0.11", "10.9.0.10"]);
    assert_eq!(got.hosts[0].extra["eths"], serde_json::json!(["eno1", "eno2"]));

    let reservation = reservation(&format!("provider: static\nresources: {{r: {{{host}}}}}\n"));
    let notes = Arc::new(Notes::default());
    let mut ctx = Context::new("/nowhere");
    ctx.progress = notes.clone();
    let mut got = testbed(&reservation).await.init(&ctx, &reservation).await?;
    assert!(got.networks.is_empty() && got.take_ip(None, None, None).is_err());
    assert!(notes.0.lock().unwrap()[0].contains("no free addresses"), "{notes:?}");
    let plan = testbed(&reservation).await.plan(&ctx, &reservation).await?;
    assert!(plan.machines[0].exists && plan.machines[0].what.starts_with("127.0.0.1:"), "{plan:?}");
    assert!(plan.notes[0].contains("no free addresses"), "{plan:?}");
    Ok(())
}

#[tokio::test]
async fn a_host_that_hangs_does_not_outlive_the_call() {
    let mute = Server::new("127.0.0.1", "").await;
    let reservation = reservation(&format!(
        "provider: {{type: static, timeout: 10m}}\nresources: {{r: {{{}}}}}\n",
        mute.host()
    ));
    let cancel = CancellationToken::new();
    let mut ctx = Context::new("/nowhere");
    ctx.op = OpContext::new().with_cancel(cancel.clone());
    let testbed = testbed(&reservation).await;
    let call = tokio::spawn(async move { testbed.init(&ctx, &reservation).await });
    mute.accepted.notified().await;
    cancel.cancel();
    let error: Error = call.await.unwrap().expect_err("the call was cancelled");
    assert_eq!(*error.kind(), testbed::ErrorKind::Cancelled);
}

#[tokio::test]
async fn a_host_behind_a_gateway_is_asked_for_through_it() -> Result<()> {
    let jump = Server::ssh().await;
    let got = init(&format!(
        "provider: static\nresources:\n  r:\n    - {{alias: a, address: 192.0.2.1, extra: {{gateway: 'me@{0}'}}}}\n    - \
         {{alias: b, address: 192.0.2.2, extra: {{gateway: '{0}'}}}}\n",
        jump.address
    ))
    .await?;
    assert_eq!(got.hosts.len(), 2);
    assert!(got.hosts[0].addresses.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_not_there_is_told_before_anything_is_asked() {
    let text = "provider: static\nresources: {r: {address: 192.0.2.1, alias: a, keyfile: nowhere/id}}\n";
    let error = init(text).await.expect_err("there is no such key");
    assert!(error.to_string().contains("/tmp/demo/nowhere/id"), "{error}");
}

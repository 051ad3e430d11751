//! What the controller's log says at which level.
//!
//! The only test of its program: whether anybody listens to a place in the code is found out when it is first passed, and a
//! test beside this one could pass it without a log.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers::{
    CreateRequest, Error, ErrorKind, OpContext, Provider, Scope, Token, Unit,
    scripted::{Fault, ScriptedProvider, World},
};
use cloud_providers_bundle as _;
use peerpod_api::{Claim, PodOwner, writes};
use peerpod_ctrl::{
    controller, hooks::Hooks, memory::Memory, metrics::Metrics, model::Record, providers::Fixed,
    settings::Settings, work::Parts,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{Layer as _, filter::LevelFilter, fmt, layer::SubscriberExt as _};

/// The log of this thread, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn has(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap()).contains(text)
    }

    /// The lines of a level since the last time.
    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }
}

fn of(lines: &[String], level: &str) -> Vec<String> {
    let word = format!(" {level} ");
    lines.iter().filter(|line| line.get(..40).is_some_and(|head| head.contains(&word))).cloned().collect()
}

/// Waits for a state, generously: time costs nothing here.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..36_000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not within an hour: {what}");
}

#[tokio::test(start_paused = true)]
async fn each_level_of_the_log_has_what_the_book_says() {
    let log = Log::default();
    let writer = log.clone();
    let lines = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(LevelFilter::TRACE));
    let _guard = tracing::subscriber::set_default(subscriber);

    let (world, cluster, stop) = (World::new(), Memory::new(), CancellationToken::new());
    let scope = || Scope::Cluster("c".into());
    let account = Arc::new(ScriptedProvider::new(&world)) as Arc<dyn Provider>;
    let parts = Parts {
        cluster: Arc::new(cluster.client()),
        providers: Arc::new(Fixed::new([("one", account)])),
        metrics: Metrics::new(),
        hooks: Hooks::default(),
    };
    let running = tokio::spawn(controller::run(parts, Settings::new(scope()), stop.clone()));
    let pod = async |name: &str| {
        let pod = cluster.add_pod("default", name, "node");
        let sandbox = format!("sandbox-{name}");
        let owner = PodOwner::new(&pod.key.namespace, &pod.key.name, &pod.uid);
        let token = Token::new(scope(), &sandbox, 1);
        let mut claim = Claim::new(&sandbox, token.clone(), owner);
        (claim.provider, claim.node, claim.order) = ("one".into(), Some("node".into()), Some(1));
        let object = cluster.create(writes::early(&claim)).unwrap();
        let unit = Unit { id: sandbox, name_hint: pod.key.name.clone() };
        let provider = ScriptedProvider::new(&world);
        let made = provider
            .create_instance(&OpContext::new(), &CreateRequest::new(token, unit, "node"))
            .await
            .unwrap();
        let key = Record::new(object.clone()).key;
        cluster.patch(&key, &writes::bind(&object, &made.id, &Default::default()).unwrap()).unwrap();
        pod
    };

    // A deletion that works: one line that an operator wants, and nothing above it.
    let web = pod("web").await;
    log.take();
    cluster.remove_pod(&web.key);
    until("the VM and its record are gone", || world.resources().is_empty() && cluster.objects().is_empty())
        .await;
    let told = log.take();
    assert_eq!((of(&told, "ERROR"), of(&told, "WARN")), (vec![], vec![]), "{told:#?}");
    let info = of(&told, "INFO");
    assert!(info.len() == 1 && info[0].contains("the pod VM is gone"), "{told:#?}");
    assert!(info[0].contains("sandbox-web") && info[0].contains("provider="), "{info:?}");

    // One that the cloud refuses: a warning with the reason for each try, since it goes on by itself; no error.
    let db = pod("db").await;
    let down = Error::new(ErrorKind::Transient, "the cloud is down");
    world.script(Fault::on("terminate_instance").forever().before(down));
    log.take();
    cluster.remove_pod(&db.key);
    until("the refusal is told", || log.has("the cloud is down")).await;
    world.clear_faults();
    until("the VM and its record are gone", || world.resources().is_empty() && cluster.objects().is_empty())
        .await;
    let told = log.take();
    assert_eq!(of(&told, "ERROR"), [""; 0], "{told:#?}");
    let warnings = of(&told, "WARN");
    assert!(
        !warnings.is_empty() && warnings.iter().all(|line| line.contains("the cloud is down")),
        "{told:#?}"
    );
    assert_eq!(of(&told, "INFO").len(), 1, "{told:#?}");
    stop.cancel();
    running.await.unwrap();
}

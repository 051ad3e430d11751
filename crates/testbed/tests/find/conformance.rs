//! The suite of all testbeds over those of this crate.

use std::sync::Arc;

use cloud_providers::{
    MapEnv, Resource, Scope,
    scripted::{ScriptedProvider, World},
    tags,
};
use testbed::{
    Group, Machine, ProviderConfig, Reservation, Result, StaticHost, Testbed, adapter, async_trait,
    conformance::{self, Harness, Report},
    find::{self, Search},
    userdata::HostKey,
};
use tokio::{io::AsyncWriteExt, net::TcpListener};

fn of(experiment: &str, provider: &str, machines: usize) -> Reservation {
    let mut reservation = Reservation::new(experiment, ProviderConfig::new(provider));
    reservation.groups.push(Group::new("node", machines));
    reservation.machines = (0..machines).map(|n| Machine::new(format!("m{n}"), 0, ["node"])).collect();
    reservation
}

fn good(report: &Report, skipped: &[&str]) {
    println!("{report}");
    assert!(report.passed(), "{report}");
    assert_eq!(report.skipped(), skipped, "{report}");
}

/// A cloud in memory, through the adapter.
struct Cloud {
    world: World,
    key: String,
}

#[async_trait]
impl Harness for Cloud {
    async fn open(&self) -> Result<Arc<dyn Testbed>> {
        Ok(adapter::over("scripted", Arc::new(ScriptedProvider::new(&self.world)), 2))
    }

    fn reservation(&self, experiment: &str, machines: usize) -> Reservation {
        let mut reservation = of(experiment, "scripted", machines);
        reservation.access.public_key = Some(self.key.clone());
        reservation
    }

    async fn there(&self, experiment: &str) -> Result<Vec<String>> {
        let scope = tags::encode_value(&Scope::Experiment(experiment.into()).to_string());
        let ours =
            self.world.resources().into_iter().filter(|remote| remote.tags.get(tags::SCOPE) == Some(&scope));
        let machines = ours.filter(|remote| remote.resource.kind == Resource::INSTANCE);
        Ok(machines.map(|remote| remote.name).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn a_cloud_through_the_adapter_is_a_testbed() {
    let cloud = Cloud { world: World::new(), key: HostKey::generate().unwrap().public().to_owned() };
    let report = conformance::run(&cloud).await;
    good(&report, &["pool/can-be-used"]);
    assert!(cloud.world.resources().is_empty(), "{:?}", cloud.world.resources());
}

/// Hosts that exist already.
struct Existing(Vec<u16>);

impl Existing {
    /// Three servers that greet as SSH does.
    async fn new() -> Self {
        let mut ports = Vec::new();
        for _ in 0..3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ports.push(listener.local_addr().unwrap().port());
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    // Whoever asks may be gone by now.
                    let _ = stream.write_all(b"SSH-2.0-test\r\n").await;
                }
            });
        }
        Self(ports)
    }
}

#[async_trait]
impl Harness for Existing {
    async fn open(&self) -> Result<Arc<dyn Testbed>> {
        find::open(&Search::new(Arc::new(MapEnv::default())), &ProviderConfig::new("static")).await
    }

    fn reservation(&self, experiment: &str, machines: usize) -> Reservation {
        let mut reservation = of(experiment, "static", machines);
        for (machine, port) in reservation.machines.iter_mut().zip(&self.0) {
            let mut host = StaticHost::new("127.0.0.1");
            host.port = Some(*port);
            machine.host = Some(host);
        }
        reservation
    }

    async fn there(&self, _: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn takes(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn hosts_that_exist_already_are_a_testbed() {
    let report = conformance::run(&Existing::new().await).await;
    good(&report, &["destroy/without-a-record", "give-back/those-alone", "pool/can-be-used"]);
}

/// A testbed that does nothing right.
struct Bad;

#[derive(Debug)]
struct Careless;

#[async_trait]
impl Testbed for Careless {
    async fn init(&self, _: &testbed::Context, wanted: &Reservation) -> Result<testbed::Obtained> {
        let host = |machine: &Machine| testbed::Host::new(&machine.name, &machine.name, "the-same");
        Ok(testbed::Obtained::new(wanted.machines.iter().map(host).collect(), Vec::new()))
    }

    async fn destroy(&self, _: &testbed::Context, _: &testbed::Environment) -> Result<()> {
        Err(testbed::Error::internal("never again"))
    }
}

#[async_trait]
impl Harness for Bad {
    async fn open(&self) -> Result<Arc<dyn Testbed>> {
        Ok(Arc::new(Careless))
    }

    fn reservation(&self, experiment: &str, machines: usize) -> Reservation {
        of(experiment, "bad", machines)
    }

    async fn there(&self, _: &str) -> Result<Vec<String>> {
        Ok(vec!["what is always there".into()])
    }
}

#[tokio::test]
async fn the_suite_finds_a_testbed_that_does_nothing_right() {
    let report = conformance::run(&Bad).await;
    assert!(!report.passed());
    let failed = report.to_string().lines().filter(|line| line.starts_with("FAILED")).count();
    assert_eq!(failed, report.outcomes().len(), "{report}");
}

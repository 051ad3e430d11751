//! The suite of all testbeds over this one, linked in and as an executable, and what only this one has.

use std::{fs, path::PathBuf, sync::Arc};

use my_testbed as _;
use testbed::{
    Context, Group, Machine, ProviderConfig, Reservation, Result, Shortage, Testbed, async_trait,
    conformance::{self, Harness},
    find::{self, Search},
    plugin::{Executable, Limits},
    several,
};

const RACK: &str = "# name address port kind\na 192.0.2.1 22 r640\nb 192.0.2.2 22 r640\nc lab-c 2222 r640\nd 192.0.2.4 22 nuc\nfree 192.0.2.8 192.0.2.9\n";

struct Lab {
    folder: tempfile::TempDir,
    executable: bool,
}

impl Lab {
    fn new(executable: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rack.txt"), RACK).unwrap();
        Self { folder, executable }
    }
}

#[async_trait]
impl Harness for Lab {
    async fn open(&self) -> Result<Arc<dyn Testbed>> {
        let config = ProviderConfig::new("my-provider").with("rack", "rack.txt");
        if self.executable {
            let file = PathBuf::from(env!("CARGO_BIN_EXE_testbed-provider-my-provider"));
            return Ok(Arc::new(Executable::open(&file, &config, Limits::default()).await?));
        }
        find::open(&Search::default(), &config).await
    }

    fn reservation(&self, experiment: &str, machines: usize) -> Reservation {
        let mut reservation = Reservation::new(experiment, ProviderConfig::new("my-provider"));
        reservation.base = self.folder.path().to_owned();
        reservation.groups.push(Group::new("all", machines));
        reservation.machines = (0..machines).map(|n| Machine::new(format!("m{n}"), 0, ["r"])).collect();
        reservation
    }

    async fn there(&self, experiment: &str) -> Result<Vec<String>> {
        let Ok(entries) = fs::read_dir(self.folder.path().join("rack.booked")) else { return Ok(Vec::new()) };
        let texts = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
        Ok(texts.filter(|text| text.contains(&format!("{experiment:?}"))).collect())
    }
}

#[tokio::test]
async fn it_is_a_testbed_linked_in_and_as_an_executable() {
    for executable in [false, true] {
        let report = conformance::run(&Lab::new(executable)).await;
        println!("{report}");
        assert!(report.passed() && report.skipped().is_empty(), "{report}");
    }
}

#[tokio::test]
async fn a_full_rack_is_a_shortage_that_names_the_group_or_is_lived_with() {
    let lab = Lab::new(false);
    let mut wanted = lab.reservation("greedy", 4);
    wanted.machines.iter_mut().for_each(|machine| machine.kind = Some("r640".into()));
    let contexts = |_: &str| Context::new("");
    let error = several::init(&[(wanted.clone(), lab.open().await.unwrap())], &contexts).await.unwrap_err();
    assert!(
        error.to_string().contains("has 3 of 4 machines and needs 4: every machine that fits is booked"),
        "{error}"
    );
    assert!(lab.there("greedy").await.unwrap().is_empty(), "all or nothing");
    wanted.shortage = Shortage::Lenient;
    let got = several::init(&[(wanted.clone(), lab.open().await.unwrap())], &contexts).await.unwrap();
    assert_eq!((got.hosts.len(), got.missing.len()), (3, 1));
    wanted.machines[0].kind = Some("cray".into());
    let error = several::plan(&[(wanted.clone(), lab.open().await.unwrap())], &contexts).await.unwrap_err();
    assert!(error.to_string().contains("kind \"cray\" (it has: nuc, r640"), "{error}");
    (wanted.machines[0].kind, wanted.machines[0].size.vcpus) = (None, Some(8));
    let error = lab.open().await.unwrap().init(&Context::new(""), &wanted).await.unwrap_err();
    assert!(error.to_string().contains("without a size"), "{error}");
}

#[tokio::test]
async fn a_line_that_is_no_machine_is_told_with_its_place() {
    let lab = Lab::new(false);
    fs::write(lab.folder.path().join("rack.txt"), "a 192.0.2.1 22 r640\nb 192.0.2.2\n").unwrap();
    let testbed = lab.open().await.unwrap();
    let error = testbed.init(&Context::new(""), &lab.reservation("x", 1)).await.unwrap_err();
    assert!(error.to_string().contains("rack.txt:2: \"b 192.0.2.2\" is no machine"), "{error}");
    let text = find::open(&Search::default(), &ProviderConfig::new("RACK")).await.unwrap_err().to_string();
    assert!(text.contains("\"rack\" is missing"), "{text}");
}

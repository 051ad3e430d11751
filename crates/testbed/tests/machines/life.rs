//! From nothing to machines and back, more than once.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use cloud_providers::ErrorKind;
use testbed::{Environment, Shortage};

use crate::{
    runner::Test,
    setup::{Kept, Setup},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "machines_are_found_again_and_what_is_missing_is_made",
        machines_are_found_again_and_what_is_missing_is_made,
    ),
    ("single_machines_are_given_back", single_machines_are_given_back),
    (
        "too_few_addresses_leave_machines_out_or_nothing_at_all",
        too_few_addresses_leave_machines_out_or_nothing_at_all,
    ),
    ("what_the_provider_cannot_give_is_told_at_once", what_the_provider_cannot_give_is_told_at_once),
];

fn machines_are_found_again_and_what_is_missing_is_made() -> Result<()> {
    let setup = Setup::new()?;
    let kept = Kept::default();
    let testbed = setup.testbed()?;
    let init = |n: usize, kept: &Kept| {
        let reservation = setup.reservation(n)?;
        setup.run(async { Ok(testbed.init(&kept.context(&setup), &reservation).await?) })
    };
    let first = init(2, &kept)?;
    let again = init(3, &kept)?;
    ensure!(again.hosts[..2] == first.hosts[..], "the same machines with the same keys");
    ensure!(again.made == BTreeSet::from(["node-3".to_owned()]), "{:?}", again.made);
    ensure!(setup.on(&again.hosts[2], "true")?.status.success());
    // Without what was kept they are found all the same; only their host keys are not known.
    let other = init(3, &Kept::default())?;
    ensure!(other.made.is_empty() && other.hosts[0].id == first.hosts[0].id);
    ensure!(other.hosts[0].host_key.is_none());
    // A machine that ended is made anew.
    let out = setup.on(&first.hosts[0], "kill -TERM 1; sleep 1000")?;
    ensure!(!out.status.success());
    test_support::wait_for("the machine to end", crate::setup::LIMIT, || {
        let environment = Environment::new(vec![setup.reservation(3).ok()?]);
        let status =
            setup.run(async { Ok(testbed.status(&kept.context(&setup), &environment).await?) }).ok()?;
        status.iter().any(|m| m.name == "node-1" && m.state == "stopped").then_some(())
    })?;
    let anew = init(3, &kept)?;
    ensure!(anew.made == BTreeSet::from(["node-1".to_owned()]), "{:?}", anew.made);
    ensure!(anew.hosts[0].host_key != first.hosts[0].host_key && anew.hosts[1] == first.hosts[1]);
    ensure!(setup.on(&anew.hosts[0], "true")?.status.success());
    // Addresses of the pool are nobody's.
    let pool = anew.networks[0].pool.as_ref().map(|p| (p.start, p.end));
    ensure!(pool == first.networks[0].pool.as_ref().map(|p| (p.start, p.end)) && pool.is_some());
    ensure!(anew.hosts.iter().all(|h| h.addresses.iter().all(|a| Some(*a) < pool.and_then(|p| p.0))));
    setup.destroy(&testbed, &kept)?;
    setup.check_clean()
}

fn single_machines_are_given_back() -> Result<()> {
    let setup = Setup::new()?;
    let kept = Kept::default();
    let testbed = setup.testbed()?;
    let reservation = setup.reservation(3)?;
    let obtained = setup.run(async { Ok(testbed.init(&kept.context(&setup), &reservation).await?) })?;
    let mut environment = Environment::new(vec![reservation]);
    environment.obtained = obtained;
    let some = BTreeSet::from(["node-1".to_owned(), "node-3".to_owned()]);
    let status = setup.run(async {
        testbed.give_back(&kept.context(&setup), &environment, &some).await?;
        Ok(testbed.status(&kept.context(&setup), &environment).await?)
    })?;
    let names: Vec<&str> = status.iter().map(|m| m.name.as_str()).collect();
    ensure!(names == ["node-2"], "{names:?}");
    setup.destroy(&testbed, &kept)?;
    setup.check_clean()
}

fn too_few_addresses_leave_machines_out_or_nothing_at_all() -> Result<()> {
    let setup = Setup::new()?;
    let kept = Kept::default();
    // Two addresses are left for machines.
    let config = setup.config().with("subnet", "198.51.100.0/29").with("reserved-addresses", 3);
    let testbed = setup.testbed_of(&config)?;
    let mut reservation = setup.reservation(3)?;
    let error = setup
        .run(async { Ok(testbed.init(&kept.context(&setup), &reservation).await.map(drop).unwrap_err()) })?;
    ensure!(matches!(error.kind(), ErrorKind::Capacity { .. }), "{error}");
    ensure!(error.to_string().contains("node has 2 of 3 machines and needs 3"), "{error}");
    setup.check_clean()?;
    reservation.shortage = Shortage::Lenient;
    let obtained = setup.run(async { Ok(testbed.init(&kept.context(&setup), &reservation).await?) })?;
    ensure!(obtained.hosts.len() == 2 && obtained.missing.len() == 1, "{obtained:?}");
    setup.run(async {
        let environment = Environment::new(vec![reservation]);
        Ok(testbed.destroy(&kept.context(&setup), &environment).await?)
    })?;
    setup.check_clean()
}

fn what_the_provider_cannot_give_is_told_at_once() -> Result<()> {
    let setup = Setup::new()?;
    let testbed = setup.testbed()?;
    let mut reservation = setup.reservation(3)?;
    reservation.machines[0].kind = Some("m9.huge".into());
    reservation.machines[1].image = Some("debian".into());
    reservation.machines[2].size.gpus = Some(2);
    let error =
        setup.run(async { Ok(testbed.init(&setup.context(), &reservation).await.map(drop).unwrap_err()) })?;
    for part in ["m9.huge", "an image per request", "2 GPUs", "node-1", "node-2", "node-3"] {
        ensure!(error.to_string().contains(part), "{part} is not in {error}");
    }
    let bad = setup.config().with("brigde", "x");
    let error = setup.testbed_of(&bad).map(drop).unwrap_err().to_string();
    ensure!(error.contains("brigde") && error.contains("machine-init"), "{error}");
    setup.check_clean()
}

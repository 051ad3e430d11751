//! The daemon is killed with SIGKILL, and another one goes on.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use cloud_providers::{OpContext, Ownership, Provider};
use nix::sys::signal::Signal;
use test_support::ProcessGuard;

use crate::{
    daemon,
    runner::Test,
    setup::{LIMIT, Setup, request, scope, token},
};

pub(crate) const TESTS: &[Test] = &[
    ("instances_survive_the_daemon_and_are_found_again", instances_survive_the_daemon_and_are_found_again),
    ("a_creation_killed_at_any_moment_is_released", a_creation_killed_at_any_moment_is_released),
    ("a_creation_killed_at_any_moment_is_repeated", a_creation_killed_at_any_moment_is_repeated),
    ("a_process_without_a_record_of_its_number_is_found", a_process_without_a_record_of_its_number_is_found),
    (
        "an_instance_whose_folder_was_removed_is_found_by_its_link",
        an_instance_whose_folder_was_removed_is_found_by_its_link,
    ),
];

fn start_daemon(setup: &Setup) -> Result<ProcessGuard> {
    let options = daemon::write_options(setup.dir.path(), &setup.env)?;
    let mut command = setup.netns.command(std::env::current_exe()?);
    command.arg(daemon::ROLE).arg(options);
    let log = setup.dir.path().join(test_support::unique("daemon"));
    let mut daemon = ProcessGuard::spawn("daemon", &mut command, &log)?;
    daemon.wait_for_output("begin", LIMIT)?;
    Ok(daemon)
}

fn kill(mut daemon: ProcessGuard) -> Result<()> {
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait_exit(LIMIT)?;
    Ok(())
}

fn instances_survive_the_daemon_and_are_found_again() -> Result<()> {
    let setup = Setup::new()?;
    let mut daemon = start_daemon(&setup)?;
    daemon.wait_for_output("made ", LIMIT)?;
    kill(daemon)?;
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let list = provider.list_owned(&OpContext::new(), &scope()).await?;
        ensure!(list.complete && list.entries.len() == 1, "{list:?}");
        let again = provider.create_instance(&OpContext::new(), &request("one")).await?;
        ensure!(list.entries[0].instance.as_ref() == Some(&again), "{list:?} {again:?}");
        Ok((provider, again))
    })?;
    ensure!(setup.report(&instance)?.pid == 1, "it still answers");
    setup.run(async {
        let owner = Ownership::Tagged(scope());
        Ok(provider.delete_instance(&OpContext::new(), &instance.id, &owner).await?)
    })?;
    setup.check_clean()
}

/// Kills daemons after ever longer times and hands what they left to `mend`.
fn kill_at_many_moments(mend: impl AsyncFn(&Setup, Arc<dyn Provider>) -> Result<()> + Sync) -> Result<()> {
    let setup = Setup::new()?;
    for step in 0..25u64 {
        let daemon = start_daemon(&setup)?;
        // No state to wait for: the point is to hit every moment of the creation.
        std::thread::sleep(Duration::from_micros(800 * step));
        kill(daemon)?;
        setup.netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { mend(&setup, setup.provider().await?).await })
        })?;
        // The kernel takes its time with the link of a creation that was killed before its instance ran.
        test_support::wait_for("the kernel to end the namespaces", LIMIT, || {
            let links = setup.netns.ip(&["-oneline", "link", "show"]).ok()?;
            (!links.contains("ppl")).then_some(())
        })?;
        setup.run(async {
            // A bridge whose last link went by itself goes with the next removal.
            Ok(setup.provider().await?.release(&OpContext::new(), &token("one")).await?)
        })?;
        setup.check_clean().map_err(|e| e.context(format!("killed after step {step}")))?;
    }
    Ok(())
}

fn a_creation_killed_at_any_moment_is_released() -> Result<()> {
    kill_at_many_moments(async |setup, provider| {
        provider.release(&OpContext::new(), &token("one")).await?;
        ensure!(provider.list_owned(&OpContext::new(), &scope()).await?.entries.is_empty());
        ensure!(setup.instance_processes().is_empty());
        Ok(())
    })
}

fn a_creation_killed_at_any_moment_is_repeated() -> Result<()> {
    kill_at_many_moments(async |setup, provider| {
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        ensure!(setup.instance_processes().len() == 1, "exactly one");
        let list = provider.list_owned(&OpContext::new(), &scope()).await?;
        ensure!(list.entries.len() == 1 && list.entries[0].instance.as_ref() == Some(&instance), "{list:?}");
        Ok(provider.release(&OpContext::new(), &token("one")).await?)
    })
}

fn a_process_without_a_record_of_its_number_is_found() -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        // What a daemon leaves that is killed right after the start of the process.
        let path = setup.data_dir().join("instances").join(instance.id.as_str()).join("instance.json");
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        record["phase"] = "creating".into();
        record["process"] = serde_json::Value::Null;
        std::fs::write(&path, record.to_string())?;
        let listed = provider.list_owned(&OpContext::new(), &scope()).await?;
        ensure!(listed.complete && listed.entries.len() == 1, "{listed:?}");
        let owner = Ownership::Tagged(scope());
        Ok(provider.delete_instance(&OpContext::new(), &instance.id, &owner).await?)
    })?;
    setup.check_clean()
}

fn an_instance_whose_folder_was_removed_is_found_by_its_link() -> Result<()> {
    for by_id in [true, false] {
        find_by_link(by_id)?;
    }
    Ok(())
}

fn find_by_link(by_id: bool) -> Result<()> {
    let setup = Setup::new()?;
    setup.run(async {
        let provider = setup.provider().await?;
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        std::fs::remove_dir_all(setup.data_dir().join("instances").join(instance.id.as_str()))?;
        let list = provider.list_owned(&OpContext::new(), &scope()).await?;
        ensure!(list.entries.len() == 1 && list.entries[0].token_tag == token("one").tag_value(), "{list:?}");
        let other = Ownership::Tagged(cloud_providers::Scope::Cluster("other".into()));
        ensure!(
            provider.delete_instance(&OpContext::new(), &instance.id, &other).await.is_err(),
            "it is not theirs"
        );
        if by_id {
            let owner = Ownership::Tagged(scope());
            provider.delete_instance(&OpContext::new(), &instance.id, &owner).await?;
        } else {
            provider.release(&OpContext::new(), &token("one")).await?;
        }
        Ok(())
    })?;
    setup.check_clean()
}

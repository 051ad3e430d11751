//! Creations that fail, are cancelled or are dropped.

use std::{fs, os::unix::process::CommandExt, time::Duration};

use anyhow::{Context, Result, ensure};
use cloud_providers::{CancellationToken, ErrorKind, OpContext};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    guest,
    runner::Test,
    setup::{Action, LIMIT, Recorder, Setup, has_ended, recording, request, scope, token},
};

/// Folder, link and instance.
const RESOURCES: usize = 3;

pub(crate) const TESTS: &[Test] = &[
    (
        "a_guest_that_ends_at_once_is_an_error_with_its_last_words",
        a_guest_that_ends_at_once_is_an_error_with_its_last_words,
    ),
    ("a_program_that_cannot_start_is_named", a_program_that_cannot_start_is_named),
    (
        "missing_programs_are_named_before_anything_is_made",
        missing_programs_are_named_before_anything_is_made,
    ),
    ("user_data_that_do_not_fit_leave_nothing", user_data_that_do_not_fit_leave_nothing),
    ("a_full_disk_fails_the_creation_and_leaves_nothing", a_full_disk_fails_the_creation_and_leaves_nothing),
    ("without_root_the_daemon_says_what_it_needs", without_root_the_daemon_says_what_it_needs),
    ("cancelling_at_each_resource_leaves_nothing", cancelling_at_each_resource_leaves_nothing),
    ("a_record_that_fails_leaves_nothing", a_record_that_fails_leaves_nothing),
    ("cancelling_at_any_moment_leaves_nothing", cancelling_at_any_moment_leaves_nothing),
    ("a_deadline_ends_the_creation", a_deadline_ends_the_creation),
    ("a_dropped_creation_leaves_only_what_was_recorded", a_dropped_creation_leaves_only_what_was_recorded),
    (
        "a_guest_that_ended_is_told_apart_from_one_that_runs",
        a_guest_that_ended_is_told_apart_from_one_that_runs,
    ),
];

fn a_guest_that_ends_at_once_is_an_error_with_its_last_words() -> Result<()> {
    // The time is generous, so that the guest ends within it on a busy machine; the wait is cut short by the end.
    let setup = Setup::new()?.with("LOCAL_BOOT_GRACE", "20s");
    setup.run(async {
        let provider = setup.provider().await?;
        let request = request("one").with_user_data(guest::FAIL);
        let error =
            provider.create_instance(&OpContext::new(), &request).await.err().context("it came to be")?;
        ensure!(error.to_string().contains("told so by its user data"), "{error:?}");
        ensure!(error.leftovers().is_empty(), "{error:?}");
        Ok(())
    })?;
    setup.check_clean()
}

fn a_program_that_cannot_start_is_named() -> Result<()> {
    let setup = Setup::new()?;
    let broken = setup.dir.path().join("guest/broken");
    fs::write(&broken, "#!/no/such/interpreter\n")?;
    fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let setup = setup.with("LOCAL_INIT", broken.display().to_string());
    setup.run(async {
        let provider = setup.provider().await?;
        let error = provider.create_instance(&OpContext::new(), &request("one")).await.unwrap_err();
        let report = error.report();
        ensure!(report.contains("broken") && report.contains("run the program"), "{report}");
        ensure!(error.leftovers().is_empty(), "{error:?}");
        Ok(())
    })?;
    setup.check_clean()
}

fn missing_programs_are_named_before_anything_is_made() -> Result<()> {
    let setup = Setup::new()?.with("LOCAL_INIT", "");
    setup.run(async {
        let provider = setup.provider().await?;
        let recorder = std::sync::Arc::new(Recorder::default());
        let error = provider.create_instance(&recording(&recorder), &request("one")).await.unwrap_err();
        let text = error.to_string();
        ensure!(text.contains("podvm-init") && text.contains("agent-protocol-forwarder"), "{text}");
        ensure!(recorder.count() == 0, "nothing was recorded");
        let verify =
            provider.verify_config(&OpContext::new()).await.unwrap().into_result().unwrap_err().to_string();
        ensure!(verify.contains("podvm-init"), "{verify}");
        Ok(())
    })?;
    setup.check_clean()
}

fn user_data_that_do_not_fit_leave_nothing() -> Result<()> {
    let setup = Setup::new()?.with("LOCAL_TMPFS_SIZE_MIB", "16");
    setup.run(async {
        let provider = setup.provider().await?;
        // Within the limit of the contract, but the instance's memory holds a little more than this alone.
        let large = request("one").with_user_data(vec![b'x'; 16 << 20]);
        let error = provider.create_instance(&OpContext::new(), &large).await.err().context("it fitted")?;
        ensure!(error.kind().label() == "capacity", "{error:?}");
        ensure!(error.to_string().contains("LOCAL_TMPFS_SIZE_MIB"), "{error:?}");
        Ok(())
    })?;
    setup.check_clean()
}

fn a_full_disk_fails_the_creation_and_leaves_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let (data, filler) = (setup.data_dir(), setup.data_dir().join("filler"));
    fs::create_dir(&data)?;
    setup.netns.run(|| {
        // The small disk is seen by this thread and those that it starts, and goes with them.
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("disk"), &data, Some("tmpfs"), MsFlags::empty(), Some("size=64k,mode=0700"))?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let provider = setup.provider().await?;
            ensure!(fs::write(&filler, vec![0; 1 << 20]).is_err(), "the disk is full now");
            let result = provider.create_instance(&OpContext::new(), &request("one")).await;
            let error = result.err().context("it fitted")?;
            ensure!(error.kind().label() == "capacity", "{error:?}");
            fs::remove_file(&filler)?;
            ensure!(crate::setup::files(&data)? == ["instances", "locks"]);
            // With room again the same request is met.
            provider.create_instance(&OpContext::new(), &request("one")).await?;
            provider.release(&OpContext::new(), &token("one")).await?;
            ensure!(crate::setup::files(&data)? == ["instances", "locks"]);
            Ok(())
        })
    })?;
    fs::create_dir(data.join("instances"))?;
    fs::create_dir(data.join("locks"))?;
    setup.check_clean()
}

fn without_root_the_daemon_says_what_it_needs() -> Result<()> {
    let setup = Setup::new()?;
    // Everybody may run it and read its options there.
    fs::set_permissions(setup.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let options = crate::daemon::write_options(setup.dir.path(), &setup.env)?;
    let mut command = std::process::Command::new(setup.dir.path().join("guest/init"));
    command.arg(crate::daemon::ROLE).arg(options).uid(65534).gid(65534);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && text.contains("needs root"), "{text}");
    ensure!(!setup.data_dir().exists(), "nothing was made");
    Ok(())
}

fn cancelling_at_each_resource_leaves_nothing() -> Result<()> {
    let setup = Setup::new()?;
    for n in 1..=RESOURCES {
        setup.run(async {
            let provider = setup.provider().await?;
            let cancel = CancellationToken::new();
            let recorder = Recorder::at(n, Action::Cancel(cancel.clone()));
            let ctx = recording(&recorder).with_cancel(cancel);
            let error =
                provider.create_instance(&ctx, &request("one")).await.err().context("it came to be")?;
            ensure!(*error.kind() == ErrorKind::Cancelled, "{error:?}");
            // They are recorded together, before any of them exists.
            ensure!(recorder.count() == RESOURCES, "{} are recorded", recorder.count());
            Ok(())
        })?;
        setup.check_clean().with_context(|| format!("cancelled at resource {n}"))?;
    }
    Ok(())
}

fn a_record_that_fails_leaves_nothing() -> Result<()> {
    let setup = Setup::new()?;
    for n in 1..=RESOURCES {
        setup.run(async {
            let provider = setup.provider().await?;
            let recorder = Recorder::at(n, Action::Fail);
            let error = provider.create_instance(&recording(&recorder), &request("one")).await.unwrap_err();
            ensure!(error.to_string().contains("the journal is full"), "{error:?}");
            Ok(())
        })?;
        setup.check_clean().with_context(|| format!("failed at resource {n}"))?;
    }
    Ok(())
}

fn cancelling_at_any_moment_leaves_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let mut cancelled = 0;
    for step in 0..40u64 {
        setup.run(async {
            let provider = setup.provider().await?;
            let cancel = CancellationToken::new();
            let ctx = OpContext::new().with_cancel(cancel.clone());
            let request = request("one");
            let creation = provider.create_instance(&ctx, &request);
            let stop = async {
                // No state to wait for: the point is to hit every moment of the creation.
                tokio::time::sleep(Duration::from_micros(700 * step)).await;
                cancel.cancel();
            };
            match tokio::join!(creation, stop).0 {
                Ok(_) => provider.release(&OpContext::new(), &token("one")).await?,
                Err(error) => {
                    ensure!(*error.kind() == ErrorKind::Cancelled, "{error:?}");
                    cancelled += 1;
                }
            }
            Ok(())
        })?;
        setup.check_clean().with_context(|| format!("step {step}"))?;
    }
    ensure!(cancelled > 5, "only {cancelled} of 40 creations were cancelled");
    Ok(())
}

fn a_deadline_ends_the_creation() -> Result<()> {
    let setup = Setup::new()?.with("LOCAL_BOOT_GRACE", "1s");
    setup.run(async {
        let provider = setup.provider().await?;
        let ctx = OpContext::new().with_timeout(Duration::from_millis(100));
        let error = provider.create_instance(&ctx, &request("one")).await.err().context("it came to be")?;
        ensure!(*error.kind() == ErrorKind::Cancelled, "{error:?}");
        Ok(())
    })?;
    setup.check_clean()
}

fn a_dropped_creation_leaves_only_what_was_recorded() -> Result<()> {
    let setup = Setup::new()?;
    for n in 1..=RESOURCES {
        setup.run(async {
            let provider = setup.provider().await?;
            let (send, mut told) = tokio::sync::mpsc::unbounded_channel();
            let recorder = Recorder::at(n, Action::Hang(send));
            let ctx = recording(&recorder);
            let request = request("one");
            tokio::select! {
                result = provider.create_instance(&ctx, &request) => anyhow::bail!("it returned: {result:?}"),
                _ = told.recv() => {}
            }
            let listed = provider.list_owned(&OpContext::new(), &scope()).await?;
            let seen = recorder.seen.lock().unwrap().clone();
            let unknown: Vec<_> =
                listed.entries.iter().flat_map(|e| &e.resources).filter(|r| !seen.contains(r)).collect();
            ensure!(unknown.is_empty(), "not recorded: {unknown:?}");
            // The lock is free again: the next call does not hang.
            let ctx = OpContext::new().with_timeout(LIMIT);
            Ok(provider.release(&ctx, &token("one")).await?)
        })?;
        setup.check_clean().with_context(|| format!("dropped at resource {n}"))?;
    }
    // Dropped while the work is under way: it goes on, everything of it was recorded, and release waits for it.
    for step in 0..20u64 {
        setup.run(async {
            let provider = setup.provider().await?;
            let request = request("one");
            let recorder = std::sync::Arc::new(Recorder::default());
            let ctx = recording(&recorder);
            let limit = Duration::from_micros(1000 * step);
            // Whether it was in time does not matter here.
            let _ = tokio::time::timeout(limit, provider.create_instance(&ctx, &request)).await;
            let ctx = OpContext::new().with_timeout(LIMIT);
            Ok(provider.release(&ctx, &token("one")).await?)
        })?;
        setup.check_clean().with_context(|| format!("dropped after step {step}"))?;
    }
    Ok(())
}

fn a_guest_that_ended_is_told_apart_from_one_that_runs() -> Result<()> {
    let setup = Setup::new()?;
    let (provider, instance) = setup.run(async {
        let provider = setup.provider().await?;
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        Ok((provider, instance))
    })?;
    // A process that ends loses its memory, and its variables with it, a while before the kernel calls it ended. So its
    // variables do not say when it has.
    let handles = setup.process_handles()?;
    ensure!(!handles.is_empty(), "the guest runs");
    setup.ask(&instance, "exit 7")?;
    test_support::wait_for("the guest to end", LIMIT, || handles.iter().all(has_ended).then_some(()))?;
    setup.run(async {
        let error = provider.create_instance(&OpContext::new(), &request("one")).await.unwrap_err();
        ensure!(*error.kind() == ErrorKind::NotFound, "{error:?}");
        ensure!(error.to_string().contains("guest listens"), "the console is quoted: {error:?}");
        // It is still there to be deleted.
        ensure!(provider.list_owned(&OpContext::new(), &scope()).await?.entries.len() == 1);
        Ok(provider.release(&OpContext::new(), &token("one")).await?)
    })?;
    setup.check_clean()
}

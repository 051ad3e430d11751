//! What goes wrong on the way, at every step.

use std::time::Duration;

use cloud_providers::{
    CancellationToken, Error, ErrorKind,
    scripted::{Fault, Lag},
};
use testbed::{Obtained, Result, Shortage};
use tokio::time::timeout;

use crate::setup::{User, least};

/// More than the calls of an init of three machines.
const CALLS: u64 = 40;

fn capacity() -> Error {
    Error::new(ErrorKind::Capacity { zone: None, instance_type: None }, "no room")
}

/// Checks what must hold after any init: either all is there, or nothing of this call.
fn settled(user: &User, result: &Result<Obtained>, what: &str) {
    match result {
        Ok(_) => assert_eq!(user.there(), User::once(3), "{what}"),
        Err(error) if error.leftovers().is_empty() => {
            assert!(user.is_empty(), "{what}: {error}: {:?}", user.world.resources());
        }
        Err(_) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_or_whose_reply_is_lost_leaves_nothing() {
    for nth in 1..CALLS {
        for lost in [false, true] {
            let user = User::new();
            let fault = Fault::on_call(nth).before(Error::new(ErrorKind::Permission, "you may not"));
            user.world.script(if lost { Fault::on_call(nth).lost_reply() } else { fault });
            let result = user.init(3).await;
            settled(&user, &result, &format!("call {nth}, lost {lost}"));
            user.world.clear_faults();
            user.init(3).await.unwrap_or_else(|e| panic!("call {nth}, lost {lost}: {e}"));
            assert_eq!(user.there(), User::once(3), "call {nth}, lost {lost}");
            user.destroy().await.unwrap();
            assert!(user.is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cancelling_at_any_call_leaves_nothing() {
    for nth in 1..CALLS {
        for after in [false, true] {
            let user = User::new();
            let told = CancellationToken::new();
            let fault = Fault::on_call(nth).telling(told.clone());
            user.world.script(if after { fault.hang_after() } else { fault.hang_before() });
            let mut context = user.context();
            let cancel = CancellationToken::new();
            context.op = context.op.with_cancel(cancel.clone());
            let (testbed, reservation) = (user.testbed(), user.reservation(3));
            let canceller = async {
                told.cancelled().await;
                cancel.cancel();
                std::future::pending::<()>().await
            };
            let result = tokio::select! {
                result = testbed.init(&context, &reservation) => result,
                () = canceller => unreachable!("it never ends"),
            };
            if let Err(error) = &result {
                assert_eq!(*error.kind(), ErrorKind::Cancelled, "call {nth}: {error}");
            }
            settled(&user, &result, &format!("call {nth}, after {after}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_init_that_is_killed_at_any_call_is_continued_or_given_back() {
    for nth in 1..CALLS {
        for (after, go_on) in [(false, false), (false, true), (true, false), (true, true)] {
            let user = User::new();
            let told = CancellationToken::new();
            let fault = Fault::on_call(nth).telling(told.clone());
            user.world.script(if after { fault.hang_after() } else { fault.hang_before() });
            tokio::select! {
                _ = user.init(3) => {}
                () = told.cancelled() => {}
            }
            user.world.clear_faults();
            let what = format!("call {nth}, after {after}");
            if go_on {
                let obtained = user.init(3).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(user.there(), User::once(3), "{what}");
                assert!(obtained.hosts.iter().all(|h| h.host_key.is_some()), "{what}");
            }
            user.destroy().await.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(user.is_empty(), "{what}: {:?}", user.world.resources());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_destroy_that_is_killed_or_fails_at_any_call_is_finished_by_the_next() {
    for nth in 1..CALLS {
        for kill in [false, true] {
            let user = User::new();
            user.init(3).await.unwrap();
            let told = CancellationToken::new();
            let fault = Fault::on_call(nth).telling(told.clone());
            user.world.script(if kill { fault.hang_after() } else { fault });
            if kill {
                tokio::select! {
                    _ = user.destroy() => {}
                    () = told.cancelled() => {}
                }
            } else {
                let _ = user.destroy().await;
            }
            user.world.clear_faults();
            user.destroy().await.unwrap_or_else(|e| panic!("call {nth}, kill {kill}: {e}"));
            assert!(user.is_empty(), "call {nth}, kill {kill}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_lists_a_killed_init_is_given_back_by_its_ids() {
    for nth in 1..CALLS {
        for release in [false, true] {
            let mut can = least();
            can.release = release;
            let user = User::new().with_capabilities(can);
            let told = CancellationToken::new();
            user.world.script(Fault::on_call(nth).telling(told.clone()).hang_before());
            tokio::select! {
                _ = user.init(3) => {}
                () = told.cancelled() => {}
            }
            user.world.clear_faults();
            user.destroy().await.unwrap_or_else(|e| panic!("call {nth}, release {release}: {e}"));
            if release {
                assert!(user.is_empty(), "call {nth}: {:?}", user.world.resources());
            } else {
                // Disks and interfaces whose instance was never recorded cannot be found by anybody.
                assert!(user.there().is_empty(), "call {nth}: {:?}", user.there());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_shortage_leaves_a_machine_out_where_the_document_allows_it() {
    let user = User::new();
    user.world.script(Fault::on("run_instance").nth(3).forever().before(capacity()));
    let error = user.init(4).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Capacity { .. }), "{error}");
    assert!(error.to_string().contains("node has 2 of 4 machines and needs 4"), "{error}");
    assert!(user.is_empty());

    for (shortage, min, fits) in [
        (Shortage::Lenient, None, true),
        (Shortage::Lenient, Some(3), false),
        (Shortage::Strict, Some(2), true),
        (Shortage::Strict, Some(3), false),
    ] {
        let user = User::new();
        user.world.script(Fault::on("run_instance").nth(3).forever().before(capacity()));
        let mut reservation = user.reservation(4);
        reservation.shortage = shortage;
        reservation.groups[0].min = min;
        let result = user.testbed().init(&user.context(), &reservation).await;
        assert_eq!(result.is_ok(), fits, "{shortage:?} {min:?}");
        match result {
            Ok(obtained) => {
                assert_eq!((obtained.hosts.len(), obtained.missing.len()), (2, 2));
                assert!(obtained.missing.values().all(|why| why.contains("no room")));
                user.world.clear_faults();
                let all = user.init(4).await.unwrap();
                assert_eq!(all.made.len(), 2, "what was short is made later");
                user.destroy().await.unwrap();
            }
            Err(_) => assert!(user.is_empty()),
        }
        assert!(user.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_gives_back_what_was_made_and_keeps_what_was_found() {
    let user = User::new();
    let first = user.init(2).await.unwrap();
    user.world.script(Fault::on("run_instance").nth(3).before(Error::new(ErrorKind::Auth, "who are you")));
    let error = user.init(8).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Auth, "{error}");
    assert_eq!(user.there(), User::once(2));
    assert_eq!(user.init(2).await.unwrap().hosts, first.hosts);
    user.destroy().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_deleted_is_told() {
    let user = User::new();
    user.init(2).await.unwrap();
    user.world
        .script(Fault::on("terminate_instance").forever().before(Error::new(ErrorKind::Permission, "no")));
    let error = timeout(Duration::from_secs(3600), user.destroy()).await.unwrap().unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Permission);
    let instances = error.leftovers().iter().filter(|r| r.kind == "instance").count();
    assert_eq!(instances, 2, "{:?}", error.leftovers());
    user.world.clear_faults();
    user.destroy().await.unwrap();
    assert!(user.is_empty());
}

#[tokio::test(start_paused = true)]
async fn two_inits_at_once_leave_no_machine_twice() {
    for latency in [0, 10, 100] {
        let one = User::new();
        let other = one.forgetful();
        one.world.set_latency(Duration::from_millis(latency));
        let results = tokio::join!(one.init(4), other.init(4));
        for (name, count) in one.there() {
            assert_eq!(count, 1, "{name} with {latency} ms: {results:?}");
        }
        one.destroy().await.unwrap();
        assert!(one.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_destroy_that_failed_took_away_is_never_taken_for_a_machine() {
    // Such a list shows for a while what is gone already.
    for nth in 1..CALLS {
        let user = User::new();
        user.world.set_lag(Lag::calls(2));
        user.init(3).await.unwrap();
        user.world.script(Fault::on_call(nth).before(Error::new(ErrorKind::Permission, "you may not")));
        let destroyed = user.destroy().await;
        user.world.clear_faults();
        user.init(3).await.unwrap_or_else(|e| panic!("call {nth}, {destroyed:?}: {}", e.report()));
        assert_eq!(user.there(), User::once(3), "call {nth}, {destroyed:?}");
        user.destroy().await.unwrap();
        assert!(user.is_empty());
    }
}

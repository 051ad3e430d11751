//! The rules of the contract, shown on the double: every remote call fails, hangs or is cut off once.

mod scripted_support;

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    Capabilities, Cloud, Error, ErrorKind, InstanceId, MapEnv, OpContext, Ownership, Provider, Resource,
    Scope, VolumeRequest, lookup,
    scripted::{DISK, Fault, INTERFACE, Lag, Outcome, ScriptedCloud, ScriptedProvider, VOLUME, World},
};
use scripted_support::{Notes, SLOW, create, request, scope, settled, slow_world};
use tokio::time::{Instant, sleep};

/// The remote calls of a create whose instance is up at once.
const CREATE: [&str; 9] = [
    "list_resources",
    "create_disk",
    "create_interface",
    "run_instance",
    "get_instance",
    "tag_resource",
    "tag_resource",
    "tag_resource",
    "get_instance",
];

// Rule 1: create is idempotent.

#[tokio::test(start_paused = true)]
async fn the_same_request_gives_the_same_instance() {
    let world = World::new();
    let first = create(&world, &request("s1")).await.unwrap();
    // Another value, as after a restart of the program.
    let second = create(&world, &request("s1")).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(first.name, "podvm-web-s1");
    assert_eq!(settled(&world), [DISK, INTERFACE, "instance"]);
    let other = create(&world, &request("s2")).await.unwrap();
    assert_ne!(first.id, other.id);
}

#[tokio::test(start_paused = true)]
async fn another_request_under_a_used_token_is_conflict_and_changes_nothing() {
    let world = World::new();
    create(&world, &request("s1")).await.unwrap();
    let before = world.resources();
    let error = create(&world, &request("s1").with_user_data("other")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Conflict);
    assert_eq!(world.resources(), before);
}

#[tokio::test(start_paused = true)]
async fn racing_creates_of_two_processes_give_one_instance_or_a_clean_error() {
    for offset in 0..110 {
        let world = slow_world();
        let (one, two) = (ScriptedProvider::new(&world), ScriptedProvider::new(&world));
        let (ctx, wanted) = (OpContext::new(), request("s1"));
        let late = async {
            sleep(Duration::from_millis(offset)).await;
            two.create_instance(&ctx, &wanted).await
        };
        let (a, b) = tokio::join!(one.create_instance(&ctx, &wanted), late);
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a, b, "offset {offset}");
        assert_eq!(settled(&world), [DISK, INTERFACE, "instance"], "offset {offset}");
    }
}

#[tokio::test(start_paused = true)]
async fn racing_creates_of_one_process_take_turns() {
    let world = slow_world();
    let provider = ScriptedProvider::new(&world);
    let (ctx, wanted) = (OpContext::new(), request("s1"));
    let (a, b) =
        tokio::join!(provider.create_instance(&ctx, &wanted), provider.create_instance(&ctx, &wanted));
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(world.operations().iter().filter(|o| **o == "run_instance").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_found_again_although_lists_lag() {
    for lag in [Lag::calls(50), Lag::time(Duration::from_secs(3600))] {
        let world = World::new();
        world.set_lag(lag);
        let first = create(&world, &request("s1")).await.unwrap();
        assert_eq!(create(&world, &request("s1")).await.unwrap(), first, "{lag:?}");
        assert_eq!(settled(&world), [DISK, INTERFACE, "instance"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_is_adopted_by_the_next_process() {
    for nth in 1..=CREATE.len() as u64 {
        let world = World::new();
        world.script(Fault::on_call(nth).hang_after());
        let (ctx, wanted, provider) = (OpContext::new(), request("s1"), ScriptedProvider::new(&world));
        // The process dies while the call hangs: its future is gone, without any clean-up.
        tokio::select! {
            biased;
            done = provider.create_instance(&ctx, &wanted) => panic!("call {nth} hangs, yet {done:?}"),
            () = sleep(SLOW) => {}
        }
        let left: Vec<Resource> = world.resources().into_iter().map(|r| r.resource).collect();
        create(&world, &wanted).await.unwrap();
        let now: Vec<Resource> = world.resources().into_iter().map(|r| r.resource).collect();
        assert!(
            left.iter().all(|r| now.contains(r)) && now.len() == 3,
            "call {nth}: {left:?} became {now:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_instance_is_gone_gets_a_new_one() {
    let world = World::new();
    world.set_shutdown_time(Duration::from_secs(5));
    let first = create(&world, &request("s1")).await.unwrap();
    let provider = ScriptedProvider::new(&world);
    provider.delete_instance(&OpContext::new(), &first.id, &Ownership::Tagged(scope())).await.unwrap();
    // The cloud replays the used idempotency value with the id of the instance that is gone.
    let second = create(&world, &request("s1")).await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(settled(&world), [DISK, INTERFACE, "instance"]);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_thing_of_the_same_name_is_conflict_and_stays() {
    for (kind, name) in
        [(DISK, "podvm-web-s1-disk"), (INTERFACE, "podvm-web-s1-nic"), ("instance", "podvm-web-s1")]
    {
        let world = World::new();
        world.add(kind, name, &[("owner", "somebody")]);
        let before = world.resources();
        let error = create(&world, &request("s1")).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(world.resources(), before, "{kind}: nothing of ours stays, nothing of theirs went");
    }
}

// Rule 2: a failed create leaves nothing.

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_call_leaves_nothing_or_is_outlived() {
    let mut failed = 0;
    // One more: this instance is asked for twice until it is up.
    for nth in 1..=CREATE.len() as u64 + 1 {
        let faults = [
            Fault::on_call(nth),
            Fault::on_call(nth).lost_reply(),
            Fault::on_call(nth).hang_before(),
            Fault::on_call(nth).hang_after(),
            Fault::on_call(nth).before(Error::new(ErrorKind::Quota, "no more")),
        ];
        for fault in faults {
            for lag in [Lag::default(), Lag::calls(3), Lag::time(Duration::from_secs(7))] {
                let world = slow_world();
                world.set_boot_time(SLOW);
                world.set_lag(lag);
                world.script(fault.clone());
                let notes = Notes::new(&world);
                let ctx = OpContext::new().with_record(notes.clone());
                match ScriptedProvider::new(&world).create_instance(&ctx, &request("s1")).await {
                    Ok(_) => assert_eq!(settled(&world), [DISK, INTERFACE, "instance"]),
                    Err(error) => {
                        failed += 1;
                        assert!(world.resources().is_empty(), "{fault:?}, {lag:?}: {error}");
                        assert_eq!(error.leftovers(), [], "{fault:?}");
                    }
                }
                // Whatever happened, the same request succeeds now.
                create(&world, &request("s1")).await.unwrap();
                assert_eq!(settled(&world), [DISK, INTERFACE, "instance"], "{fault:?}, {lag:?}");
            }
        }
    }
    assert!(failed > 90, "only {failed} faults had an effect");
}

#[tokio::test(start_paused = true)]
async fn cancelling_at_any_moment_leaves_nothing() {
    let mut cancelled = 0;
    for at in 0..130 {
        for by_deadline in [false, true] {
            let world = slow_world();
            let provider = ScriptedProvider::new(&world);
            let mut ctx = OpContext::new();
            let token = ctx.cancel.clone();
            if by_deadline {
                ctx = ctx.with_timeout(Duration::from_millis(at));
            }
            let wanted = request("s1");
            let cancel = async {
                sleep(Duration::from_millis(at)).await;
                if !by_deadline {
                    token.cancel();
                }
            };
            let (result, ()) = tokio::join!(provider.create_instance(&ctx, &wanted), cancel);
            match result {
                Ok(_) => assert_eq!(settled(&world), [DISK, INTERFACE, "instance"]),
                Err(error) => {
                    cancelled += 1;
                    assert_eq!(*error.kind(), ErrorKind::Cancelled, "{error}");
                    assert!(world.resources().is_empty(), "at {at} ms: {error}");
                }
            }
        }
    }
    assert!((150..260).contains(&cancelled), "{cancelled}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_leaves_exactly_what_was_recorded() {
    let mut left_something = 0;
    for at in 0..130 {
        let world = slow_world();
        let notes = Notes::new(&world);
        let ctx = OpContext::new().with_record(notes.clone());
        let (provider, wanted) = (ScriptedProvider::new(&world), request("s1"));
        tokio::select! {
            biased;
            _ = provider.create_instance(&ctx, &wanted) => {}
            () = sleep(Duration::from_millis(at)) => {}
        }
        let there: Vec<Resource> = world.resources().into_iter().map(|r| r.resource).collect();
        assert_eq!(notes.resources(), there, "at {at} ms");
        left_something += usize::from(!there.is_empty());
        provider.release(&OpContext::new(), &wanted.token).await.unwrap();
        assert!(world.resources().is_empty());
    }
    assert!(left_something > 80, "{left_something}");
}

#[tokio::test(start_paused = true)]
async fn each_resource_is_recorded_before_the_next_remote_call() {
    let world = World::new();
    let notes = Notes::new(&world);
    let ctx = OpContext::new().with_record(notes.clone());
    ScriptedProvider::new(&world).create_instance(&ctx, &request("s1")).await.unwrap();
    let last: Vec<&str> = notes.last_operations();
    assert_eq!(last, ["create_disk", "create_interface", "run_instance"]);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_fails_undoes_the_create() {
    for nth in 1..=3 {
        let world = World::new();
        let notes = Notes::failing_at(&world, nth);
        let ctx = OpContext::new().with_record(notes);
        let error = ScriptedProvider::new(&world).create_instance(&ctx, &request("s1")).await.unwrap_err();
        assert_eq!(error.to_string(), "the journal is full");
        assert!(world.resources().is_empty(), "record {nth}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_undone_is_in_the_error_and_recorded() {
    let world = World::new();
    world.script(Fault::on("run_instance").before(Error::new(ErrorKind::Quota, "no more instances")));
    world.script(Fault::on("delete_disk").forever());
    let notes = Notes::new(&world);
    let ctx = OpContext::new().with_record(notes.clone());
    let error = ScriptedProvider::new(&world).create_instance(&ctx, &request("s1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Quota, "the first error is the one to tell");
    let there: Vec<Resource> = world.resources().into_iter().map(|r| r.resource).collect();
    assert_eq!(there.len(), 1);
    assert_eq!(error.leftovers(), there);
    assert!(notes.resources().contains(&there[0]));
    world.clear_faults();
    ScriptedProvider::new(&world).release(&OpContext::new(), &request("s1").token).await.unwrap();
    assert!(world.resources().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_cannot_look_says_that_something_may_be_left() {
    let world = World::new();
    world.script(Fault::on("run_instance").lost_reply());
    world.script(Fault::on("list_resources").nth(2).forever());
    let error = create(&world, &request("s1")).await.unwrap_err();
    let unconfirmed = Resource::new("unconfirmed", request("s1").token.tag_value());
    assert!(error.leftovers().contains(&unconfirmed), "{error}");
}

// Rule 3: delete means gone.

#[tokio::test(start_paused = true)]
async fn delete_takes_everything_but_the_users_volumes() {
    let world = World::new();
    world.set_shutdown_time(Duration::from_secs(20));
    let volume = world.add(VOLUME, "data", &[]);
    let mut wanted = request("s1");
    wanted.spec.volumes.push(VolumeRequest::new(&volume));
    let instance = create(&world, &wanted).await.unwrap();
    create(&world, &request("s2")).await.unwrap();
    let provider = ScriptedProvider::new(&world);
    let start = Instant::now();
    for _ in 0..2 {
        provider.delete_instance(&OpContext::new(), &instance.id, &Ownership::Tagged(scope())).await.unwrap();
    }
    assert!(start.elapsed() >= Duration::from_secs(20), "it waits until the instance is gone");
    assert_eq!(settled(&world), [VOLUME, DISK, INTERFACE, "instance"], "the other instance stays, too");
}

#[tokio::test(start_paused = true)]
async fn delete_of_a_missing_instance_is_ok() {
    let provider = ScriptedProvider::new(&World::new());
    let id = InstanceId::new("s-999999");
    for ownership in [Ownership::Tagged(scope()), Ownership::Recorded { name: "podvm-x-y".into() }] {
        provider.delete_instance(&OpContext::new(), &id, &ownership).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_fails_at_any_call_is_finished_by_its_repetition() {
    let mut failed = 0;
    for nth in 1..20 {
        for fault in [
            Fault::on_call(nth),
            Fault::on_call(nth).lost_reply(),
            Fault::on_call(nth).hang_after(),
            Fault::on_call(nth).before(Error::new(ErrorKind::Permission, "no")),
        ] {
            let world = slow_world();
            world.set_shutdown_time(SLOW);
            world.set_lag(Lag::calls(2));
            let instance = create(&world, &request("s1")).await.unwrap();
            world.script(fault.clone());
            let provider = ScriptedProvider::new(&world);
            let delete = || async {
                provider.delete_instance(&OpContext::new(), &instance.id, &Ownership::Tagged(scope())).await
            };
            failed += usize::from(delete().await.is_err());
            world.clear_faults();
            delete().await.unwrap();
            assert!(world.resources().is_empty(), "{fault:?}: {:?}", world.resources());
        }
    }
    assert!(failed > 5, "{failed}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_is_not_deleted() {
    let world = World::new();
    let foreign = InstanceId::new(world.add("instance", "web", &[("owner", "somebody")]));
    let ours = create(&world, &request("s1")).await.unwrap().id;
    let provider = ScriptedProvider::new(&world);
    let other = Scope::Cluster("another".into());
    for (id, ownership) in [
        (&foreign, Ownership::Tagged(scope())),
        (&ours, Ownership::Tagged(other)),
        (&foreign, Ownership::Recorded { name: "podvm-web-s1".into() }),
        (&ours, Ownership::Recorded { name: "podvm-web-s2".into() }),
    ] {
        let error = provider.delete_instance(&OpContext::new(), id, &ownership).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Permission, "{id} {ownership:?}");
    }
    assert_eq!(settled(&world), ["instance", DISK, INTERFACE, "instance"]);
}

#[tokio::test(start_paused = true)]
async fn a_recorded_name_deletes_an_untagged_instance_of_older_programs() {
    let world = World::new();
    let old = InstanceId::new(world.add("instance", "podvm-web-0a1b2c3d", &[]));
    world.add("instance", "podvm-web-0a1b2c3e", &[]);
    let ownership = Ownership::Recorded { name: "podvm-web-0a1b2c3d".into() };
    ScriptedProvider::new(&world).delete_instance(&OpContext::new(), &old, &ownership).await.unwrap();
    assert_eq!(world.resources().len(), 1);
    assert_eq!(world.resources()[0].name, "podvm-web-0a1b2c3e");
}

// Lists, release, capabilities.

#[tokio::test(start_paused = true)]
async fn a_list_has_one_entry_per_token_with_all_its_resources() {
    let world = World::new();
    world.set_page_size(2);
    let a = create(&world, &request("s1")).await.unwrap();
    world.script(Fault::on("run_instance").hang_before());
    world.script(Fault::on("delete_disk").forever());
    create(&world, &request("s2")).await.unwrap_err();
    world.add(DISK, "foreign", &[]);
    let provider = ScriptedProvider::new(&world);
    let list = provider.list_owned(&OpContext::new(), &scope()).await.unwrap();
    assert!(list.complete);
    assert_eq!(list.entries.len(), 2);
    let (first, second) = (&list.entries[0], &list.entries[1]);
    assert_eq!(first.instance.as_ref(), Some(&a));
    assert_eq!(first.resources.len(), 3);
    assert_eq!(first.token, Some(request("s1").token));
    assert_eq!(first.holder.as_deref(), Some("node-1"));
    assert!(first.created_unix.is_some());
    assert_eq!(second.instance, None);
    assert_eq!(second.resources.len(), 1, "the disk that could not be undone");
    let other = provider.list_owned(&OpContext::new(), &Scope::Experiment("e".into())).await.unwrap();
    assert!(other.entries.is_empty() && other.complete);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_says_that_it_is_incomplete() {
    let world = World::new();
    create(&world, &request("s1")).await.unwrap();
    create(&world, &request("s2")).await.unwrap();
    world.set_page_size(4);
    world.script(Fault::on("list_resources").nth(2));
    let provider = ScriptedProvider::new(&world);
    let list = provider.list_owned(&OpContext::new(), &scope()).await.unwrap();
    assert!(!list.complete);
    assert_eq!(list.entries.iter().map(|e| e.resources.len()).sum::<usize>(), 4);
    world.script(Fault::on("list_resources"));
    assert!(provider.list_owned(&OpContext::new(), &scope()).await.is_err(), "nothing came at all");
}

#[tokio::test(start_paused = true)]
async fn lists_lag_by_calls_and_by_time() {
    let count = |world: &World| {
        let provider = ScriptedProvider::new(world);
        async move { provider.list_owned(&OpContext::new(), &scope()).await.unwrap().entries.len() }
    };
    let world = World::new();
    world.set_lag(Lag::calls(3));
    create(&world, &request("s1")).await.unwrap();
    assert_eq!([count(&world).await, count(&world).await, count(&world).await], [0, 0, 0]);
    create(&world, &request("s2")).await.unwrap();
    assert_eq!([count(&world).await, count(&world).await, count(&world).await], [1, 1, 1]);
    assert_eq!(count(&world).await, 2);
    sleep(Duration::from_secs(60)).await;
    world.set_lag(Lag::time(Duration::from_secs(60)));
    create(&world, &request("s3")).await.unwrap();
    assert_eq!(count(&world).await, 2);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(count(&world).await, 3);
    let release = ScriptedProvider::new(&world);
    release.release(&OpContext::new(), &request("s3").token).await.unwrap();
    assert_eq!(count(&world).await, 3, "what went is shown for a while");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(count(&world).await, 2);
}

#[tokio::test(start_paused = true)]
async fn release_removes_what_never_became_an_instance_and_nothing_else() {
    let world = World::new();
    create(&world, &request("s2")).await.unwrap();
    world.script(Fault::on("run_instance").hang_after());
    let (ctx, wanted, provider) = (OpContext::new(), request("s1"), ScriptedProvider::new(&world));
    tokio::select! {
        biased;
        _ = provider.create_instance(&ctx, &wanted) => panic!("the call hangs"),
        () = sleep(SLOW) => {}
    }
    assert_eq!(world.resources().len(), 6, "the instance was made, and nobody recorded it");
    for _ in 0..2 {
        provider.release(&ctx, &wanted.token).await.unwrap();
    }
    assert_eq!(settled(&world), [DISK, INTERFACE, "instance"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_switched_off_is_refused_before_any_call() {
    let world = World::new();
    let provider = ScriptedProvider::new(&world).with_capabilities(Capabilities::default());
    let ctx = OpContext::new();
    let mut wanted = request("s1");
    wanted.spec.volumes.push(VolumeRequest::new("v"));
    let kinds = [
        provider.verify_config(&ctx).await.unwrap_err(),
        provider.list_owned(&ctx, &scope()).await.unwrap_err(),
        provider.release(&ctx, &wanted.token).await.unwrap_err(),
        provider.create_instance(&ctx, &wanted).await.unwrap_err(),
    ];
    assert!(kinds.iter().all(|e| *e.kind() == ErrorKind::Unsupported), "{kinds:?}");
    let large = request("s1").with_user_data(vec![b'x'; 16 * 1024 + 1]);
    assert!(create(&world, &large).await.unwrap_err().to_string().contains("limit: 16384"));
    assert!(world.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_at_its_limit() {
    let world = World::new();
    world.script(Fault::on("create_interface").hang_before());
    let provider = ScriptedProvider::new(&world).with_call_limit(Duration::from_secs(9));
    let start = Instant::now();
    let error = provider.create_instance(&OpContext::new(), &request("s1")).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient);
    assert!((9..11).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(world.resources().is_empty());
}

#[tokio::test(start_paused = true)]
async fn calls_are_kept_with_time_and_outcome() {
    let world = World::new();
    world.set_latency(Duration::from_millis(10));
    world.set_latency_of("run_instance", Duration::from_secs(1));
    create(&world, &request("s1")).await.unwrap();
    assert_eq!(world.operations(), CREATE);
    let calls = world.calls();
    assert_eq!(calls[1].target, "podvm-web-s1-disk");
    assert_eq!(calls[3].at.as_millis(), 30);
    assert_eq!(calls[4].at.as_millis(), 1030);
    assert!(calls.iter().all(|c| c.outcome == Outcome::Done));
    world.script(Fault::on("list_resources"));
    create(&world, &request("s2")).await.unwrap_err();
    assert!(
        matches!(&world.calls().last().unwrap().outcome, Outcome::Failed(text) if text.contains("scripted"))
    );
}

#[tokio::test(start_paused = true)]
async fn the_double_is_reached_by_name_and_options() {
    let registration = lookup("scripted").unwrap();
    let mut cloud = (registration.new)();
    let env = [
        ("SCRIPTED_WORLD", "by-name"),
        ("SCRIPTED_ADDRESS", "127.0.0.9"),
        ("SCRIPTED_FAULTS", "create_disk:1:before"),
        ("SCRIPTED_KEY", "canary"),
    ];
    cloud.load_env(&MapEnv::new(env)).unwrap();
    let provider: Arc<dyn Provider> = cloud.new_provider().await.unwrap();
    let ctx = OpContext::new();
    provider.create_instance(&ctx, &request("s1")).await.unwrap_err();
    let instance = provider.create_instance(&ctx, &request("s1")).await.unwrap();
    assert_eq!(instance.addresses[0].to_string(), "127.0.0.9");
    assert_eq!(World::named("by-name").resources().len(), 3);
    provider.teardown().await.unwrap();
    provider.teardown().await.unwrap();
    assert_eq!(World::named("by-name").resources().len(), 3, "teardown deletes no instance");
    assert!(!format!("{provider:?}").contains("canary"));

    let mut cloud = ScriptedCloud::over(&World::new());
    cloud.load_env(&MapEnv::new([("SCRIPTED_FAULTS", "x:0:never"), ("SCRIPTED_ADDRESS", "here")])).unwrap();
    let text = cloud.new_provider().await.unwrap_err().to_string();
    assert!(text.contains("x:0:never") && text.contains("SCRIPTED_ADDRESS is \"here\""), "{text}");
}

//! `up`, `init`, `destroy`: what they do, once and again.

use std::fs;

use crate::{desk::Desk, tests};

tests!(
    four_commands_make_machines_and_give_them_back,
    up_twice_makes_nothing_and_provisions_nothing_again,
    hooks_and_points_run_once_each_for_an_up,
    what_vanished_is_made_again_and_provisioned,
    an_up_that_failed_goes_on_where_it_stopped,
    force_deploy_makes_all_anew,
    init_makes_machines_and_waits_for_nobody,
    machines_that_do_not_answer_are_named,
    another_host_key_ends_the_wait,
    a_shortage_has_its_own_code_and_leaves_nothing,
    destroy_twice_is_fine_and_a_lost_environment_too,
    what_is_still_there_is_told_and_the_next_destroy_goes_on,
    soft_keeps_machines_and_the_next_up_provisions,
    a_failing_hook_is_told_with_what_it_wrote,
    what_hooks_lack_is_told_before_anything_is_made,
    another_experiment_or_provider_never_takes_an_environment,
    a_machine_that_is_no_longer_asked_for_is_told,
    kill_at_every_step_of_up_and_destroy_leaves_nothing_and_makes_nothing_twice,
);

const HOOKS: &str = "\
hooks:
  before_preinstall:
    - local: echo before >> \"$TESTBED_ENV/../ran\"
  preinstall:
    - ssh: echo \"on $HOST\" >> \"$WORLD/on\"
      roles: [web]
    - local: echo pre >> ran
  after_preinstall:
    - local: echo after >> ran
  destroy:
    - local: echo destroy >> ran
";

fn ran(desk: &Desk) -> String {
    let text = fs::read_to_string(desk.path("ran")).unwrap_or_default();
    let _ = fs::remove_file(desk.path("ran"));
    text.replace('\n', " ").trim().to_owned()
}

fn four_commands_make_machines_and_give_them_back() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0).says("3 machines are there").says("testbed ssh small-web-1");
    assert_eq!(desk.machines().len(), 3);
    assert_eq!(desk.phase(), "ready");
    assert_eq!(
        desk.run(&["ssh", "small-db-1", "echo", "hello from", "$HOST"]).code(0).out,
        "hello from small-db-1\n"
    );
    assert_eq!(fs::read_link(desk.path("current")).unwrap(), desk.environment());
    desk.inspect();
    desk.run(&["destroy"]).code(0).says("nothing is left");
    assert_eq!(desk.machines().len(), 0);
    assert_eq!(desk.phase(), "destroyed");
    desk.inspect();
}

fn up_twice_makes_nothing_and_provisions_nothing_again() {
    let desk = Desk::new();
    desk.document(HOOKS);
    desk.run(&["up"]).code(0);
    let machines = desk.machines();
    assert_eq!(ran(&desk), "before pre after");
    desk.calls();
    let second = desk.run(&["up", "--json"]).code(0);
    let result = second.lines().pop().unwrap();
    assert_eq!((&result["result"], &result["provisioned"]), (&"ok".into(), &false.into()));
    assert!(result["made"].as_array().unwrap().is_empty());
    assert_eq!(desk.machines(), machines);
    assert_eq!((desk.calls(), ran(&desk)), (vec!["init".to_owned()], String::new()));
    // Asked for, it runs again.
    desk.run(&["up", "--provision"]).code(0);
    assert_eq!((desk.calls().len(), ran(&desk).as_str()), (3, "before pre after"));
}

fn hooks_and_points_run_once_each_for_an_up() {
    let desk = Desk::new();
    desk.document(HOOKS);
    desk.run(&["up"]).code(0);
    assert_eq!(desk.calls(), ["init", "before", "after"]);
    assert_eq!(ran(&desk), "before pre after");
    let on = fs::read_to_string(desk.path("world/on")).unwrap();
    let mut on: Vec<&str> = on.lines().collect();
    on.sort_unstable();
    assert_eq!(on, ["on small-web-1", "on small-web-2"]);
    desk.run(&["destroy"]).code(0);
    assert_eq!((desk.calls(), ran(&desk).as_str()), (vec!["destroy".to_owned()], "destroy"));
}

fn what_vanished_is_made_again_and_provisioned() {
    let desk = Desk::new();
    desk.document(HOOKS);
    desk.run(&["up"]).code(0);
    let before = desk.machines();
    fs::remove_file(desk.path("world/machines/exp/small-db-1")).unwrap();
    ran(&desk);
    let result = desk.run(&["up", "--json"]).code(0).lines().pop().unwrap();
    assert_eq!(result["made"], serde_json::json!(["small-db-1"]));
    assert_eq!(ran(&desk), "before pre after");
    assert_eq!(desk.machines()[1..], before[1..], "the others are the same");
    assert_ne!(desk.machines()[0], before[0]);
}

fn an_up_that_failed_goes_on_where_it_stopped() {
    let desk = Desk::new();
    desk.document(HOOKS);
    desk.meddle("fail-at", "after");
    desk.run(&["up"]).code(1).says("[redacted]").says("testbed up");
    assert_eq!(desk.phase(), "preinstalled");
    assert_eq!(ran(&desk), "before pre");
    let error = desk.state()["environment"]["last_error"].as_str().unwrap().to_owned();
    assert!(error.contains("not after"), "{error}");
    desk.inspect();
    desk.leave("fail-at");
    desk.calls();
    desk.run(&["up"]).code(0);
    assert_eq!((desk.calls(), ran(&desk).as_str()), (vec!["init".into(), "after".to_owned()], "after"));
    assert!(desk.state()["environment"]["last_error"].is_null());
}

fn force_deploy_makes_all_anew() {
    let desk = Desk::new();
    desk.document(HOOKS);
    desk.run(&["up"]).code(0);
    let before = desk.machines();
    ran(&desk);
    desk.run(&["up", "--force-deploy"]).code(0);
    assert!(desk.machines().iter().zip(&before).all(|(now, then)| now != then));
    assert_eq!(ran(&desk), "before pre after");
}

fn init_makes_machines_and_waits_for_nobody() {
    let desk = Desk::new();
    desk.meddle("down", "small-web-1\nsmall-web-2\nsmall-db-1\n");
    desk.run(&["init"]).code(0);
    assert_eq!((desk.phase().as_str(), desk.calls()), ("initialised", vec!["init".to_owned()]));
    desk.leave("down");
    desk.run(&["up"]).code(0);
    assert_eq!(desk.calls(), ["init", "before", "after"]);
}

fn machines_that_do_not_answer_are_named() {
    let desk = Desk::new();
    desk.meddle("down", "small-web-2");
    let ran = desk.run(&["up", "--ssh-timeout", "1s"]).code(5);
    let ran = ran.says("1 of 3 machines").says("small-web-2").says("Connection refused").says("testbed up");
    assert!(!ran.err.contains("small-db-1: it does not"), "{}", ran.err);
    assert_eq!(desk.phase(), "initialised");
    desk.leave("down");
    desk.run(&["up"]).code(0);
    desk.run(&["up", "--ssh-timeout", "soon"]).code(2).says("10m");
}

fn another_host_key_ends_the_wait() {
    let desk = Desk::new();
    desk.meddle("other-key", "small-web-2");
    desk.run(&["up", "--ssh-timeout", "10m"]).code(5).says("another host key").says("--force-deploy");
}

fn a_shortage_has_its_own_code_and_leaves_nothing() {
    let desk = Desk::new();
    desk.meddle("full-at", "create:small-db-1");
    desk.run(&["up"]).code(7).says("no room").says("role_distribution: lenient");
    assert_eq!(desk.machines().len(), 0);
    assert_eq!(desk.phase(), "initialising");
}

fn destroy_twice_is_fine_and_a_lost_environment_too() {
    let desk = Desk::new();
    desk.run(&["destroy"]).code(0).says("asked by the experiment's name");
    desk.run(&["up"]).code(0);
    fs::remove_dir_all(desk.environment()).unwrap();
    desk.run(&["destroy"]).code(0);
    assert_eq!(desk.machines().len(), 0);
    desk.calls();
    let result = desk.run(&["destroy", "--json"]).code(0).lines().pop().unwrap();
    assert_eq!(result["proven"], serde_json::json!(["scripted"]));
    assert_eq!(desk.calls(), ["destroy"], "it asks the provider every time");
    desk.run(&["up"]).code(0);
    assert_eq!(desk.machines().len(), 3);
}

fn what_is_still_there_is_told_and_the_next_destroy_goes_on() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    desk.meddle("sticky", "");
    let ran = desk.run(&["destroy", "--json"]).code(6);
    let last = ran.lines().pop().unwrap();
    assert_eq!((&last["result"], &last["code"]), (&"error".into(), &6.into()));
    assert!(last["leftovers"].to_string().contains("sticky-1"), "{last}");
    assert_eq!(desk.phase(), "destroying");
    desk.leave("sticky");
    desk.run(&["destroy"]).code(0);
}

fn soft_keeps_machines_and_the_next_up_provisions() {
    let desk = Desk::new();
    desk.document(&format!("{HOOKS}networks:\n  - name: net\n    cidr: 192.0.2.0/24\n    start: 192.0.2.100\n    end: 192.0.2.120\n"));
    desk.run(&["up"]).code(0);
    let machines = desk.machines();
    desk.run(&["ips", "take"]).code(0);
    ran(&desk);
    desk.calls();
    desk.run(&["destroy", "--soft"]).code(0).says("3 machines are kept");
    assert_eq!((desk.calls(), ran(&desk).as_str()), (Vec::new(), "destroy"));
    assert!(!desk.run(&["ips", "list"]).code(0).out.contains("OWNER"));
    desk.run(&["destroy", "--soft"]).code(0);
    ran(&desk);
    desk.run(&["up"]).code(0);
    assert_eq!((desk.machines(), ran(&desk).as_str()), (machines, "before pre after"));
}

fn a_failing_hook_is_told_with_what_it_wrote() {
    let desk = Desk::new();
    desk.document("hooks:\n  preinstall:\n    - {local: 'false', ignore_errors: true}\n    - local: echo precious; exit 3\n");
    let ran = desk.run(&["up"]).code(1);
    let ran = ran.says("passed over").says("status 3").says("precious").says("hooks-preinstall.log");
    assert!(ran.err.contains("testbed up"));
    desk.inspect();
    desk.document("hooks:\n  destroy:\n    - exit 4\n");
    desk.run(&["up"]).code(0);
    desk.run(&["destroy"]).code(1).says("--no-hooks");
    assert_eq!(desk.machines().len(), 3, "a hook of destroy protects what it could not save");
    desk.run(&["destroy", "--no-hooks"]).code(0);
    assert_eq!(desk.machines().len(), 0);
}

fn what_hooks_lack_is_told_before_anything_is_made() {
    let desk = Desk::new();
    desk.document("hooks:\n  preinstall:\n    - ansible: site.yml\n");
    for command in ["check", "plan", "up"] {
        desk.run(&[command]).code(2).says("ansible-playbook").says("site.yml");
    }
    assert!(desk.calls().is_empty() && !desk.environment().exists());
    // With both there it runs, with the inventory of the environment.
    desk.program("ansible-playbook", "#!/bin/sh\necho \"$@\" > ansible-args; test -r \"$2\"\n");
    fs::write(desk.path("site.yml"), "[]").unwrap();
    desk.run(&["up"]).code(0);
    let args = fs::read_to_string(desk.path("ansible-args")).unwrap();
    assert!(args.contains("inventory.yaml") && args.trim().ends_with("site.yml"), "{args}");
}

fn another_experiment_or_provider_never_takes_an_environment() {
    let desk = Desk::new();
    desk.run(&["up", "-e", "mine"]).code(0);
    let state = fs::read(desk.path("mine/env")).unwrap();
    let text = fs::read_to_string(desk.path("reservation.yaml")).unwrap();
    fs::write(desk.path("other.yaml"), text.replace("experiment: exp", "experiment: other")).unwrap();
    desk.run(&["up", "-e", "mine", "-f", "other.yaml"])
        .code(4)
        .says("another experiment")
        .says("testbed destroy");
    let second = text
        .replace("provider:\n  type: scripted\n  ", "providers:\n  - type: scripted\n    name: second\n    ");
    let second = second.replace("\n  password:", "\n    password:");
    fs::write(desk.path("other.yaml"), second).unwrap();
    desk.run(&["up", "-e", "mine", "-f", "other.yaml"]).code(4).says("no longer names a provider");
    fs::write(desk.path("other.yaml"), text.replace("/world\n", "/./world\n")).unwrap();
    desk.run(&["up", "-e", "mine", "-f", "other.yaml"])
        .code(4)
        .says("changed: world")
        .says("testbed destroy");
    assert_eq!(fs::read(desk.path("mine/env")).unwrap(), state);
    desk.run(&["destroy", "-e", "mine"]).code(0);
    desk.run(&["up", "-e", "mine", "-f", "other.yaml"]).code(0);
    assert_eq!(desk.machines().len(), 3);
}

fn a_machine_that_is_no_longer_asked_for_is_told() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    desk.document_of("  small: {web: 2}\n", "");
    desk.run(&["up"]).code(0).says("no longer asks for small-db-1");
    desk.run(&["destroy"]).code(0);
    assert_eq!(desk.machines().len(), 0);
}

fn kill_at_every_step_of_up_and_destroy_leaves_nothing_and_makes_nothing_twice() {
    let desk = Desk::new();
    let machines = ["small-web-1", "small-web-2", "small-db-1"];
    let of = |word: &str| machines.map(|machine| format!("{word}:{machine}"));
    let ups = [
        vec!["init".to_owned()],
        of("create").into(),
        of("created").into(),
        vec!["before".into(), "after".into()],
    ];
    for step in ups.concat() {
        desk.meddle("kill-at", &step);
        let ran = desk.run(&["up"]);
        assert_eq!(ran.code, 128 + 9, "{step}: {}", ran.err);
        desk.inspect();
        let there = desk.machines();
        desk.run(&["up"]).code(0);
        let now = desk.machines();
        assert_eq!(now.len(), 3, "{step}");
        assert!(there.iter().all(|machine| now.contains(machine)), "{step}: made twice");
        desk.run(&["destroy"]).code(0);
        assert_eq!(desk.machines().len(), 0, "{step}");
    }
    // A kill within `up`, and then no `up` but a `destroy`.
    desk.meddle("kill-at", "created:small-web-2");
    assert_eq!(desk.run(&["up"]).code, 128 + 9);
    desk.run(&["destroy"]).code(0);
    assert_eq!(desk.machines().len(), 0);
    let downs = [vec!["destroy".to_owned()], of("delete").into(), of("deleted").into()];
    for step in downs.concat() {
        desk.run(&["up"]).code(0);
        desk.meddle("kill-at", &step);
        assert_eq!(desk.run(&["destroy"]).code, 128 + 9, "{step}");
        assert_eq!(desk.phase(), "destroying");
        desk.run(&["destroy"]).code(0);
        assert_eq!(desk.machines().len(), 0, "{step}");
    }
    // And one that goes on with `up`.
    desk.run(&["up"]).code(0);
    desk.meddle("kill-at", "deleted:small-db-1");
    assert_eq!(desk.run(&["destroy"]).code, 128 + 9);
    desk.run(&["up"]).code(0);
    assert_eq!((desk.machines().len(), desk.phase().as_str()), (3, "ready"));
}

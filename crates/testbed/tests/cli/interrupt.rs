//! Ctrl-C, two commands at a time, a damaged state, secrets.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{desk::Desk, tests};

tests!(
    ctrl_c_undoes_what_is_half_done_and_up_goes_on,
    ctrl_c_ends_a_wait_for_ssh_and_a_hook,
    a_second_ctrl_c_ends_at_once,
    a_second_command_is_told_who_works,
    a_damaged_or_newer_state_is_refused_and_untouched,
    secrets_are_read_again_from_the_document,
    a_current_that_is_no_link_is_left,
);

fn send(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

fn ctrl_c_undoes_what_is_half_done_and_up_goes_on() {
    let desk = Desk::new();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        for step in ["init", "create:small-web-2", "created:small-db-1"] {
            desk.meddle("wait-at", step);
            let child = desk.start(&["up"], "waits");
            send(&child, signal);
            desk.end(child).code(code).says("saving the state").says("testbed up");
            assert_eq!((desk.machines().len(), desk.phase().as_str()), (0, "initialising"), "{step}");
            desk.leave("wait-at");
        }
    }
    for (step, phase) in [("before", "reachable"), ("after", "preinstalled")] {
        desk.meddle("wait-at", step);
        let child = desk.start(&["up"], "waits");
        send(&child, Signal::SIGINT);
        desk.end(child).code(130);
        assert_eq!((desk.machines().len(), desk.phase().as_str()), (3, phase));
        desk.leave("wait-at");
    }
    let machines = desk.machines();
    desk.run(&["up"]).code(0);
    assert_eq!(desk.machines(), machines);
    desk.meddle("wait-at", "delete:small-web-1");
    let child = desk.start(&["destroy"], "waits");
    send(&child, Signal::SIGINT);
    desk.end(child).code(130).says("testbed destroy");
    assert_eq!(desk.phase(), "destroying");
    desk.leave("wait-at");
    desk.run(&["destroy"]).code(0);
    assert_eq!(desk.machines().len(), 0);
}

fn ctrl_c_ends_a_wait_for_ssh_and_a_hook() {
    let desk = Desk::new();
    desk.meddle("down", "small-db-1");
    let child = desk.command(&["up"]).spawn().unwrap();
    let log = desk.path("world/ssh.log");
    desk.wait("ssh", || fs::read_to_string(&log).unwrap_or_default().contains("small-db-1"));
    send(&child, Signal::SIGINT);
    desk.end(child).code(130);
    assert_eq!(desk.phase(), "initialised");
    desk.leave("down");
    desk.document("hooks:\n  preinstall:\n    - \"echo $$ > pid; touch started; sleep 300; echo\"\n");
    let child = desk.command(&["up"]).spawn().unwrap();
    desk.wait("the hook", || desk.path("started").exists());
    send(&child, Signal::SIGINT);
    desk.end(child).code(130);
    // The hook and what it started are gone, too.
    let pid: i32 = fs::read_to_string(desk.path("pid")).unwrap().trim().parse().unwrap();
    desk.wait("the end of the hook", || kill(Pid::from_raw(-pid), None).is_err());
    assert_eq!(desk.phase(), "before_preinstall");
}

fn a_second_ctrl_c_ends_at_once() {
    let desk = Desk::new();
    desk.meddle("hang-at", "create:small-web-2");
    let child = desk.start(&["up"], "hangs");
    send(&child, Signal::SIGINT);
    // It is deaf: the first signal alone does not end it, which the lock shows.
    desk.run(&["destroy"]).code(4);
    send(&child, Signal::SIGINT);
    desk.end(child).code(130);
    desk.leave("hang-at");
    desk.run(&["up"]).code(0);
    desk.run(&["destroy"]).code(0);
    assert_eq!(desk.machines().len(), 0);
}

fn a_second_command_is_told_who_works() {
    let desk = Desk::new();
    desk.meddle("wait-at", "create:small-web-2");
    let child = desk.start(&["up"], "waits");
    let id = child.id().to_string();
    for command in
        [&["up"][..], &["destroy"], &["destroy", "--soft"], &["ips", "take"], &["emulate", "clear"]]
    {
        desk.run(command).code(4).says("testbed up").says(&id);
    }
    // Looking is always possible.
    desk.run(&["hosts"]).code(0);
    assert!(desk.run(&["status"]).code(0).out.contains("initialising"));
    send(&child, Signal::SIGKILL);
    desk.end(child).code(128 + 9);
    desk.leave("wait-at");
    desk.run(&["up"]).code(0);
}

fn a_damaged_or_newer_state_is_refused_and_untouched() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    let path = desk.environment().join("env");
    let good = fs::read_to_string(&path).unwrap();
    for (bad, part) in [
        (good[..good.len() / 3].to_owned(), "damaged"),
        (good.replacen("\"version\": 1", "\"version\": 999", 1), "newer"),
    ] {
        fs::write(&path, &bad).unwrap();
        for command in ["up", "destroy", "status", "hosts", "inventory"] {
            desk.run(&[command]).code(2).says(part).says("left as it is");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), bad);
    }
    assert_eq!(desk.machines().len(), 3);
    fs::write(&path, good).unwrap();
    desk.run(&["destroy"]).code(0);
}

fn secrets_are_read_again_from_the_document() {
    let desk = Desk::new();
    desk.run(&["up", "-vv"]).code(0);
    desk.inspect();
    let document = fs::read(desk.path("reservation.yaml")).unwrap();
    fs::remove_file(desk.path("reservation.yaml")).unwrap();
    desk.run(&["destroy"]).code(3).says("password").says("reservation.yaml").says("--file");
    // What needs no provider needs no secret.
    desk.run(&["hosts"]).code(0);
    fs::write(desk.path("moved.yaml"), document).unwrap();
    desk.run(&["status", "--file", "moved.yaml"]).code(0);
    desk.run(&["destroy", "--file", "moved.yaml"]).code(0);
    assert_eq!(desk.machines().len(), 0);
}

fn a_current_that_is_no_link_is_left() {
    let desk = Desk::new();
    fs::write(desk.path("current"), "mine").unwrap();
    desk.run(&["up"]).code(0).says("no link");
    assert_eq!(fs::read(desk.path("current")).unwrap(), b"mine");
    // The document leads to its environment as well.
    desk.run(&["hosts"]).code(0);
}

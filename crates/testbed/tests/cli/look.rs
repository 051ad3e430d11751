//! Commands that change nothing, and those on machines.

use std::fs;

use serde_json::json;

use crate::{
    desk::{Desk, PASSWORD},
    tests,
};

tests!(
    new_writes_a_document_and_never_over_one,
    check_and_plan_make_nothing,
    a_wrong_document_is_told_with_its_place,
    hosts_and_status_say_what_is_there,
    inventories_are_printed_in_each_form,
    ssh_runs_a_command_and_ends_with_its_status,
    exec_runs_everywhere_with_the_name_before_each_line,
    slips_are_pointed_out,
    without_an_environment_each_command_says_what_to_do,
    without_ssh_it_is_said_before_anything_is_made,
    the_schema_the_providers_and_completions_are_printed,
    json_is_one_document_or_lines_with_the_result_last,
    quiet_says_nothing_and_verbose_more,
    each_level_of_the_log_is_chosen_by_its_option,
    no_secret_is_shown_at_any_level_nor_kept_in_clear,
    a_document_elsewhere_has_its_environment_beside_it,
);

fn new_writes_a_document_and_never_over_one() {
    let desk = Desk::new();
    let mine = fs::read(desk.path("reservation.yaml")).unwrap();
    desk.run(&["new", "scripted"]).code(2).says("left as it is").says("reservation.yaml");
    assert_eq!(fs::read(desk.path("reservation.yaml")).unwrap(), mine);
    desk.run(&["new", "scripted", "second.yaml"]).code(0).says("testbed up");
    let text = fs::read_to_string(desk.path("second.yaml")).unwrap();
    assert_eq!(desk.run(&["new", "scripted", "-"]).code(0).out, text);
    assert!(text.contains("provider") && text.contains("world"), "{text}");
    desk.run(&["new", "scirpted", "third.yaml"]).code(2).says("did you mean \"scripted\"");
    assert!(!desk.path("third.yaml").exists());
}

fn check_and_plan_make_nothing() {
    let desk = Desk::new();
    let check = desk.run(&["check", "--json"]).code(0).json();
    assert_eq!((&check["experiment"], &check["machines"]), (&"exp".into(), &3.into()));
    let plan = desk.run(&["plan"]).code(0).out;
    assert!(plan.contains("small-web-2") && plan.contains("is made"), "{plan}");
    let plan = desk.run(&["plan", "--json"]).code(0).json();
    assert_eq!(plan["machines"].as_array().unwrap().len(), 3);
    assert!(desk.calls().is_empty() && desk.machines().is_empty() && !desk.environment().exists());
    assert!(!desk.path("current").exists());
    desk.run(&["up"]).code(0);
    assert_eq!(desk.run(&["plan"]).code(0).out.matches("is there").count(), 3);
}

fn a_wrong_document_is_told_with_its_place() {
    let desk = Desk::new();
    desk.document("resuorces: {}\nhooks: {preinstal: []}\n");
    for command in ["check", "plan", "up", "init"] {
        desk.run(&[command]).code(2).says("resuorces").says("resources").says("preinstall");
    }
    desk.document_of("  small: {web: 1}\n", "");
    let text = fs::read_to_string(desk.path("reservation.yaml")).unwrap();
    fs::write(desk.path("reservation.yaml"), text.replace("password:", "pasword:")).unwrap();
    desk.run(&["up"]).code(2).says("pasword").says("password");
    assert!(!desk.environment().exists(), "nothing is left of a document that cannot work");
}

fn hosts_and_status_say_what_is_there() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    let hosts = desk.run(&["hosts"]).code(0).out;
    assert!(hosts.starts_with("MACHINE") && hosts.contains("small-db-1"), "{hosts}");
    assert_eq!(desk.run(&["hosts", "web"]).code(0).out.lines().count(), 3);
    let json = desk.run(&["hosts", "--json"]).code(0).json();
    assert_eq!(json["roles"]["db"], json!(["small-db-1"]));
    assert_eq!(json["roles"]["small"].as_array().unwrap().len(), 3);
    fs::remove_file(desk.path("world/machines/exp/small-db-1")).unwrap();
    let status = desk.run(&["status", "--json"]).code(0).json();
    assert_eq!((&status["phase"], &status["experiment"]), (&"ready".into(), &"exp".into()));
    let state = |name: &str| {
        let all = status["machines"].as_array().unwrap();
        all.iter().find(|m| m["name"] == name).unwrap()["state"].clone()
    };
    assert_eq!((state("small-web-1"), state("small-db-1")), ("running".into(), "gone".into()));
    assert!(desk.run(&["status"]).code(0).out.contains("gone"));
}

fn inventories_are_printed_in_each_form() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    let ini = desk.run(&["inventory", "--format", "ini"]).code(0).out;
    assert!(ini.contains("[web]\nsmall-web-1\nsmall-web-2\n"), "{ini}");
    assert_eq!(ini, fs::read_to_string(desk.environment().join("inventory.ini")).unwrap());
    let yaml = desk.run(&["inventory"]).code(0).out;
    assert_eq!(yaml, fs::read_to_string(desk.environment().join("inventory.yaml")).unwrap());
    assert_eq!(
        desk.run(&["inventory", "--format", "json"]).code(0).json()["hosts"]["small-db-1"]["port"],
        22
    );
    let config = desk.run(&["inventory", "--format", "ssh-config"]).code(0).out;
    assert!(config.contains("Host small-db-1\n    HostName 192.0.2."), "{config}");
    desk.run(&["inventory", "--format", "xml"]).code(2).says("ssh-config");
}

fn ssh_runs_a_command_and_ends_with_its_status() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    assert_eq!(desk.run(&["ssh", "-o", "-A", "db"]).code(0).out, "a shell on small-db-1\n");
    assert_eq!(desk.run(&["ssh", "small-web-1"]).code(0).out, "a shell on small-web-1\n");
    desk.run(&["ssh", "small-web-1", "exit", "7"]).code(7);
    // A role that one machine has is that machine; one that several have is not.
    assert_eq!(desk.run(&["ssh", "db", "echo $HOST"]).code(0).out, "small-db-1\n");
    desk.run(&["ssh", "web", "true"]).code(2).says("small-web-1, small-web-2").says("testbed exec");
    let json = desk.run(&["--json", "ssh", "db", "echo out; echo err >&2; exit 3"]).code(3).json();
    assert_eq!(json, json!({"machine": "small-db-1", "status": 3, "stdout": "out\n", "stderr": "err\n"}));
    let log = fs::read_to_string(desk.path("world/ssh.log")).unwrap();
    assert!(log.lines().all(|line| line.starts_with("-F ")), "{log}");
    assert!(log.contains(" -A -- small-db-1"), "{log}");
}

fn exec_runs_everywhere_with_the_name_before_each_line() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    let ran = desk.run(&["exec", "web", "echo one; echo two; echo bad >&2"]).code(0);
    let mut lines: Vec<&str> = ran.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["small-web-1 | one", "small-web-1 | two", "small-web-2 | one", "small-web-2 | two"]);
    assert!(ran.err.contains("small-web-2 | bad"), "{}", ran.err);
    desk.run(&["exec", "all", "[ $HOST != small-web-2 ] || exit 9"])
        .code(9)
        .says("1 of 3 failed")
        .says("small-web-2");
    desk.meddle("down", "small-db-1");
    desk.run(&["exec", "db,web", "true"]).code(255).says("small-db-1 with 255");
    let lines = desk.run(&["exec", "--json", "web", "echo x"]).code(0).lines();
    assert_eq!(lines.iter().filter(|l| l["event"] == "output" && l["line"] == "x").count(), 2);
    assert_eq!(lines.last().unwrap()["result"], "ok");
}

fn slips_are_pointed_out() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    desk.run(&["ssh", "small-web-11"]).code(3).says("did you mean").says("small-web-1");
    desk.run(&["exec", "wbe", "true"]).code(3).says("did you mean \"web\"");
    desk.run(&["hosts", "dbb"]).code(3).says("did you mean \"db\"");
    desk.run(&["destory"]).code(2).says("destroy");
}

fn without_an_environment_each_command_says_what_to_do() {
    let desk = Desk::new();
    for command in
        [&["hosts"][..], &["status"], &["inventory"], &["ssh", "x"], &["ips", "list"], &["emulate", "show"]]
    {
        desk.run(command).code(3).says("testbed up");
    }
    fs::remove_file(desk.path("reservation.yaml")).unwrap();
    desk.run(&["up"]).code(3).says("testbed new");
    desk.run(&["destroy"]).code(3).says("testbed up");
    desk.run(&["hosts", "-e", "nowhere"]).code(3).says("nowhere");
}

fn without_ssh_it_is_said_before_anything_is_made() {
    let desk = Desk::new();
    fs::remove_file(desk.path("bin/ssh")).unwrap();
    for command in ["check", "plan", "up"] {
        let output = desk.command(&[command]).env("PATH", desk.path("bin")).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text.contains("no program `ssh`") && text.contains("OpenSSH"), "{text}");
    }
    assert!(desk.calls().is_empty());
}

fn the_schema_the_providers_and_completions_are_printed() {
    let desk = Desk::new();
    assert_eq!(desk.run(&["schema"]).code(0).json(), testbed::document::schema());
    let providers = desk.run(&["providers"]).code(0).out;
    assert!(
        providers.contains("scripted, played") && providers.contains("machines that are files"),
        "{providers}"
    );
    let list = desk.run(&["providers", "--json"]).code(0).json();
    assert!(list.as_array().unwrap().iter().any(|p| p["aliases"] == json!(["played"])), "{list}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(desk.run(&["completions", shell]).code(0).out.contains("destroy"), "{shell}");
    }
}

fn json_is_one_document_or_lines_with_the_result_last() {
    let desk = Desk::new();
    let lines = desk.run(&["--json", "up"]).code(0).lines();
    let last = lines.last().unwrap();
    assert_eq!((&last["result"], &last["phase"]), (&"ok".into(), &"ready".into()));
    let events = |machine: &str| {
        let of = lines.iter().filter(|line| line["machine"] == machine);
        of.map(|line| line["event"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(events("small-db-1"), ["creating", "created", "reachable"]);
    let ran = desk.run(&["--json", "hosts", "nobody"]).code(3);
    let error = ran.json();
    assert_eq!(
        (&error["result"], &error["kind"], &error["code"]),
        (&"error".into(), &"not_found".into(), &3.into())
    );
}

fn quiet_says_nothing_and_verbose_more() {
    let desk = Desk::new();
    let ran = desk.run(&["up", "-q"]).code(0);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    desk.run(&["destroy", "-q"]).code(0);
    assert!(desk.run(&["up"]).code(0).err.contains("small-db-1: answers over SSH"));
    desk.run(&["up", "-q", "-v"]).code(2);
    let help = desk.run(&["--help"]).code(0).out;
    assert!(help.contains("Exit codes") && help.contains("128 + n"), "{help}");
}

fn a_document_elsewhere_has_its_environment_beside_it() {
    let desk = Desk::new();
    fs::create_dir(desk.path("sub")).unwrap();
    fs::rename(desk.path("reservation.yaml"), desk.path("sub/reservation.yaml")).unwrap();
    desk.run(&["up", "-f", "sub/reservation.yaml"]).code(0);
    assert!(desk.path("sub/testbed_exp/env").exists());
    // From where `up` ran the link leads there, and from the document's folder the document does.
    desk.run(&["hosts"]).code(0);
    desk.run(&["hosts", "-f", "sub/reservation.yaml"]).code(0);
    let output = desk.command(&["hosts"]).current_dir(desk.path("sub")).output().unwrap();
    assert!(output.status.success());
    let output = desk
        .command(&["hosts"])
        .current_dir("/")
        .env("TESTBED_ENV", desk.path("sub/testbed_exp"))
        .output()
        .unwrap();
    assert!(output.status.success());
}

fn each_level_of_the_log_is_chosen_by_its_option() {
    let levels = ["error", "warn", "info", "debug", "trace"];
    let shown = |args: &[&str], filter: Option<&str>| -> usize {
        let desk = Desk::new();
        desk.meddle("speak", "");
        let mut command = desk.command(&[&["up"], args].concat());
        if let Some(filter) = filter {
            command.env("TESTBED_LOG", filter);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        let there: Vec<bool> = levels.iter().map(|level| text.contains(&format!("at {level}"))).collect();
        let count = there.iter().filter(|there| **there).count();
        assert!(there[..count].iter().all(|there| *there), "a level below one that is shown is not: {text}");
        count
    };
    assert_eq!(shown(&["-q"], None), 1);
    assert_eq!(shown(&[], None), 2);
    assert_eq!(shown(&["-v"], None), 3);
    assert_eq!(shown(&["-vv"], None), 4);
    assert_eq!(shown(&[], Some("trace")), 5);
    // The variable is the more exact word, and wins.
    assert_eq!(shown(&["-vv"], Some("error")), 1);
    let desk = Desk::new();
    let output = desk.command(&["check"]).env("TESTBED_LOG", "a=b=c").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("TESTBED_LOG"), "{output:?}");
}

fn no_secret_is_shown_at_any_level_nor_kept_in_clear() {
    let desk = Desk::new();
    let mut canaries = test_support::Canaries::new();
    canaries.add("the provider's password", PASSWORD);
    let mut said = Vec::new();
    let mut run = |args: &[&str], step: Option<&str>| {
        if let Some(step) = step {
            // The provider quotes the password in its error.
            desk.meddle("fail-at", step);
        }
        let output = desk.command(args).env("TESTBED_LOG", "trace").output().unwrap();
        desk.leave("fail-at");
        assert_eq!(output.status.success(), step.is_none(), "{args:?}: {output:?}");
        said.extend([output.stdout, output.stderr].concat());
    };
    run(&["check", "-vv"], None);
    run(&["plan", "--json"], None);
    run(&["up"], Some("init"));
    run(&["up", "--json"], None);
    run(&["status", "--json"], None);
    run(&["hosts"], None);
    for form in ["ini", "yaml", "json", "ssh-config"] {
        run(&["inventory", "--format", form], None);
    }
    run(&["exec", "all", "true"], None);
    run(&["schema"], None);
    run(&["providers", "--json"], None);
    run(&["destroy"], Some("destroy"));
    // The key of the experiment is made by the program, and stands in its own file alone.
    let mut keys = 0;
    let mut kept = Vec::new();
    let mut open = vec![desk.environment()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
                continue;
            }
            let bytes = fs::read(entry.path()).unwrap();
            if bytes.starts_with(b"-----BEGIN OPENSSH PRIVATE KEY-----") {
                canaries.add_pem("the experiment's key", std::str::from_utf8(&bytes).unwrap());
                keys += 1;
            } else {
                kept.push((entry.path(), bytes));
            }
        }
    }
    assert!(keys > 0 && !kept.is_empty(), "{keys} keys, {} files", kept.len());
    canaries.assert_not_in("what the commands say", said);
    for (path, bytes) in kept {
        canaries.assert_not_in(&path.display().to_string(), bytes);
    }
    // Nor in what a developer prints.
    let text = fs::read_to_string(desk.path("reservation.yaml")).unwrap();
    let read = testbed::document::check(&text, &desk.path(""), "reservation.yaml").unwrap();
    canaries.assert_not_in("the debug form of the document", format!("{read:?}"));
}

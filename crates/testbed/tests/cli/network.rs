//! Addresses, and the emulation with programs that play `tc` and `ip`.

use std::fs;

use crate::{desk::Desk, tests};

tests!(
    addresses_are_taken_given_back_and_kept_over_an_up,
    constraints_are_applied_shown_and_cleared,
    a_machine_that_cannot_shape_is_named_and_nothing_is_applied,
    what_is_wrong_with_an_emulation_is_told,
);

const NETWORKS: &str = "\
networks:
  - name: net
    cidr: 192.0.2.0/24
    start: 192.0.2.100
    end: 192.0.2.101
  - name: six
    cidr: 'fd00::/64'
    start: 'fd00::100'
    end: 'fd00::1ff'
";

fn addresses_are_taken_given_back_and_kept_over_an_up() {
    let desk = Desk::new();
    desk.document(NETWORKS);
    desk.run(&["up"]).code(0);
    let first = desk.run(&["ips", "take", "--owner", "vip"]).code(0).out;
    assert_eq!(first, "192.0.2.101\n");
    assert_eq!(
        desk.run(&["ips", "take", "--owner", "vip"]).code(0).out,
        first,
        "the same owner has the same"
    );
    desk.run(&["up"]).code(0);
    assert_eq!(desk.run(&["ips", "take", "-4"]).code(0).out, "192.0.2.100\n", "the very last one, too");
    desk.run(&["ips", "take", "--network", "net"]).code(7).says("no free").says("give one back");
    let six = desk.run(&["ips", "take", "-6", "--json"]).code(0).json();
    assert!(six["address"].as_str().unwrap().starts_with("fd00::1"), "{six}");
    let list = desk.run(&["ips", "list"]).code(0).out;
    assert!(list.contains("192.0.2.101  vip") && list.contains("fd00::"), "{list}");
    desk.run(&["ips", "give", "192.0.2.101", "198.51.100.1"]).code(3).says("no pool");
    desk.run(&["ips", "give", "192.0.2.101"]).code(0);
    desk.run(&["ips", "give", "192.0.2.101"]).code(3);
    assert_eq!(desk.run(&["ips", "take"]).code(0).out, first, "what was given back can be taken");
    desk.run(&["ips", "take", "--network", "nte"]).code(3).says("net");
    desk.run(&["ips", "list", "--network", "nte"]).code(3).says("did you mean \"net\"");
    desk.run(&["destroy", "--soft"]).code(0);
    assert!(!desk.run(&["ips", "list"]).code(0).out.contains("vip"));
}

/// Plays tc for each machine: batches go to a file, and `show` tells whether there is one.
const TC: &str = r#"#!/bin/sh
f="$WORLD/tc-$HOST"
case "$*" in
  "-batch -") cat > "$f"; if [ -e "$WORLD/no-batch" ]; then echo "batch: bad" >&2; exit 1; fi ;;
  *"qdisc show dev lo"*) echo "qdisc noqueue 0: root refcnt 2" ;;
  *"-j qdisc show dev"*) [ -e "$f" ] && echo '[{"kind":"htb","root":true}]' || echo '[]' ;;
  *"qdisc show dev"*) if [ -e "$f" ]; then echo "qdisc htb 1: root refcnt 2"; fi ;;
  *"replace dev lo root handle 1: netem") if grep -qsx "$HOST" "$WORLD/no-netem"; then echo "Specified qdisc kind is unknown." >&2; exit 2; fi ;;
  *"qdisc del dev eth0 root"*) rm -f "$f" ;;
esac
"#;
/// Plays ip: everything is behind eth0.
const IP: &str = "#!/bin/sh\necho \"$4 via 192.0.2.254 dev eth0 src 192.0.2.1 uid 0\"\n";

const CONSTRAINTS: &str = "\
network_constraints:
  enable: true
  default_delay: 25ms
  default_rate: 100mbit
  default_loss: 0.1%
  constraints:
    - {src: web, dst: db, delay: 10ms, symetric: false}
";

fn constraints_are_applied_shown_and_cleared() {
    let desk = Desk::new();
    desk.program("tc", TC);
    desk.program("ip", IP);
    desk.document(CONSTRAINTS);
    desk.run(&["up"]).code(0);
    assert_eq!(desk.run(&["emulate", "show"]).code(0).out, "nothing is shaped\n");
    desk.run(&["emulate", "apply"]).code(0).says("3 machines");
    let batch = |machine: &str| fs::read_to_string(desk.path("world").join(format!("tc-{machine}"))).unwrap();
    let (web, db) = (batch("small-web-1"), batch("small-db-1"));
    assert!(web.contains("netem delay 25000us") && web.contains("netem delay 10000us"), "{web}");
    assert!(!db.contains("10000us"), "`symetric: false` does not mirror: {db}");
    assert_eq!(web.matches("rate 100000000bit").count(), 2, "{web}");
    let shown = desk.run(&["emulate", "show", "--json"]).code(0).json();
    assert_eq!((shown.as_array().unwrap().len(), &shown[0]["device"]), (3, &"eth0".into()));
    assert_eq!(shown[0]["qdiscs"][0]["kind"], "htb");
    assert!(desk.run(&["emulate", "show"]).code(0).out.contains("htb 1: root"));
    assert!(desk.run(&["status"]).code(0).out.contains("emulation"));
    // Flags take the place of what was applied.
    desk.run(&["emulate", "apply", "--src", "db", "--dst", "web", "--loss", "5%", "--one-way"])
        .code(0)
        .says("1 machines");
    assert!(!desk.path("world/tc-small-web-1").exists() && batch("small-db-1").contains("loss 5%"));
    // A file, with enable: false, takes it away; and so do clear and the soft destruction.
    fs::write(desk.path("off.yaml"), CONSTRAINTS.replace("true", "false")).unwrap();
    desk.run(&["emulate", "apply", "--constraints", "off.yaml"]).code(0).says("nothing is shaped");
    assert!(!desk.path("world/tc-small-db-1").exists());
    desk.run(&["emulate", "apply"]).code(0);
    desk.run(&["emulate", "clear"]).code(0).says("3 machines were");
    desk.run(&["emulate", "clear"]).code(0);
    desk.run(&["emulate", "apply"]).code(0);
    desk.run(&["destroy", "--soft"]).code(0);
    assert!(!desk.path("world/tc-small-web-1").exists());
    assert!(desk.state()["emulated"].as_object().unwrap().is_empty());
}

fn a_machine_that_cannot_shape_is_named_and_nothing_is_applied() {
    let desk = Desk::new();
    desk.program("tc", TC);
    desk.program("ip", IP);
    desk.document(CONSTRAINTS);
    desk.run(&["up"]).code(0);
    desk.meddle("no-netem", "small-db-1");
    desk.run(&["emulate", "apply"]).code(8).says("small-db-1").says("netem").says("iproute2");
    assert!(!desk.path("world/tc-small-web-1").exists());
    // A rate alone does without.
    desk.run(&["emulate", "apply", "--src", "web", "--dst", "db", "--rate", "1mbit"]).code(0);
    desk.run(&["emulate", "clear"]).code(0);
    desk.leave("no-netem");
    // A batch that the kernel refuses leaves nothing of itself.
    desk.meddle("no-batch", "");
    desk.run(&["emulate", "apply"]).code(1).says("batch: bad");
    assert!(!desk.path("world/tc-small-web-1").exists());
    desk.leave("no-batch");
    desk.meddle("down", "small-web-2");
    desk.run(&["emulate", "apply"]).code(5).says("small-web-2");
}

fn what_is_wrong_with_an_emulation_is_told() {
    let desk = Desk::new();
    desk.run(&["up"]).code(0);
    desk.run(&["emulate", "apply"]).code(2).says("network_constraints").says("--constraints");
    desk.run(&["emulate", "apply", "--src", "web", "--dst", "db"]).code(2).says("--delay");
    desk.run(&["emulate", "apply", "--src", "web", "--delay", "1ms"]).code(2).says("--dst");
    desk.run(&["emulate", "apply", "--src", "web", "--dst", "db", "--delay", "10"]).code(2).says("25ms");
    desk.run(&["emulate", "apply", "--src", "wbe", "--dst", "db", "--delay", "10ms"])
        .code(3)
        .says("did you mean \"web\"");
    fs::write(desk.path("c.yaml"), "default_dealy: 1ms\n").unwrap();
    desk.run(&["emulate", "apply", "--constraints", "c.yaml"]).code(2).says("default_dealy").says("c.yaml");
    desk.run(&["emulate", "apply", "--constraints", "none.yaml"]).code(2).says("none.yaml");
}

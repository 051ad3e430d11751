//! Networks, hooks and constraints: what stands around the machines.

use testbed::HookAction;

use super::{one, problems};

#[test]
fn networks_that_cannot_be_are_told() {
    let found = problems(
        "provider: local\nresources: {small: {a: {count: 1, networks: [lann]}}}\nnetworks:\n  - {name: lan, cidr: 192.0.2.5/24}\n  \
         - {name: b, cidr: 192.0.2.0/24, start: 192.0.2.9, end: 192.0.2.3, gateway: 198.51.100.1}\n  - {name: b, start: 10.0.0.1}\n  \
         - {name: c, start: 10.0.0.1, end: 'fd00::1', dns: [x]}\n  - {name: d, cidr: 192.0.2.0}\n  - {name: e, end: 10.0.0.1}\n",
    );
    for wanted in [
        "did you mean `lan`?",
        "the network is 192.0.2.0/24",
        "the end 192.0.2.3 is before the start",
        "gateway is outside 192.0.2.0/24",
        "is called `b` already",
        "a start without an `end`",
        "of different families",
        "a name server is an address",
        "cidr is a network such as",
        "an end without a `start`",
    ] {
        assert!(found.iter().any(|p| p.contains(wanted)), "{wanted}: {found:#?}");
    }
    assert_eq!(found.len(), 10, "{found:#?}");
}

#[test]
fn networks_may_be_a_list_a_mapping_or_one() {
    let machines = "resources: {small: {a: 1}}\n";
    for text in [
        "networks: [{name: lan, cidr: 10.0.0.0/8}]\n",
        "networks: {lan: {cidr: 10.0.0.0/8}}\n",
        "networks: {name: lan, cidr: 10.0.0.0/8}\n",
        "network: {roles: [lan], cidr: 10.0.0.0/8}\n",
        "networks: [lan]\n",
        "networks: {lan: }\n",
    ] {
        let r = one(&format!("provider: local\n{text}{machines}"));
        assert_eq!((r.networks.len(), r.networks[0].name.as_str()), (1, "lan"), "{text}");
    }
    let r = one(&format!(
        "provider: local\nnetworks: [{{roles: [n]}}, {{roles: [n]}}, {{type: prod}}, {{}}]\n{machines}"
    ));
    let names: Vec<&str> = r.networks.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["n", "n-2", "prod", "network"]);
}

#[test]
fn hooks_are_commands_here_commands_there_and_playbooks() {
    let r = one(
        "provider: local\nresources: {small: {a: 1}}\nhooks:\n  before_preinstall: make\n  preinstall:\n    - {ssh: uptime, roles: a, \
         ignore_errors: true}\n    - {run: id}\n    - {ansible: site.yaml, args: [--diff, -v]}\n    - {local: 'true'}\n  destroy: [bye]\n",
    );
    assert_eq!(r.hooks.before_preinstall[0].action, HookAction::Local("make".into()));
    assert_eq!(
        r.hooks.preinstall[0].action,
        HookAction::Ssh { roles: vec!["a".into()], run: "uptime".into() }
    );
    assert!(r.hooks.preinstall[0].ignore_errors && !r.hooks.preinstall[1].ignore_errors);
    let args = vec!["--diff".to_owned(), "-v".to_owned()];
    assert_eq!(r.hooks.preinstall[2].action, HookAction::Ansible { playbook: "site.yaml".into(), args });
    let found = problems(
        "provider: local\nresources: {small: {a: 1}}\nhooks:\n  preinstall:\n    - {ssh: x, roles: [b]}\n    - {local: x, ssh: y}\n    - {}\n    \
         - {local: x, roles: [a]}\n    - {ssh: x, args: [y]}\n  install: x\n",
    );
    for wanted in [
        "no machine has the role `b`",
        "exactly one of",
        "roles belong to an `ssh`",
        "args belong to an",
        "hooks has no such key",
    ] {
        assert!(found.iter().any(|p| p.contains(wanted)), "{wanted}: {found:#?}");
    }
}

#[test]
fn constraints_expand_ranges_and_mirror_only_when_told_to() {
    let text = |pair: &str| {
        format!(
            "provider: local\ntopology: {{'grp[1-3]': {{small: {{a: 1}}}}}}\nnetwork_constraints:\n  enable: true\n  default_delay: 25ms\n  \
             default_rate: 100mbit\n  default_loss: 0.1%\n  except: [grp1]\n  constraints: [{pair}]\n"
        )
    };
    for (said, mirrors) in [
        ("symetric: true", true),
        ("symmetric: true", true),
        ("symetric: false", false),
        ("symmetric: false", false),
        ("loss: 0%", false),
    ] {
        let r = one(&text(&format!("{{src: grp1, dst: 'grp[2-3]', delay: 10ms, rate: 1gbit, {said}}}")));
        let constraints = r.constraints.unwrap();
        assert!(constraints.enable);
        assert_eq!(constraints.default.delay_us, Some(25_000));
        assert_eq!(constraints.except, ["grp1"]);
        let pairs: Vec<_> =
            constraints.constraints.iter().map(|c| (c.src.as_str(), c.dst.as_str())).collect();
        assert_eq!(pairs, [("grp1", "grp2"), ("grp1", "grp3")]);
        assert!(constraints.constraints.iter().all(|c| c.symmetric == mirrors), "{said}");
    }
    let found =
        problems(&text("{src: grp9, dst: grp1, delay: 10}, {dst: grp1, loss: 1%}, {src: grp1, dst: grp2}"));
    for wanted in [
        "no machine has the role `grp9`; did you mean `grp1`?",
        "is no delay",
        "has no `src`",
        "none of `delay`",
    ] {
        assert!(found.iter().any(|p| p.contains(wanted)), "{wanted}: {found:#?}");
    }
}

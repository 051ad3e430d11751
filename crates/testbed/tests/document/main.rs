//! What `reservation.yaml` says, style by style.

mod around;

use std::path::Path;

use testbed::{Reservation, Shortage, document};

fn all(text: &str) -> Vec<Reservation> {
    document::check(text, Path::new("/tmp/demo"), "reservation.yaml")
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn one(text: &str) -> Reservation {
    let mut all = all(text);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Returns each problem as `line:column: text: message`.
fn problems(text: &str) -> Vec<String> {
    let problems =
        document::check(text, Path::new("/tmp/demo"), "r.yaml").expect_err("the document is wrong");
    problems.0.iter().map(|p| p.to_string().trim_start_matches("r.yaml:").to_owned()).collect()
}

fn names(reservation: &Reservation) -> Vec<&str> {
    reservation.machines.iter().map(|m| m.name.as_str()).collect()
}

fn roles<'r>(reservation: &'r Reservation, name: &str) -> Vec<&'r str> {
    let machine = reservation.machines.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}"));
    machine.roles.iter().map(String::as_str).collect()
}

#[test]
fn the_flat_style_has_kind_role_and_count() {
    let r =
        one("provider: local\nresources:\n  small: {control: 1, compute: 2}\n  paravance: {compute: 1}\n");
    assert_eq!(names(&r), ["small-control-1", "small-compute-1", "small-compute-2", "paravance-compute-1"]);
    assert_eq!(roles(&r, "small-compute-2"), ["small", "compute"]);
    assert_eq!((r.machines[0].kind.as_deref(), r.machines[0].size.memory_mib), (None, Some(1024)));
    assert_eq!((r.machines[3].kind.as_deref(), r.machines[3].size.memory_mib), (Some("paravance"), None));
    assert_eq!(r.shortage, Shortage::Strict);
    assert_eq!(r.experiment, "demo");
}

#[test]
fn a_provider_is_a_name_or_a_mapping() {
    let tail = "resources: {small: {a: 1}}\n";
    let bare = one(&format!("provider: my-provider\n{tail}"));
    let mapping = one(&format!("provider: {{type: my-provider}}\n{tail}"));
    assert_eq!(bare, mapping);
    let r = one(&format!(
        "provider:\n  type: vagrant\n  backend: libvirt\n  any-extra-var: 7\n  list: [1, 'yes', true]\n{tail}"
    ));
    assert_eq!(r.provider.extra["any-extra-var"], 7);
    assert_eq!(r.provider.extra["list"], serde_json::json!([1, "yes", true]));
    let place = r.provider.places.of("any-extra-var").unwrap();
    assert_eq!(place.to_string(), "reservation.yaml:4:3");
}

#[test]
fn a_name_that_contains_type_is_a_name() {
    assert_eq!(one("provider: prototype\nresources: {small: {a: 1}}\n").provider.kind, "prototype");
}

#[test]
fn a_mapping_without_type_says_so() {
    let found = problems("provider: {typ: local}\nresources: {small: {a: 1}}\n");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("no `type` (`typ`?)"), "{found:#?}");
}

#[test]
fn every_problem_is_told_at_once_with_its_place() {
    let found = problems(
        "provider: local\nresource:\n  small: {control: 1}\nresources:\n  small: {control: one}\nuser: [x]\n",
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found[0].starts_with("2:1: `resource`: ") && found[0].contains("did you mean `resources`?"),
        "{found:#?}"
    );
    assert!(
        found[1].starts_with("5:20: `one`: ") && found[1].contains("a whole number from 0 to"),
        "{found:#?}"
    );
    assert!(found[2].starts_with("6:7: "), "{found:#?}");
}

#[test]
fn a_syntax_error_has_its_place() {
    let cases = [
        (
            "provider: local\nresources: {small: {a: 1}\n",
            "2:12: `resources: {small: {a: 1}`: this is no YAML: unclosed bracket '{'",
        ),
        (
            "a:\n\t- x\n",
            "2:2: `- x`: this is no YAML: tabs disallowed within this context (block indentation)",
        ),
        ("a: *nope\n", "1:4: `a: *nope`: this is no YAML: alias references unknown anchor"),
    ];
    for (text, problem) in cases {
        assert_eq!(problems(text), [problem]);
    }
}

#[test]
fn a_range_of_the_topology_is_spelled_out_and_no_text_is_dropped() {
    let r = one(
        "provider: local\ntopology:\n  grp1: {small: {control: 1}}\n  grp[2-4]-x:\n    small: {compute: 1}\n",
    );
    assert_eq!(
        names(&r),
        [
            "grp1-small-control-1",
            "grp2-x-small-compute-1",
            "grp3-x-small-compute-1",
            "grp4-x-small-compute-1"
        ]
    );
    assert_eq!(roles(&r, "grp3-x-small-compute-1"), ["grp3-x", "small", "compute"]);
    assert_eq!(r.groups[2].topology.as_deref(), Some("grp3-x"));
    let found =
        problems("provider: local\ntopology:\n  grp[4-2]: {small: {a: 1}}\n  g[1-2: {small: {a: 1}}\n");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("3:3: `grp[4-2]`: a range is such as grp[2-4]"), "{found:#?}");
    let found = problems("provider: local\ntopology:\n  g[1-3]: {small: {a: 1}}\n  g2: {small: {a: 1}}\n");
    assert!(found[0].starts_with("4:3: ") && found[0].contains("`g2` is there already"), "{found:#?}");
}

#[test]
fn a_topology_beside_resources_says_the_same_or_is_an_error() {
    let topology = "topology:\n  g1: {small: {a: 1}}\n  g2: {small: {a: 2, b: 1}}\n";
    let r = one(&format!("provider: local\nresources: {{small: {{a: 3, b: 1}}}}\n{topology}"));
    assert_eq!(r.machines.len(), 4);
    assert_eq!(r.groups[0].topology.as_deref(), Some("g1"));
    let found = problems(&format!("provider: local\nresources: {{small: {{a: 2, b: 1}}}}\n{topology}"));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("2 of small for `a` there, 3 here; drop one of the two"), "{found:#?}");
}

#[test]
fn two_styles_at_once_are_an_error_that_says_which_to_drop() {
    let found = problems("provider: local\nresources: {small: {a: 1}}\nmachines: [{roles: [a]}]\n");
    assert_eq!(
        found,
        ["3:1: `machines`: machines stand in line 2 already, under `resources`; drop one of the two"]
    );
    let found = problems(
        "provider:\n  type: local\n  resources: {machines: [{roles: [a]}]}\nresources: {small: {a: 1}}\n",
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("in line 3 already, under `resources of the provider`"), "{found:#?}");
}

#[test]
fn explicit_machines_have_names_sizes_networks_and_ports() {
    let r = one(
        "provider: libvirt\nuser: me\nimage: base\nports: [80]\nmachines:\n  - roles: [control]\n    name: head\n    memory: 4GiB\n    \
         vcpus: 2\n    disk: 20\n    networks: [lan, mgmt]\n    ports: [53/udp, 80]\n    address: 192.0.2.7\n    extra: {rack: 7}\n  \
         - {roles: [compute, worker], number: 2, min: 1, flavour: medium, user: root, image: other}\n\
         networks:\n  - {name: a, roles: [mgmt]}\n  - {name: lan, cidr: 192.0.2.0/24, start: 192.0.2.100, end: 192.0.2.199, \
         gateway: 192.0.2.1, dns: 192.0.2.2}\n",
    );
    assert_eq!(names(&r), ["head", "medium-compute-worker-1", "medium-compute-worker-2"]);
    let head = &r.machines[0];
    assert_eq!((head.size.memory_mib, head.size.vcpus, head.size.disk_gib), (Some(4096), Some(2), Some(20)));
    assert_eq!(head.networks, ["lan", "a"]);
    let ports: Vec<String> = head.ports.iter().map(|p| format!("{}/{}", p.port, p.protocol)).collect();
    assert_eq!(ports, ["80/tcp", "53/udp"]);
    assert_eq!(head.address, Some("192.0.2.7".parse().unwrap()));
    assert_eq!(head.extra["rack"], 7);
    assert_eq!(head.image.as_deref(), Some("base"));
    let worker = &r.machines[1];
    assert_eq!(worker.roles, ["compute", "worker"]);
    assert_eq!(
        (worker.size.vcpus, worker.image.as_deref(), worker.user.as_deref()),
        (Some(2), Some("other"), Some("root"))
    );
    assert_eq!((r.groups[1].count, r.groups[1].min), (2, Some(1)));
    let lan = &r.networks[1];
    assert_eq!(lan.end.unwrap().to_string(), "192.0.2.199");
    assert_eq!(lan.dns.len(), 1);
}

#[test]
fn machines_and_networks_may_stand_under_the_provider_as_in_enos_4() {
    let r = one(
        "provider:\n  type: g5k\n  job_name: x\n  resources:\n    machines:\n      - {roles: [grp1, control], cluster: paravance, nodes: \
         2, min: 1,\n         primary_network: int-net, secondary_networks: [ext]}\n      - {roles: [c], flavour_desc: {core: 4, mem: \
         4096}}\n    networks:\n      - {id: int-net, type: kavlan, roles: [network_interface]}\n      - {id: ext-net, type: kavlan, \
         roles: [ext]}\n",
    );
    assert_eq!(names(&r), ["paravance-grp1-control-1", "paravance-grp1-control-2", "c-1"]);
    assert_eq!(r.machines[0].kind.as_deref(), Some("paravance"));
    assert_eq!(r.machines[0].networks, ["int-net", "ext-net"]);
    assert_eq!((r.machines[2].size.vcpus, r.machines[2].size.memory_mib), (Some(4), Some(4096)));
    assert_eq!(r.networks[0].kind.as_deref(), Some("kavlan"));
    assert_eq!(r.provider.extra.keys().collect::<Vec<_>>(), ["job_name"]);
}

#[test]
fn names_depend_on_no_other_group() {
    let small = one("provider: local\nresources:\n  small: {a: 1, b: 1}\n");
    let great = one("provider: local\nresources:\n  big: {c: 5}\n  small: {x: 1, a: 9, b: 1}\n");
    for name in names(&small) {
        assert!(names(&great).contains(&name), "{name}");
    }
}

#[test]
fn names_that_would_be_the_same_are_told_apart() {
    let r = one("provider: local\nresources:\n  a_b: {c: 1}\n  a-b: {c: 1}\n");
    assert_ne!(names(&r)[0], names(&r)[1]);
    let r = one("provider: local\nmachines: [{roles: [w]}, {roles: [w]}, {roles: [w], number: 2}]\n");
    assert_eq!(names(&r), ["w-1", "w-x2-1", "w-x3-1", "w-x3-2"]);
    let found = problems("provider: local\nmachines: [{roles: [w], name: a}, {roles: [v], name: a}]\n");
    assert!(found[0].contains("is called `a` already"), "{found:#?}");
}

#[test]
fn one_host_in_several_roles_is_one_machine() {
    let r = one(
        "provider: static\nresources:\n  control:\n    - &one {address: 192.0.2.1, alias: one, user: root, keyfile: id}\n  compute:\n    \
         - *one\n    - {address: 192.0.2.2, port: 2222}\n  storage: *one\n",
    );
    assert_eq!(names(&r), ["one", "192.0.2.2"]);
    assert_eq!(roles(&r, "one"), ["control", "compute", "storage"]);
    let host = r.machines[0].host.as_ref().unwrap();
    assert_eq!((host.address.as_str(), host.port), ("192.0.2.1", None));
    assert_eq!(host.key.as_deref(), Some(Path::new("/tmp/demo/id")));
    assert_eq!(
        r.groups.iter().map(|g| (g.name.as_str(), g.count)).collect::<Vec<_>>(),
        [("control", 1), ("compute", 1)]
    );
}

#[test]
fn static_hosts_stand_in_groups_of_a_topology_too() {
    let r = one(
        "provider: static\ntopology:\n  g1:\n    control: {address: a.example}\n  g2:\n    compute: [{address: b.example}, {address: \
         'fd00::1'}]\n",
    );
    assert_eq!(names(&r), ["a.example", "b.example", "fd00--1"]);
    assert_eq!(roles(&r, "b.example"), ["g2", "compute"]);
    assert_eq!(r.groups[1].topology.as_deref(), Some("g2"));
    let r = one(
        "provider: static\nmachines: [{roles: [x, y], address: c.example, alias: c, port: 22, keyfile: /k}]\n",
    );
    assert_eq!((names(&r)[0], roles(&r, "c").len()), ("c", 2));
}

#[test]
fn one_host_under_two_names_is_an_error() {
    let found = problems(
        "provider: static\nresources:\n  r:\n    - {address: h.example, alias: a}\n    - {address: H.example, alias: b, port: 22}\n    \
         - {address: h.example, alias: a, user: other}\n    - {address: other.example, alias: a}\n",
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].starts_with("5:7: ") && found[0].contains("line 4 already, as `a`"), "{found:#?}");
    assert!(found[1].contains("with another user"), "{found:#?}");
    assert!(found[2].contains("is called `a` already"), "{found:#?}");
}

#[test]
fn hosts_and_numbers_go_to_the_providers_that_have_them() {
    let found = problems("provider: local\nresources: {control: {address: 192.0.2.1}}\n");
    assert!(found[0].contains("are for provider `static`, and this one is `local`"), "{found:#?}");
    let found = problems("provider: static\nresources: {small: {control: 1}}\n");
    assert!(found[0].contains("write their `address`"), "{found:#?}");
    let found = problems("provider: local\nmachines: [{roles: [a], alias: x, port: 23}]\n");
    assert_eq!(found.len(), 2, "{found:#?}");
    let found = problems("provider: static\nresources: {r: [{alias: x}]}\n");
    assert_eq!(found, ["2:17: `{alias: x}]}`: the host has no `address`"]);
}

#[test]
fn several_providers_get_a_reservation_each() {
    let all = all(
        "experiment: both\nproviders:\n  - local\n  - {type: libvirt, name: vms, uri: 'qemu:///system'}\nmachines:\n  \
         - {roles: [a], provider: local}\n  - {roles: [a], provider: vms, number: 2}\nnetworks: [{name: n, provider: vms}]\n\
         hooks: {preinstall: [make]}\n",
    );
    assert_eq!(all.len(), 2);
    assert_eq!(names(&all[0]), ["local-a-1"]);
    assert_eq!(names(&all[1]), ["vms-a-1", "vms-a-2"]);
    assert_eq!((all[0].networks.len(), all[1].networks.len()), (0, 1));
    assert_eq!((all[1].provider.kind.as_str(), all[1].provider.name.as_str()), ("libvirt", "vms"));
    assert!(all[1].provider.extra.contains_key("uri") && !all[1].provider.extra.contains_key("name"));
    assert!(all.iter().all(|r| r.experiment == "both" && r.hooks.preinstall.len() == 1));
}

#[test]
fn static_takes_part_with_others_and_each_may_have_its_own_resources() {
    let all = all(
        "providers:\n  - type: local\n    resources: {small: {a: 1}}\n  - type: static\n    resources: {b: {address: h.example}}\n    \
         network: {cidr: 10.0.0.0/24, start: 10.0.0.5, end: 10.0.0.6}\n",
    );
    assert_eq!((names(&all[0]), names(&all[1])), (vec!["local-small-a-1"], vec!["h.example"]));
    assert_eq!((all[0].networks.len(), all[1].networks.len()), (0, 1));
}

#[test]
fn what_does_not_say_its_provider_is_told_with_those_there_are() {
    let found =
        problems("providers: [local, libvirt]\nmachines: [{roles: [a]}, {roles: [b], provider: libvrt}]\n");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("does not say its `provider`; allowed: local, libvirt"), "{found:#?}");
    assert!(found[1].contains("did you mean `libvirt`?"), "{found:#?}");
    let found = problems("providers: [local, local]\nmachines: [{roles: [a], provider: local}]\n");
    assert!(found[0].contains("give each a `name`"), "{found:#?}");
    let found = problems("providers: [local, libvirt]\nmachines: [{roles: [a], provider: local}]\n");
    assert!(found[0].contains("asks for no machine of provider `libvirt`"), "{found:#?}");
    let found = problems("provider: [local]\nresources: {small: {a: 1}}\n");
    assert!(found[0].contains("stand under `providers`"), "{found:#?}");
}

#[test]
fn flavours_and_images_may_differ_from_provider_to_provider() {
    let text = |provider: &str| {
        format!(
            "provider: {provider}\nflavours:\n  build: {{vcpus: 8, memory: 16GiB, type: {{aws: m6a.2xlarge}}, image: debian}}\n  \
             tiny: {{memory: 256}}\nimages:\n  debian: {{aws: ami-1, libvirt: debian.qcow2}}\n  same: everywhere\nresources:\n  \
             build: {{a: 1, b: {{count: 1, image: same, memory: 1GiB}}}}\n  tiny: {{c: {{count: 1, image: free}}}}\n"
        )
    };
    let aws = one(&text("aws"));
    let machine = &aws.machines[0];
    assert_eq!((machine.kind.as_deref(), machine.image.as_deref()), (Some("m6a.2xlarge"), Some("ami-1")));
    let libvirt = one(&text("libvirt"));
    assert_eq!((libvirt.machines[0].kind.as_deref(), libvirt.machines[0].size.vcpus), (None, Some(8)));
    assert_eq!(
        (libvirt.machines[1].image.as_deref(), libvirt.machines[1].size.memory_mib),
        (Some("everywhere"), Some(1024))
    );
    assert_eq!((libvirt.machines[2].size.memory_mib, libvirt.machines[2].size.vcpus), (Some(256), None));
    assert_eq!(libvirt.machines[2].image.as_deref(), Some("free"));
    let found = problems(&text("gcp"));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("`images` does not say what this is at provider `gcp`"), "{found:#?}");
}

#[test]
fn strict_and_lenient_are_read_in_both_words() {
    let machines = "resources: {small: {a: 1}}\n";
    for (said, shortage) in [
        ("shortage: strict\n", Shortage::Strict),
        ("shortage: lenient\n", Shortage::Lenient),
        ("role_distribution: strict\n", Shortage::Strict),
        ("role_distribution: debug\n", Shortage::Lenient),
    ] {
        assert_eq!(one(&format!("provider: local\n{said}{machines}")).shortage, shortage, "{said}");
    }
    let r = one(&format!("provider: {{type: g5k, role_distribution: debug}}\n{machines}"));
    assert_eq!((r.shortage, r.provider.extra.len()), (Shortage::Lenient, 0));
    let found = problems(&format!("provider: local\nshortage: stric\nrole_distribution: debug\n{machines}"));
    assert_eq!(found, ["2:11: `stric`: what happens on a shortage; allowed: strict, lenient"]);
    let found = problems(&format!("provider: local\nshortage: strict\nrole_distribution: debug\n{machines}"));
    assert!(found[0].contains("differently"), "{found:#?}");
}

#[test]
fn min_is_read_wherever_a_number_is() {
    let r = one("provider: local\nresources: {small: {a: {count: 3, min: 2}, b: {number: 2}}}\n");
    assert_eq!((r.groups[0].min, r.groups[1].min), (Some(2), None));
    let found = problems("provider: local\nresources: {small: {a: {count: 3, min: 4}, b: {min: 1}}}\n");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("min is above the number of machines, which is 3"), "{found:#?}");
    assert!(found.iter().any(|p| p.contains("there is no `count`")), "{found:#?}");
}

#[test]
fn numbers_stay_as_they_are_written() {
    let r = one(
        "provider: local\nexperiment: 2024\nimage: 22.10\nx-i: &i 1.10\nresources: {small: {a: {count: 1, image: *i}, b: 1}}\n",
    );
    assert_eq!(r.experiment, "2024");
    assert_eq!(r.machines[0].image.as_deref(), Some("1.10"));
    assert_eq!(r.machines[1].image.as_deref(), Some("22.10"));
    let r = one("provider: {type: g5k, walltime: 02:00:00}\nresources: {small: {a: 1}}\n");
    assert_eq!(r.provider.extra["walltime"], "02:00:00");
}

#[test]
fn the_experiment_has_the_name_of_the_file_or_of_its_folder() {
    let text = "provider: local\nresources: {small: {a: 1}}\n";
    let named =
        |base: &str, file: &str| document::check(text, Path::new(base), file).unwrap().remove(0).experiment;
    assert_eq!(named("/tmp/My Demo_1", "x/reservation.yaml"), "my-demo-1");
    assert_eq!(named("/tmp/demo", "Big_one.yaml"), "big-one");
    assert_eq!(named("/", "reservation.yaml"), "reservation");
    assert_eq!(named("/", "….yaml"), "experiment");
    let found = problems(&format!("experiment: My Test\n{text}"));
    assert!(found[0].contains("such as `my-test`"), "{found:#?}");
}

#[test]
fn a_key_that_stands_twice_is_told_with_the_others() {
    let found = problems(
        "provider: local\nuser: a\nuser: b\nflavors: {}\nflavours: {}\nresources: {small: {a: 1, a: 2}}\n",
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].starts_with("3:1: `user`: this key stands in line 2 already"), "{found:#?}");
    assert!(found[1].contains("the same as `flavours`"), "{found:#?}");
    assert!(found[2].starts_with("6:27: "), "{found:#?}");
}

#[test]
fn anchors_may_stand_under_keys_of_their_own() {
    let r = one(
        "x-common: &c {count: 2, min: 1}\nprovider: local\nresources:\n  small:\n    a: *c\n    b: {<<: *c, count: 1}\n",
    );
    assert_eq!(names(&r), ["small-a-1", "small-a-2", "small-b-1"]);
}

#[test]
fn a_slip_of_the_finger_does_not_become_a_bill() {
    let found = problems("provider: local\nresources: {small: {a: 100000}}\n");
    assert!(found[0].contains("a whole number from 0 to 10000"), "{found:#?}");
    let found = problems("provider: local\ntopology: {'g[1-100]': {small: {a: 200}}}\n");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("more than 10000 machines"), "{found:#?}");
}

#[test]
fn a_word_that_is_written_wrong_is_not_missing_as_well() {
    let found = problems("provder: local\nresources: {small: {a: {cout: 1}}}\n");
    assert_eq!(found.len(), 2, "{found:#?}");
    let found = problems("other: local\nresources: {small: {a: 1}}\n");
    assert_eq!(found.len(), 2, "{found:#?}");
    let found = problems("provider: static\nresources: {r: [{adress: x}]}\n");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn what_is_no_reservation_is_told() {
    for (text, wanted) in [
        ("", "the document is empty"),
        ("# nothing\n", "the document is empty"),
        ("- a\n", "is a mapping, not a list"),
        ("provider: local\n", "asks for no machine"),
        ("resources: {small: {a: 1}}\n", "there is no `provider`"),
        ("provider: local\nresources: {small: 3}\n", "{role: number}"),
        ("provider: local\nresources: {small: {a: 0}}\n", "asks for no machine"),
        ("provider: local\nproviders: [x]\nresources: {small: {a: 1}}\n", "put it into `providers`"),
        ("provider: local\nresources: {small: {a: 1}}\nkey: id.pub\n", "public half"),
        ("provider: local\nresources: {'a b': {a: 1}}\n", "a word without spaces"),
    ] {
        let found = problems(text);
        assert!(found.iter().any(|p| p.contains(wanted)), "{text}: {found:#?}");
    }
}

#[test]
fn a_file_is_read_and_its_keys_are_found_from_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("reservation.yaml");
    assert_eq!(*document::read(&file).unwrap_err().kind(), testbed::ErrorKind::NotFound);
    std::fs::write(&file, "provider: local\nkey: keys/id\nresources: {small: {a: 1}}\n").unwrap();
    let mut all = document::read(&file).unwrap();
    assert_eq!(all[0].base, dir.path());
    assert_eq!(all[0].access.private_key, Some(dir.path().join("keys/id")));
    std::fs::write(&file, "provider: local\nkey: ~/.ssh/id\nresources: {small: {a: 1}}\n").unwrap();
    all = document::read(&file).unwrap();
    document::expand_home(&mut all, Path::new("/home/me"));
    assert_eq!(all[0].access.private_key.as_deref(), Some(Path::new("/home/me/.ssh/id")));
    std::fs::write(&file, b"provider: \xff\n").unwrap();
    assert!(document::read(&file).unwrap_err().to_string().contains("UTF-8"));
    std::fs::write(&file, "\u{feff}provider: local\r\nresources:\r\n  small: {a: 1}\r\n").unwrap();
    assert_eq!(document::read(&file).unwrap()[0].machines.len(), 1);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn a_damaged_document_is_told_where_or_read(start in 0_usize..3000, len in 1_usize..40, put in "[\\[\\]{}:#&*a-c1 \\n-]{0,4}") {
        let sample = document::sample("static").unwrap();
        let bytes = sample.len();
        let (from, to) = (start.min(bytes), (start + len).min(bytes));
        let text = format!("{}{put}{}", &sample[..from], &sample[to..]);
        let lines = text.lines().count() as u64 + 1;
        if let Err(problems) = document::check(&text, Path::new("/tmp/x"), "r.yaml") {
            proptest::prop_assert!(!problems.0.is_empty());
            for problem in problems.0 {
                proptest::prop_assert!((1..=lines).contains(&problem.place.line) && problem.place.column > 0, "{:?}", problem);
            }
        }
    }
}

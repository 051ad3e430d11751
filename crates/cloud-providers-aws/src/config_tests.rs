use cloud_providers::{MapEnv, Settings, clap::Command};

use super::*;

const LEAST: (&str, &str) = ("PODVM_AMI_ID", "ami-1");

fn read(env: &[(&str, &str)]) -> (Config, Vec<String>) {
    let mut settings = Settings::new(OPTIONS);
    settings.load_env(&MapEnv::new(env.iter().copied()));
    let (values, mut problems) = settings.parse_all();
    let config = Config::read(&values, &mut problems);
    (config, problems)
}

/// Flag, variable, default, secret: what the existing programs have.
#[test]
fn options_are_those_of_the_existing_programs() {
    let expected = [
        ("aws-access-key-id", Some("AWS_ACCESS_KEY_ID"), "", true),
        ("aws-secret-key", Some("AWS_SECRET_ACCESS_KEY"), "", true),
        ("aws-session-token", Some("AWS_SESSION_TOKEN"), "", true),
        ("aws-profile", None, "", false),
        ("aws-region", Some("AWS_REGION"), "", false),
        ("instance-type", Some("PODVM_INSTANCE_TYPE"), "m6a.large", false),
        ("instance-types", Some("PODVM_INSTANCE_TYPES"), "", false),
        ("use-lt", Some("USE_PODVM_LAUNCHTEMPLATE"), "false", false),
        ("aws-lt-name", Some("PODVM_LAUNCHTEMPLATE_NAME"), "kata", false),
        ("imageid", Some("PODVM_AMI_ID"), "", false),
        ("keyname", Some("SSH_KP_NAME"), "", false),
        ("subnetid", Some("AWS_SUBNET_ID"), "", false),
        ("securitygroupids", Some("AWS_SG_IDS"), "", false),
        ("use-public-ip", Some("USE_PUBLIC_IP"), "false", false),
        ("root-volume-size", Some("ROOT_VOLUME_SIZE"), "30", false),
        ("disable-cvm", Some("DISABLECVM"), "false", false),
        ("tags", Some("TAGS"), "", false),
    ];
    for (flag, env, default, secret) in expected {
        let spec = OPTIONS.iter().find(|s| s.flag == flag).unwrap();
        assert_eq!(
            (spec.env, spec.default.unwrap_or_default(), spec.secret),
            (env, default, secret),
            "{flag}"
        );
    }
}

#[test]
fn an_image_is_enough() {
    let (config, problems) = read(&[LEAST]);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(config.instance_type, "m6a.large");
    assert_eq!((config.root_volume_gib, config.cvm), (30, Cvm::Default));
    assert_eq!(config.metadata, MetadataOptions::new(true, 1));
    assert_eq!(config.guest_ports, [(15150, "tcp".to_owned()), (4789, "udp".to_owned())]);
    assert!(config.access.keys.is_none() && config.template.is_none());
}

#[test]
fn a_launch_template_needs_no_image() {
    let (config, problems) = read(&[("USE_PODVM_LAUNCHTEMPLATE", "true")]);
    assert!(problems.is_empty(), "{problems:?}");
    let template = config.template.unwrap();
    assert_eq!((template.name.as_str(), template.version.as_str()), ("kata", "$Default"));
    let (_, problems) = read(&[]);
    assert_eq!(problems, ["-imageid or PODVM_AMI_ID is required unless -use-lt is set"]);
}

#[test]
fn what_the_operator_says_about_confidential_machines_is_told_from_the_default() {
    assert_eq!(read(&[LEAST]).0.cvm, Cvm::Default);
    assert_eq!(read(&[LEAST, ("DISABLECVM", "false")]).0.cvm, Cvm::Yes);
    assert_eq!(read(&[LEAST, ("DISABLECVM", "yes")]).0.cvm, Cvm::No);
    let mut settings = Settings::new(OPTIONS);
    settings.parse_cmd(Command::new("x"), &["-imageid=a".into(), "-disable-cvm=false".into()]).unwrap();
    let (values, mut problems) = settings.parse_all();
    assert_eq!(Config::read(&values, &mut problems).cvm, Cvm::Yes);
}

#[test]
fn static_keys_come_as_a_pair_and_are_never_shown() {
    let pair = [LEAST, ("AWS_ACCESS_KEY_ID", "canary-id"), ("AWS_SECRET_ACCESS_KEY", "canary-secret")];
    let (config, problems) = read(&pair);
    assert!(problems.is_empty() && config.access.keys.is_some());
    assert!(!format!("{config:?}").contains("canary"));
    for half in [&pair[..2], &[pair[0], pair[2]], &[LEAST, ("AWS_SESSION_TOKEN", "canary")]] {
        let (config, problems) = read(half);
        assert!(config.access.keys.is_none() && problems.len() == 1, "{problems:?}");
        assert!(problems[0].contains("AWS_SE") && !problems[0].contains("canary"), "{problems:?}");
    }
}

#[test]
fn lists_keep_their_order() {
    let (config, _) = read(&[
        LEAST,
        ("AWS_SUBNET_ID", "subnet-b, subnet-a"),
        ("AWS_SG_IDS", "sg-1,sg-2"),
        ("PODVM_FALLBACK_INSTANCE_TYPES", "m7a.large,c6a.xlarge"),
        ("AWS_PURCHASE_OPTION", "spot-then-on-demand"),
    ]);
    assert_eq!(config.subnets, ["subnet-b", "subnet-a"]);
    assert_eq!(config.groups, ["sg-1", "sg-2"]);
    assert_eq!(config.fallback_types, ["m7a.large", "c6a.xlarge"]);
    assert_eq!(config.purchase, PurchaseOrder::SpotThenOnDemand);
}

#[test]
fn the_address_of_ec2_has_priority() {
    let (config, _) =
        read(&[LEAST, ("AWS_ENDPOINT_URL", "http://all:1"), ("AWS_ENDPOINT_URL_EC2", "http://ec2:1")]);
    assert_eq!(config.access.endpoint.as_deref(), Some("http://ec2:1"));
    let (config, _) = read(&[LEAST, ("AWS_ENDPOINT_URL", "http://all:1")]);
    assert_eq!(config.access.endpoint.as_deref(), Some("http://all:1"));
}

#[test]
fn all_problems_are_named_together() {
    let many: String = (0..TAG_LIMIT).map(|n| format!("t{n}=x,")).collect();
    let tags = format!("{many}peerpod-x=y,aws:z=1,Name=mine,a;b=c");
    let bad = [
        ("AWS_ACCESS_KEY_ID", "half"),
        ("USE_PODVM_LAUNCHTEMPLATE", "perhaps"),
        ("ROOT_VOLUME_SIZE", "30GB"),
        ("AWS_PURCHASE_OPTION", "cheap"),
        ("AWS_CAPACITY_MEMORY", "5"),
        ("AWS_IMDS_TOKENS", "maybe"),
        ("AWS_IMDS_HOP_LIMIT", "65"),
        ("AWS_GUEST_PORTS", "15150"),
        ("AWS_ENDPOINT_URL", "localhost:5000"),
        ("AWS_CALL_TIMEOUT", "0s"),
        ("AWS_STATE_TIMEOUT", "0s"),
        ("TAGS", tags.as_str()),
    ];
    let (_, problems) = read(&bad);
    let text = problems.join("\n");
    for part in bad.iter().map(|(key, _)| *key).chain([
        "PODVM_AMI_ID",
        "peerpod-x",
        "belong to Amazon",
        "the name is the provider's",
        "\"a;b\"",
        "at most",
    ]) {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn a_type_that_was_blanked_on_the_command_line_is_a_problem() {
    let mut settings = Settings::new(OPTIONS);
    settings.parse_cmd(Command::new("x"), &["-imageid=a".into(), "-instance-type=".into()]).unwrap();
    let (values, mut problems) = settings.parse_all();
    Config::read(&values, &mut problems);
    assert_eq!(problems, ["-instance-type is empty, expected an instance type such as m6a.large"]);
}

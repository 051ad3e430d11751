//! The verification of a configuration.

use cloud_providers::{CheckOutcome, Finding, OpContext, VerifyReport};
use cloud_providers_aws::scripted::{Fault, World};

use crate::setup::provider;

const CONFIDENTIAL: [(&str, &str); 2] = [("DISABLECVM", "false"), ("PODVM_INSTANCE_TYPE", "m6a.large")];

async fn verify(world: &World, env: &[(&str, &str)]) -> VerifyReport {
    let provider = provider(world, env).await;
    let before = world.things();
    let report = provider.verify_config(&OpContext::new()).await.unwrap();
    assert_eq!(world.things(), before, "a verification changes nothing");
    report
}

fn failed(report: &VerifyReport) -> Vec<&Finding> {
    report.findings.iter().filter(|f| f.outcome == CheckOutcome::Failed).collect()
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_works_has_every_check() {
    let report = verify(&World::new(), &CONFIDENTIAL).await;
    assert!(report.is_ok(), "{report}");
    for check in [
        "credentials",
        "instance-types",
        "image",
        "subnets",
        "zones",
        "security-groups",
        "ports",
        "key-pair",
        "permission ec2:RunInstances",
        "permission ec2:TerminateInstances",
        "permission ec2:DescribeInstances",
        "quota",
    ] {
        let found = report.findings.iter().find(|f| f.check == check);
        assert!(found.is_some_and(|f| f.outcome == CheckOutcome::Ok), "{check} in\n{report}");
    }
    assert!(report.to_string().contains("arn:aws:iam"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn everything_that_is_wrong_is_told_at_once_with_what_mends_it() {
    let world = World::new();
    world.change_image("ami-1", |image| image.boot_mode = Some("legacy-bios".into()));
    world.change_group("sg-1", |group| group.ingress.clear());
    world.deny(&["RunInstances", "AllocateAddress"]);
    let env = [
        CONFIDENTIAL[0],
        ("PODVM_INSTANCE_TYPE", "t3.small"),
        ("SSH_KP_NAME", "nobody"),
        ("AWS_SUBNET_ID", "subnet-x"),
    ];
    let report = verify(&world, &env).await;
    for (check, mend) in [
        ("instance-types", "PODVM_INSTANCE_TYPE"),
        ("image", "--boot-mode uefi"),
        ("subnets", "AWS_SUBNET_ID"),
        ("ports", "authorize-security-group-ingress"),
        ("key-pair", "SSH_KP_NAME"),
    ] {
        let found = failed(&report).into_iter().find(|f| f.check == check).map(ToString::to_string);
        assert!(found.is_some_and(|text| text.contains(mend)), "{check} and {mend} in\n{report}");
    }
    let address = report.findings.iter().find(|f| f.check == "permission ec2:AllocateAddress").unwrap();
    assert_eq!(address.outcome, CheckOutcome::Warning, "pods without it start: {report}");
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_is_found_without_an_instance() {
    let world = World::new();
    world.deny(&["RunInstances", "DescribeAddresses"]);
    let report = verify(&world, &CONFIDENTIAL).await;
    let checks: Vec<&str> = failed(&report).iter().map(|f| f.check.as_str()).collect();
    assert_eq!(checks, ["permission ec2:DescribeAddresses", "permission ec2:RunInstances"], "{report}");
}

#[tokio::test(start_paused = true)]
async fn unknown_credentials_end_the_questions_and_say_so() {
    let world = World::new();
    let provider = provider(&world, &[]).await;
    world.script(Fault::on("GetCallerIdentity").code("AuthFailure"));
    world.clear_calls();
    let report = provider.verify_config(&OpContext::new()).await.unwrap();
    assert_eq!(world.calls().len(), 1);
    assert_eq!(failed(&report).len(), 1);
    assert!(report.to_string().contains("AWS_ACCESS_KEY_ID"), "{report}");
    assert!(report.count(CheckOutcome::NotChecked) > 3);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_set_and_nobody_told_is_in_the_report() {
    let report = verify(&World::new(), &[("AWS_SUBNET_ID", ""), ("AWS_SG_IDS", "")]).await;
    let settings = failed(&report).into_iter().find(|f| f.check == "settings").unwrap().to_string();
    assert!(settings.contains("AWS_SUBNET_ID") && settings.contains("AWS_SG_IDS"), "{settings}");
}

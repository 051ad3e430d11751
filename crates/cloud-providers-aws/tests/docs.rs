//! The page of the book.

use std::{collections::BTreeSet, fs, path::Path};

use cloud_providers_aws::OPTIONS;

#[test]
fn the_book_shows_every_option() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers/aws.md");
    let table = cloud_providers::options_table(OPTIONS);
    test_support::fresh_part(&page, "options:aws", &table).unwrap();
}

/// The calls of the trait, as actions of a policy.
fn actions_of_the_code() -> BTreeSet<String> {
    let source = include_str!("../src/client.rs");
    let (_, body) = source.split_once("pub trait Ec2").unwrap();
    let (body, _) = body.split_once("\n}\n").unwrap();
    let methods = body.lines().filter_map(|line| line.trim().strip_prefix("async fn ")?.split_once('('));
    let camel = |name: &str| -> String {
        let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
        name.split('_').map(capital).collect()
    };
    let mut actions: BTreeSet<String> = methods
        // A dry run is one of the other calls.
        .filter(|(name, _)| *name != "dry_run")
        .map(|(name, _)| match name {
            "get_caller_identity" => "sts:GetCallerIdentity".to_owned(),
            name => format!("ec2:{}", camel(name)),
        })
        .collect();
    assert!(actions.len() > 20, "{actions:?}");
    // Calls that make something send tags along, which needs a right of its own.
    actions.insert("ec2:CreateTags".to_owned());
    actions
}

#[test]
fn the_policy_of_the_page_allows_what_the_code_calls_and_nothing_else() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers/aws.md");
    let text = fs::read_to_string(page).unwrap();
    let (_, rest) = text.split_once("<!-- policy:aws -->\n```json\n").unwrap();
    let (policy, _) = rest.split_once("```").unwrap();
    let policy: serde_json::Value = serde_json::from_str(policy).unwrap();
    let mut allowed = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        for action in statement["Action"].as_array().unwrap() {
            let action = action.as_str().unwrap();
            assert!(!action.contains('*'), "{action} allows more than one call");
            assert!(allowed.insert(action.to_owned()), "{action} stands twice");
        }
    }
    assert_eq!(allowed, actions_of_the_code());
    assert!(!allowed.contains("ec2:DeleteVolume"), "volumes of the user are never deleted");
}

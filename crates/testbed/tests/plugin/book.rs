//! The pages of the book say what the code does.

use std::{fs, path::Path};

use serde_json::Value;
use testbed::plugin::{ToHost, ToProvider};

fn page(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/testbed").join(name);
    fs::read_to_string(file).unwrap()
}

#[test]
fn every_message_of_the_page_is_one() {
    let page = page("plugin-protocol.md");
    let blocks = page.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut count = 0;
    for line in blocks.flat_map(str::lines) {
        let mut message: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        if message["type"] == "call" {
            // A whole reservation does not fit a page.
            message["params"].as_object_mut().unwrap().remove("reservation");
        }
        let host = serde_json::from_value::<ToHost>(message.clone());
        let provider = serde_json::from_value::<ToProvider>(message);
        assert!(host.is_ok() || provider.is_ok(), "{line}: {host:?} {provider:?}");
        count += 1;
    }
    assert!(count >= 9, "{count} messages");
}

#[test]
fn every_case_of_the_suite_is_on_the_page() {
    let page = page("new-provider.md");
    for case in testbed::conformance::names() {
        assert!(page.contains(&format!("`{case}`")), "{case} is not on the page");
    }
}

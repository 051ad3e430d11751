//! Answers that nobody would send on purpose.

use std::cell::Cell;

use cloud_providers_aws::client::Query;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Builder;

use crate::pages::INSTANCE;
use crate::server::{Answer, Server, ec2};

/// Cuts a piece out of a text and puts another one in its place.
fn damaged(whole: &str, from: usize, length: usize, instead: &str) -> String {
    let chars: Vec<char> = whole.chars().collect();
    let from = from % (chars.len() + 1);
    let to = (from + length).min(chars.len());
    chars[..from].iter().copied().chain(instead.chars()).chain(chars[to..].iter().copied()).collect()
}

#[test]
fn a_damaged_answer_is_an_error_or_a_list_and_never_a_panic() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let whole = ec2("DescribeInstances", INSTANCE).body;
    let damage = (any::<usize>(), 0..200_usize, "[<>/a-z0-9&;\u{0}-\u{ff}-]{0,12}");
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(200) });
    let (lists, errors) = (Cell::new(0), Cell::new(0));
    runner
        .run(&damage, |(from, length, instead)| {
            let body = damaged(&whole, from, length, &instead);
            let answer = runtime.block_on(async {
                let server = Server::always(Answer::ok(body)).await;
                server.connect().await.describe_instances(&Query::default(), None).await
            });
            match answer {
                Ok(_) => lists.set(lists.get() + 1),
                Err(error) => {
                    // What is not understood may be asked for again; nothing of it is a fault of the options.
                    prop_assert!(
                        matches!(error.kind().to_string().as_str(), "transient" | "internal"),
                        "{error:?}"
                    );
                    errors.set(errors.get() + 1);
                }
            }
            Ok(())
        })
        .unwrap();
    let (lists, errors) = (lists.get(), errors.get());
    assert!(
        lists > 0 && errors > 0,
        "{lists} lists and {errors} errors: the damage is too small or too large"
    );
}

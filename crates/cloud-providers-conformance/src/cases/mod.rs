//! One case for each rule of the contract, with the rule's id.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::context::Context;

mod calm;
mod config;
mod create;
mod delete;
mod failure;
mod owned;
mod refuse;
mod secrets;
mod tagged;
mod waits;

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A case: the rule and its checks.
pub(crate) struct Case {
    pub(crate) id: &'static str,
    pub(crate) run: fn(Arc<Context>) -> Running,
}

macro_rules! case {
    ($id:literal, $run:path) => {
        Case { id: $id, run: |context| Box::pin(async move { $run(&context).await }) }
    };
}

/// Every case, in the order of the page of rules. `cargo xtask tidy` reads the ids from these lines.
pub(crate) const CASES: &[Case] = &[
    case!("create/idempotent", create::idempotent),
    case!("create/race-gives-one", create::race),
    case!("create/lost-reply-gives-one", create::lost_reply),
    case!("create/other-request-is-conflict", create::other_request),
    case!("create/foreign-name-is-conflict", create::foreign_name),
    case!("create/failure-leaves-nothing", failure::leaves_nothing),
    case!("create/cancel-leaves-nothing", failure::cancelled),
    case!("create/leftovers-are-told", failure::leftovers_are_told),
    case!("create/records-before-next-call", failure::records_first),
    case!("create/dropped-leaves-what-was-recorded", failure::dropped),
    case!("create/confidential-is-never-downgraded", refuse::confidential),
    case!("create/unsupported-is-refused", refuse::unsupported),
    case!("create/limits-before-first-call", refuse::limits),
    case!("delete/missing-is-ok", delete::missing),
    case!("delete/no-leftovers", delete::no_leftovers),
    case!("delete/repeat-finishes", delete::repeat),
    case!("delete/volumes-stay", delete::volumes_stay),
    case!("delete/foreign-is-refused", delete::foreign),
    case!("delete/recorded-name-is-accepted", delete::recorded),
    case!("list/one-entry-per-token", owned::one_entry),
    case!("list/says-when-incomplete", owned::incomplete),
    case!("list/other-scopes-are-not-shown", owned::other_scopes),
    case!("list/says-what-runs", owned::what_runs),
    case!("release/without-instance", owned::release_without_instance),
    case!("release/nothing-is-ok", owned::release_nothing),
    case!("release/other-tokens-stay", owned::release_others_stay),
    case!("tags/on-everything", tagged::on_everything),
    case!("tags/plain-values", tagged::plain_values),
    case!("tags/user-tags-keep-out", tagged::user_tags),
    case!("teardown/instances-stay", calm::instances_stay),
    case!("teardown/twice-is-ok", calm::teardown_twice),
    case!("verify/changes-nothing", calm::verify),
    case!("console/last-plain-text", calm::console),
    case!("capabilities/tell-the-truth", refuse::capabilities),
    case!("errors/say-what-to-do", calm::errors),
    case!("waits/bounded", waits::bounded),
    case!("waits/cancellable", waits::cancellable),
    case!("secrets/never-shown", secrets::never_shown),
    case!("config/no-globals", config::no_globals),
    case!("config/strict", config::strict),
    case!("config/all-problems-together", config::all_problems),
];

const fn ids() -> [&'static str; CASES.len()] {
    let mut ids = [""; CASES.len()];
    let mut i = 0;
    while i < ids.len() {
        ids[i] = CASES[i].id;
        i += 1;
    }
    ids
}

/// The id of every rule that has a case.
pub const RULES: &[&str] = &ids();

//! One case for each rule of the contract, with the rule's id.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::context::Context;

mod create;

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
pub(crate) const CASES: &[Case] = &[case!("create/idempotent", create::idempotent)];

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

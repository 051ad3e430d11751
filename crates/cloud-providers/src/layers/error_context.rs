//! Errors that say which provider was asked for what.

use super::{Around, Call, Next};
use crate::{OpContext, Result};

/// Writes provider, operation and subject on every error.
#[derive(Debug)]
pub(super) struct ErrorContext {
    pub(super) provider: String,
}

impl Around for ErrorContext {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        ctx: &'a OpContext,
        call: Call<'a>,
        next: Next<'a, T>,
    ) -> Result<T> {
        next(ctx.clone()).await.map_err(|error| {
            // The step of the cloud says more than our operation, so that one stays where there is one.
            let error = match error.operation() {
                None => error.with_operation(call.operation.label()),
                Some(step) if step == call.operation.label() => error,
                Some(_) => error.with("during", call.operation),
            };
            let error = match call.subject.shown() {
                Some((key, value)) => error.with(key, value),
                None => error,
            };
            error.with("provider", &self.provider)
        })
    }
}

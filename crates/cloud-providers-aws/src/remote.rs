//! Makes remote calls within their bounds, page by page, and asks in batches.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use cloud_providers::{
    Error, ErrorKind, OpContext, Result, async_trait,
    batch::{Batch, BatchSettings, Describe},
};
use tokio::time::timeout;

use crate::client::{Ec2, Instance, Query, Volume};

/// How often a state is asked for.
pub(crate) const POLL: Duration = Duration::from_secs(1);

/// The way to EC2.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) ec2: Arc<dyn Ec2>,
    /// The longest that one call may take.
    pub(crate) limit: Duration,
}

impl Calls {
    /// Makes one remote call, which ends with the caller, with its deadline, and after the time of a single call.
    pub(crate) async fn call<T>(
        &self,
        ctx: &OpContext,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        ctx.check()?;
        let limited = async { timeout(self.limit, call).await.unwrap_or_else(|_| Err(self.too_late())) };
        ctx.run(limited).await.map_err(|error| named(error, operation))
    }

    /// Makes a call that may be repeated, until it is answered or refused for good, at most for `limit`.
    pub(crate) async fn persist<T, F, Fut>(
        &self,
        ctx: &OpContext,
        operation: &'static str,
        limit: Duration,
        mut call: F,
    ) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        ctx.poll(operation, POLL, limit, || {
            let call = Box::pin(call());
            async { self.call(ctx, operation, call).await.map(Some) }
        })
        .await
    }

    pub(crate) fn too_late(&self) -> Error {
        Error::new(ErrorKind::Transient, "EC2 did not answer in time")
            .with("waited", format!("{:?}", self.limit))
            .with_code("Timeout")
    }

    /// Batches questions for instances.
    pub(crate) fn instances(&self) -> Batch<Instances> {
        Batch::new(Instances(self.ec2.clone()), self.batching())
    }

    /// Batches questions for volumes.
    pub(crate) fn volumes(&self) -> Batch<Volumes> {
        Batch::new(Volumes(self.ec2.clone()), self.batching())
    }

    fn batching(&self) -> BatchSettings {
        // EC2 takes at most 200 values of a filter.
        BatchSettings::default().with_interval(POLL).with_ids_per_call(100).with_call_limit(self.limit)
    }
}

/// Whether EC2 said no, which means that nothing was made. An answer that cannot be read says nothing.
pub(crate) fn is_answer(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Transient | ErrorKind::Throttled | ErrorKind::Cancelled => false,
        ErrorKind::Internal => error.code().is_some(),
        _ => true,
    }
}

/// Names the operation of an error that has none.
pub(crate) fn named(error: Error, operation: &'static str) -> Error {
    if error.operation().is_some() || *error.kind() == ErrorKind::Cancelled {
        error
    } else {
        error.with_operation(operation)
    }
}

/// Returns every item of a describing call of [`Ec2`], and the error that ended it early.
macro_rules! pages {
    ($calls:expr, $ctx:expr, $operation:literal, $method:ident, $query:expr) => {{
        let (mut items, mut after) = (Vec::new(), None::<String>);
        loop {
            let call = $calls.ec2.$method($query, after.as_deref());
            match $calls.call($ctx, $operation, call).await {
                Err(error) => break (items, Some(error)),
                Ok(page) => {
                    items.extend(page.items);
                    // A mark that repeats itself would never end.
                    match page.next {
                        Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                        _ => break (items, None),
                    }
                }
            }
        }
    }};
}
pub(crate) use pages;

/// Makes an error of a list that broke off.
pub(crate) fn whole<T>((items, error): (Vec<T>, Option<Error>)) -> Result<Vec<T>> {
    match error {
        None => Ok(items),
        Some(error) => Err(error),
    }
}

/// Questions for instances. They are asked by filter, since one unknown id would refuse the whole call.
pub(crate) struct Instances(Arc<dyn Ec2>);

#[async_trait]
impl Describe for Instances {
    type Id = String;
    type State = Instance;

    async fn describe(&self, ids: &[String]) -> Result<HashMap<String, Instance>> {
        let query = Query::filter("instance-id", ids.iter().cloned());
        let (mut found, mut after) = (HashMap::new(), None::<String>);
        loop {
            let page = self.0.describe_instances(&query, after.as_deref()).await?;
            found.extend(page.items.into_iter().map(|i| (i.id.clone(), i)));
            match page.next {
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => return Ok(found),
            }
        }
    }
}

/// Questions for volumes, by filter as those for instances.
pub(crate) struct Volumes(Arc<dyn Ec2>);

#[async_trait]
impl Describe for Volumes {
    type Id = String;
    type State = Volume;

    async fn describe(&self, ids: &[String]) -> Result<HashMap<String, Volume>> {
        let query = Query::filter("volume-id", ids.iter().cloned());
        let (mut found, mut after) = (HashMap::new(), None::<String>);
        loop {
            let page = self.0.describe_volumes(&query, after.as_deref()).await?;
            found.extend(page.items.into_iter().map(|v| (v.id.clone(), v)));
            match page.next {
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => return Ok(found),
            }
        }
    }
}

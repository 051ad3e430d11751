//! Finds what carries a token, also while lists lag behind.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cloud_providers::{OpContext, Result, tags};
use tokio::time::Instant;

use crate::{
    AwsProvider,
    client::{self, Address, Interface, Query},
};

/// For how long a change may be missing in answers of EC2, which promises consistency in the end only.
pub(crate) const LAG: Duration = Duration::from_secs(5);
/// For how long an instance that this process launched may be unknown to EC2 without being gone.
const YOUNG: Duration = Duration::from_secs(30);

/// Everything that carries a token.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) instances: Vec<client::Instance>,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) addresses: Vec<Address>,
}

impl AwsProvider {
    /// Lists the instances of a token: at once, and when there is none again when the lag is over.
    pub(crate) async fn instances_settled(
        &self,
        ctx: &OpContext,
        token: &str,
    ) -> Result<Vec<client::Instance>> {
        let found = self.instances_of(ctx, token).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        ctx.sleep(LAG).await?;
        self.instances_of(ctx, token).await
    }

    /// Finds everything that carries a token, at once and again when the lag is over.
    pub(crate) async fn find_settled(&self, ctx: &OpContext, token: &str) -> Result<Found> {
        let start = Instant::now();
        let mut found = self.find(ctx, token).await?;
        ctx.sleep(LAG.saturating_sub(start.elapsed())).await?;
        let later = self.find(ctx, token).await?;
        for instance in later.instances {
            found.instances.retain(|i| i.id != instance.id);
            found.instances.push(instance);
        }
        for interface in later.interfaces {
            found.interfaces.retain(|i| i.id != interface.id);
            found.interfaces.push(interface);
        }
        for address in later.addresses {
            found.addresses.retain(|a| a.allocation != address.allocation);
            found.addresses.push(address);
        }
        Ok(found)
    }

    async fn find(&self, ctx: &OpContext, token: &str) -> Result<Found> {
        let instances = self.instances_of(ctx, token).await?;
        let (interfaces, addresses) = self.parts(ctx, &Query::tag(tags::TOKEN, token)).await?;
        Ok(Found { instances, interfaces, addresses })
    }
}

/// Instances that this process launched a short while ago: EC2 may not know them yet when it is asked.
#[derive(Debug, Default)]
pub(crate) struct Young(Mutex<HashMap<String, Instant>>);

impl Young {
    pub(crate) fn add(&self, id: &str) {
        let mut launched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        launched.retain(|_, at| at.elapsed() < YOUNG);
        launched.insert(id.to_owned(), Instant::now());
    }

    /// Returns whether an answer without this instance says nothing yet.
    pub(crate) fn has(&self, id: &str) -> bool {
        let launched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        launched.get(id).is_some_and(|at| at.elapsed() < YOUNG)
    }

    /// Forgets an instance that EC2 has shown.
    pub(crate) fn remove(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

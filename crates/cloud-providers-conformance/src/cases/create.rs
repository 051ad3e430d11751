//! One token, one instance.

use crate::{
    Offer,
    context::{Context, ensure},
};

pub(crate) async fn idempotent(c: &Context) {
    c.check("same-request-same-instance", same_request(c)).await;
}

async fn same_request(c: &Context) -> Offer<()> {
    let (before, request) = (c.look().await?, c.request());
    let first = c.create(&request).await?;
    // Another provider value, as after a restart of the program.
    let second = c.create(&request).await?;
    ensure!(first == second, "the same request gave {first:?}, then {second:?}");
    let id = c.one_instance(&before, "after two creates").await?;
    ensure!(id == first.id.as_str(), "the instance {id} is not the one that was returned: {first:?}");
    let other = c.create(&c.request()).await?;
    ensure!(other.id != first.id, "another token got the same instance {}", first.id);
    Ok(())
}

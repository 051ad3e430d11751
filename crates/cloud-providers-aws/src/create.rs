//! Makes instances.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_providers::{
    CreateRequest, Error, ErrorKind, Instance, OpContext, Resource, Result, Retry, UserData,
    names::instance_name,
    placement::{Offering, Purchase, place},
    tags,
};
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use crate::{
    AwsProvider,
    blueprint::{Blueprint, Shape},
    client::{self, Query, RunInstances, State},
    error,
    owned::{Wanted, addresses_of, instance_of},
    provider::NAME_LIMIT,
    remote::{is_answer, named, pages, whole},
};

/// How long the answer to a launch is waited for after the caller gave up: without it nobody knows the instance's id.
const GRACE: Duration = Duration::from_secs(5);
/// How often a launch without an answer is made again, with the same idempotency value.
const LAUNCHES: u32 = 3;
/// How many instances of one token and place may be gone before its idempotency values are given up.
const GENERATIONS: u32 = 16;

/// What a create has done so far.
#[derive(Debug, Default)]
pub(crate) struct Made(Mutex<Parts>);

/// The parts that a create has made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    /// Instances that this call made.
    pub(crate) instances: Vec<String>,
    /// Interfaces made after the launch.
    pub(crate) interfaces: Vec<String>,
    /// Allocations of Elastic IPs.
    pub(crate) addresses: Vec<String>,
    /// Volumes that this call attached, each with its instance.
    pub(crate) volumes: Vec<(String, String)>,
    /// A call that makes something ended without telling whether it did.
    pub(crate) unclear: bool,
}

impl Made {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AwsProvider {
    /// Makes the instance of the request's token, or returns the one that is there.
    pub(crate) async fn build(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
        user_data: UserData,
        wanted: &Wanted,
        made: &Made,
    ) -> Result<Instance> {
        // Looked for first: an earlier call may have been cut off after its launch, in this process or another one, and
        // at another place than the one that comes first now.
        if let Some(instance) = wanted.adoptable(self.instances_of(ctx, &wanted.token.tag_value()).await?)? {
            return self.adopt(ctx, request, instance, wanted, made).await;
        }
        let blueprint = Blueprint::new(ctx, &self.calls, &self.known, &self.config, request, user_data);
        let blueprint = Box::pin(blueprint).await?;
        let volumes = self.check_volumes(ctx, &request.spec.volumes, &blueprint.plan).await?;
        let plan = match volumes {
            Some(plan) => plan,
            None => blueprint.plan.clone(),
        };
        // Boxed, so that the compiler sees that it may move between threads.
        let launch = |offering: Offering| -> BoxFuture<'_, Result<client::Instance>> {
            Box::pin(self.launch(ctx, wanted, &blueprint, offering, made))
        };
        let placed = Box::pin(place(ctx, &self.memory, &plan, launch)).await;
        let placed = placed.map_err(|error| named(error, "RunInstances"))?;
        if !placed.refused.is_empty() {
            tracing::info!(
                provider = crate::NAME,
                instance_id = placed.value.id,
                place = %placed.offering,
                refused = placed.refused.len(),
                "the instance is at another place than the first choice"
            );
        }
        Box::pin(self.finish(ctx, request, &blueprint.shape, placed.value, wanted, made)).await
    }

    /// Returns the name of the instance of a request.
    pub(crate) fn name_of(request: &CreateRequest) -> Result<String> {
        instance_name(&request.unit.name_hint, &request.unit.id, NAME_LIMIT)
    }

    /// Lists the instances of a token.
    pub(crate) async fn instances_of(&self, ctx: &OpContext, token: &str) -> Result<Vec<client::Instance>> {
        let query = Query::tag(tags::TOKEN, token);
        whole(pages!(self.calls, ctx, "DescribeInstances", describe_instances, &query))
    }

    async fn adopt(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
        instance: client::Instance,
        wanted: &Wanted,
        made: &Made,
    ) -> Result<Instance> {
        ctx.record(&Resource::new(Resource::INSTANCE, &instance.id)).await?;
        if matches!(instance.state, State::Stopping | State::Stopped) {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the instance of this token was stopped: take the next attempt",
            )
            .with("token", &wanted.token)
            .with("instance", &instance.id));
        }
        let template = self.known.template(ctx, &self.calls, &self.config).await?;
        let shape = Shape::of(request, &self.config, template.as_deref());
        Box::pin(self.finish(ctx, request, &shape, instance, wanted, made)).await
    }

    /// Launches at one place.
    async fn launch(
        &self,
        ctx: &OpContext,
        wanted: &Wanted,
        blueprint: &Blueprint,
        offering: Offering,
        made: &Made,
    ) -> Result<client::Instance> {
        for generation in 0..GENERATIONS {
            let launch = blueprint.launch(wanted, &offering, generation);
            let instance = match Box::pin(self.run_instances(ctx, &launch, made)).await {
                Ok(instance) => instance,
                Err(error) if error.code() == Some("IdempotentInstanceTerminated") => continue,
                // Another call has used the value: tags tell its time and number, so two are never the same.
                Err(error) if error.code() == Some("IdempotentParameterMismatch") => {
                    let found = self.instances_settled(ctx, &wanted.token.tag_value()).await?;
                    match wanted.adoptable(found)? {
                        Some(instance) => instance,
                        None => continue,
                    }
                }
                Err(error) => return Err(at(error, &offering)),
            };
            if instance.state.is_going() {
                // EC2 repeats its answer for an instance that is gone.
                continue;
            }
            if wanted.is_of_this_call(&instance.tags) {
                made.lock().instances.push(instance.id.clone());
            } else {
                wanted.check(&instance.tags, &instance.id)?;
            }
            self.young.add(&instance.id);
            ctx.record(&Resource::new(Resource::INSTANCE, &instance.id)).await?;
            return Ok(instance);
        }
        Err(Error::new(ErrorKind::Conflict, "every instance of this token is gone: take the next attempt")
            .with("token", &wanted.token))
    }

    /// Makes the call that makes an instance, and repeats it with the same value when no answer came. When the caller
    /// gives up meanwhile, the answer is still waited for a little.
    async fn run_instances(
        &self,
        ctx: &OpContext,
        launch: &RunInstances,
        made: &Made,
    ) -> Result<client::Instance> {
        let mut tries = 1;
        loop {
            ctx.check()?;
            let call = timeout(self.calls.limit, self.calls.ec2.run_instances(launch));
            tokio::pin!(call);
            let given_up = match ctx.run(async { Ok(call.as_mut().await) }).await {
                Ok(answer) => {
                    let answer = answer.unwrap_or_else(|_| Err(self.calls.too_late()));
                    let error = match answer {
                        Ok(instance) => {
                            made.lock().unclear = false;
                            return Ok(instance);
                        }
                        Err(error) => named(error, "RunInstances"),
                    };
                    match is_answer(&error) {
                        // EC2 would have repeated the answer to an earlier try that had an effect.
                        true => made.lock().unclear = false,
                        false if *error.kind() == ErrorKind::Throttled => {}
                        false => made.lock().unclear = true,
                    }
                    let (true, Retry::After { delay }) =
                        (*error.kind() == ErrorKind::Transient, error.retry())
                    else {
                        return Err(error);
                    };
                    if tries == LAUNCHES {
                        return Err(error);
                    }
                    tries += 1;
                    ctx.sleep(delay).await?;
                    continue;
                }
                Err(given_up) => given_up,
            };
            return match timeout(GRACE, call).await {
                Ok(Ok(Ok(instance))) => Ok(instance),
                Ok(Ok(Err(error))) if is_answer(&error) => Err(given_up),
                _ => {
                    made.lock().unclear = true;
                    Err(given_up)
                }
            };
        }
    }

    /// Makes everything that comes after the launch, and waits for what the caller needs.
    async fn finish(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
        shape: &Shape,
        launched: client::Instance,
        wanted: &Wanted,
        made: &Made,
    ) -> Result<Instance> {
        let public = shape.nics[0].public;
        let more = shape.has_more_parts();
        let addresses = addresses_of(&launched, public);
        if !public && !more && request.spec.volumes.is_empty() && !addresses.is_empty() {
            // The reply to the launch has said everything: nothing needs the instance to run.
            return Ok(instance_of(&launched, addresses));
        }
        let ready = |found: &client::Instance| match (
            public,
            found.interfaces.iter().find(|i| i.device_index == 0),
        ) {
            (true, Some(first)) => first.public_address.is_some(),
            (false, Some(_)) => true,
            (_, None) => false,
        };
        let running = self.wait_running(ctx, &launched.id, ready).await?;
        self.attach_volumes(ctx, &request.spec.volumes, &running, made).await?;
        let mut addresses = addresses_of(&running, public);
        if more {
            Box::pin(self.make_parts(ctx, shape, &running, wanted, made, &mut addresses)).await?;
        }
        Ok(instance_of(&running, addresses))
    }

    /// Waits until an instance runs and is `ready`.
    async fn wait_running(
        &self,
        ctx: &OpContext,
        id: &str,
        ready: impl Fn(&client::Instance) -> bool,
    ) -> Result<client::Instance> {
        let probe = |found: Option<client::Instance>| match found {
            Some(found) if found.state == State::Running && ready(&found) => Ok(Some(found)),
            Some(found) if !matches!(found.state, State::Pending | State::Running | State::Unknown) => {
                Err(ended(&found))
            }
            // Lists lag behind a launch.
            _ => Ok(None),
        };
        let limit = self.config.state_timeout;
        self.instances.wait(ctx, "the instance to run", &id.to_owned(), limit, probe).await
    }
}

/// Says why an instance came to nothing, in the words of EC2.
fn ended(found: &client::Instance) -> Error {
    let reason = found.state_reason.clone().unwrap_or_default();
    let code = reason.code.trim_start_matches("Client.").trim_start_matches("Server.");
    let (kind, retry) = error::classify(code).unwrap_or((ErrorKind::Transient, None));
    let error = Error::new(kind, "the instance ended while it started")
        .with("instance", &found.id)
        .with_cloud(reason.code.as_str(), reason.message.as_str());
    match retry {
        Some(retry) => error.with_retry(retry),
        None => error,
    }
}

/// Adds the place to an error.
fn at(error: Error, offering: &Offering) -> Error {
    let error = error.with("instance type", &offering.instance_type);
    let error = match &offering.subnet {
        Some(subnet) => error.with("subnet", subnet),
        None => error,
    };
    match offering.purchase {
        Purchase::OnDemand => error,
        other => error.with("purchase", other),
    }
}

//! The storm itself: many instances at a time, made and deleted as the daemon does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cloud_providers::{CreateRequest, Instance, OpContext, Ownership, Provider, Retry, Scope, Token, Unit};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Options, Report, Sky};

/// What errors are worth showing.
const SHOWN: usize = 5;
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(20);

/// Makes `options.pods` instances under faults, deletes them under faults, and says what is left.
///
/// # Errors
///
/// When the cloud cannot be asked what is there.
pub async fn run(sky: &dyn Sky, options: &Options) -> Result<Report> {
    let provider = sky.provider();
    let scope = Scope::Cluster(options.scope.clone());
    if sky.counts() {
        // What a provider asks once, it asks for this one.
        let mut first = one(&provider, &scope, 0, options).await;
        remove(&provider, &mut first, options).await;
    }
    let before = sky.contents().await?;
    let mut report = Report { pods: options.pods, ..Report::default() };

    sky.begin(options)?;
    let (start, calls) = (Instant::now(), sky.calls());
    let request = {
        let (provider, scope, options) = (Arc::clone(&provider), scope.clone(), options.clone());
        move |number| {
            let (provider, scope, options) = (Arc::clone(&provider), scope.clone(), options.clone());
            async move { one(&provider, &scope, number, &options).await }
        }
    };
    let mut pods = at_once(options.at_once, (1..=options.pods).map(request)).await;
    report.create_seconds = start.elapsed().as_secs_f64();
    report.create_calls = since(&sky.calls(), &calls);
    for pod in &pods {
        match &pod.outcome {
            Ok(_) => report.created += 1,
            Err(error) => {
                report.failed += 1;
                report.errors.push(error.clone());
            }
        }
    }
    report.errors.truncate(SHOWN);

    let (start, calls) = (Instant::now(), sky.calls());
    let deletion = |mut pod: Pod| {
        let (provider, options) = (Arc::clone(&provider), options.clone());
        async move {
            remove(&provider, &mut pod, &options).await;
            pod
        }
    };
    let pods = at_once(options.at_once, pods.drain(..).map(deletion)).await;
    report.delete_seconds = start.elapsed().as_secs_f64();
    report.delete_calls = since(&sky.calls(), &calls);
    report.peak_per_second = sky.peak();
    report.repeated = u32::try_from(pods.iter().filter(|pod| pod.removals > 1).count())?;
    report.errors.extend(pods.iter().filter_map(|pod| pod.stuck.clone()).take(SHOWN));
    sky.calm();
    report.leftovers = sky.contents().await?.into_iter().filter(|one| !before.contains(one)).collect();
    Ok(report)
}

/// One instance that was asked for.
#[derive(Debug)]
struct Pod {
    token: Token,
    outcome: Result<Instance, String>,
    removals: u32,
    stuck: Option<String>,
}

/// Asks for one instance as often as the provider says that asking again is worth it.
async fn one(provider: &Arc<dyn Provider>, scope: &Scope, number: u32, options: &Options) -> Pod {
    let unit = Unit { id: format!("sandbox-{number:06}"), name_hint: format!("storm-{number}") };
    let token = Token::new(scope.clone(), &unit.id, 1);
    let request = CreateRequest::new(token.clone(), unit, "storm").with_user_data("#cloud-config\n{}\n");
    let end = Instant::now() + options.limit;
    let mut tries = 0;
    let outcome = loop {
        tries += 1;
        let context = OpContext::new().with_timeout(end.duration_since(Instant::now()));
        match provider.create_instance(&context, &request).await {
            Ok(instance) => break answering(instance, options, end).await,
            Err(error) => match pause(error.retry(), tries).filter(|pause| Instant::now() + *pause < end) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => break Err(error.report().to_string()),
            },
        }
    };
    Pod { token, outcome, removals: 0, stuck: None }
}

/// Waits until an instance answers at the port that was asked for.
async fn answering(instance: Instance, options: &Options, end: Instant) -> Result<Instance, String> {
    let Some(port) = options.connect else { return Ok(instance) };
    let Some(address) = instance.addresses.first() else { return Err("it has no address".to_owned()) };
    loop {
        let connecting = tokio::net::TcpStream::connect((*address, port));
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), connecting).await {
            return Ok(instance);
        }
        if Instant::now() >= end {
            return Err(format!("{} does not answer at {address}:{port}", instance.id));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Deletes the instance, or releases what a failed attempt may have left, until it is done: the daemon's journal does not
/// give up either.
async fn remove(provider: &Arc<dyn Provider>, pod: &mut Pod, options: &Options) {
    let end = Instant::now() + options.limit;
    loop {
        pod.removals += 1;
        let context = OpContext::new().with_timeout(end.duration_since(Instant::now()));
        let done = match &pod.outcome {
            Ok(instance) => {
                let ownership = Ownership::Tagged(pod.token.scope.clone());
                provider.delete_instance(&context, &instance.id, &ownership).await
            }
            Err(_) => provider.release(&context, &pod.token).await,
        };
        let Err(error) = done else { return };
        let pause = pause(error.retry(), pod.removals).unwrap_or(PAUSE);
        if Instant::now() + pause >= end {
            pod.stuck = Some(error.report().to_string());
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// How long to wait before the next try; nothing when there is none.
fn pause(retry: Retry, tries: u32) -> Option<Duration> {
    let longer = Duration::from_millis(250) * 2_u32.saturating_pow(tries.min(8));
    let least = match retry {
        Retry::After { delay } => delay,
        _ => return None,
    };
    // Chance keeps those that failed together from coming again together.
    Some((least + longer.mul_f64(rand::random::<f64>())).min(PAUSE))
}

/// Runs everything, so many at a time.
async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    limit: usize,
    all: impl Iterator<Item = F>,
) -> Vec<T> {
    let turns = Arc::new(Semaphore::new(limit.max(1)));
    let mut set = JoinSet::new();
    for work in all {
        let turns = Arc::clone(&turns);
        set.spawn(async move {
            let _turn = turns.acquire_owned().await;
            work.await
        });
    }
    // One that panicked is missing in the result, and the report says so.
    let mut done = Vec::new();
    while let Some(one) = set.join_next().await {
        done.extend(one.ok());
    }
    done
}

fn since(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let more = |(name, count): (&String, &u64)| {
        let more = count - before.get(name).copied().unwrap_or_default();
        (more > 0).then(|| (name.clone(), more))
    };
    now.iter().filter_map(more).collect()
}

//! Many pods are stopped at once while the provider answers no deletion.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use test_support::{ShimPlayer, wait_for_async};
use tokio::task::{JoinSet, block_in_place};

use crate::context::Context;
use crate::programs::Node;
use crate::world::World;

/// How soon 99 of 100 StopVM calls are to be answered.
const GOAL_MS: f64 = 200.0;
/// A shim stops so often in a row, with a second each time.
const TIMES: usize = 3;
const PENDING_LIMIT: Duration = Duration::from_secs(30);

/// What was measured.
#[derive(Debug)]
pub(super) struct Stops {
    pods: usize,
    /// How long each call took, in milliseconds, sorted.
    times: Vec<f64>,
}

/// Stops all pods at once, kills the daemon meanwhile, and lets the provider answer at last.
///
/// # Errors
///
/// When a shim's second is over before an answer, or a deletion is forgotten.
pub(super) async fn run(world: &mut World, node: &Node, shims: Vec<ShimPlayer>) -> Result<Stops> {
    let pods = shims.len();
    let held = world.machines().hold_deletions()?;
    let mut stopping = JoinSet::new();
    for (index, shim) in shims.into_iter().enumerate() {
        stopping.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..TIMES {
                let begun = Instant::now();
                shim.stop_vm().await.with_context(|| format!("pod {index}: StopVM"))?;
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, anyhow::Error>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(stopped) = stopping.join_next().await {
        times.extend(stopped??);
    }
    times.sort_by(f64::total_cmp);
    wait_pending(world, pods).await?;
    block_in_place(|| world.kill_daemon())?;
    world.start_daemon(node).await?;
    wait_pending(world, pods).await.context("after a kill")?;
    drop(held);
    Ok(Stops { pods, times })
}

async fn wait_pending(world: &World, count: usize) -> Result<()> {
    let what = format!("{count} deletions that are not confirmed, in the metrics");
    let pending = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("peerpod_deletions_pending{"))?;
        (line.rsplit(' ').next()? == count.to_string()).then_some(())
    };
    wait_for_async(&what, PENDING_LIMIT, || async { pending(&world.metrics().ok()?) }).await
}

impl Stops {
    /// Prints the table.
    pub(super) fn print(&self, context: &Context) {
        let p99 = percentile(&self.times, 0.99);
        context.say(format!(
            "\npods stopped at once, the provider never answers       {:>8}\n\
             StopVM calls, all answered                            {:>8}\n\
             StopVM answers, median ms                             {:>8.0}\n\
             StopVM answers, p99 ms                                {:>8.0}\n\
             StopVM answers, worst ms                              {:>8.0}\n\
             deletions kept over a kill of the daemon, then done   {:>8}\n\
             goal: 99 of 100 StopVM calls are answered within {GOAL_MS} ms: {}",
            self.pods,
            self.times.len(),
            percentile(&self.times, 0.5),
            p99,
            percentile(&self.times, 1.0),
            self.pods,
            if p99 < GOAL_MS { "met" } else { "MISSED" },
        ));
    }
}

/// The least of sorted times that the given part of all does not exceed.
fn percentile(sorted: &[f64], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_of_few_calls_is_the_worst_and_of_many_leaves_one_in_a_hundred_out() {
        let times: Vec<f64> = (1..=60).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|part| percentile(&times, part)), [30.0, 60.0, 60.0]);
        let times: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&times, 0.99), 198.0);
        assert_eq!(percentile(&[], 0.99), 0.0);
    }
}

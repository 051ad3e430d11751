//! Waiting for a state, never for a time.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a probe rests before it looks again.
const REST: Duration = Duration::from_millis(10);

/// Calls `probe` until it returns a value, and returns that value.
///
/// # Errors
///
/// Names `what` when `limit` passes first.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(REST);
    }
}

/// Does what [`wait_for`] does for a probe that is a future.
///
/// # Errors
///
/// Names `what` when `limit` passes first.
pub async fn wait_for_async<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        tokio::time::sleep(REST).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_the_wait() {
        let mut calls = 0;
        let got = wait_for("three calls", Duration::from_secs(5), || {
            calls += 1;
            (calls == 3).then_some(calls)
        });
        assert_eq!(got.unwrap(), 3);
    }

    #[test]
    fn a_wait_in_vain_names_what_it_waited_for() {
        let error = wait_for("the moon", Duration::ZERO, || None::<()>).unwrap_err();
        assert!(error.to_string().contains("the moon"), "{error}");
    }

    #[tokio::test]
    async fn an_async_probe_is_asked_again() {
        let calls = std::sync::atomic::AtomicU32::new(0);
        let got = wait_for_async("two calls", Duration::from_secs(5), || async {
            (calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1).then_some("done")
        });
        assert_eq!(got.await.unwrap(), "done");
    }
}

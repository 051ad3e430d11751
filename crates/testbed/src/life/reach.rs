//! Waits until machines answer over SSH.

use std::{sync::Arc, time::Duration};

use cloud_providers::{Error, ErrorKind, OpContext, Result};
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use crate::{
    Event, Host, Progress,
    ssh::{Answer, Outcome, Remote},
};

/// The pause after a first refusal; it grows to the longest.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(2);
/// How long one try may take: a machine that drops packets must not use up the whole time.
const TRY: Duration = Duration::from_secs(20);
/// How many tries run at once: each is a process of ours.
const AT_ONCE: usize = 32;

/// Waits until every host runs a command over SSH, for at most `limit`, all of them at the same time.
///
/// # Errors
///
/// [`ErrorKind::Transient`] naming every host that did not answer, with what ssh said last; a host key that is not the
/// right one ends the wait for its host at once.
pub async fn wait_for_ssh(
    op: &OpContext,
    remote: &Remote,
    hosts: &[Host],
    limit: Duration,
    progress: &Arc<dyn Progress>,
) -> Result<()> {
    let end = Instant::now() + limit;
    let waits = hosts.iter().map(|host| async move {
        let result = wait_for(op, remote, host, end).await;
        match &result {
            Ok(()) => progress.tell(&host.alias, &Event::Reachable),
            Err(error) => progress.tell(&host.alias, &Event::Failed { error: error.report() }),
        }
        (host, result)
    });
    let results: Vec<_> = stream::iter(waits).buffer_unordered(hosts.len().clamp(1, AT_ONCE)).collect().await;
    op.check()?;
    let mut failed: Vec<String> = results
        .into_iter()
        .filter_map(|(host, result)| Some(format!("{}: {}", host.alias, result.err()?.report())))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    failed.sort();
    Err(Error::new(
        ErrorKind::Transient,
        format!("{} of {} machines do not answer over SSH", failed.len(), hosts.len()),
    )
    .with("machines", failed.join("; ")))
}

async fn wait_for(op: &OpContext, remote: &Remote, host: &Host, end: Instant) -> Result<()> {
    let mut pause = FIRST;
    let mut last = String::from("no answer yet");
    loop {
        let step = end.min(Instant::now() + TRY);
        let answer = tokio::time::timeout_at(step, remote.run(op, &host.alias, "true", &[])).await;
        match answer {
            Ok(Ok(Answer { outcome: Outcome::Status(0), .. })) => return Ok(()),
            Ok(Ok(answer)) => {
                last = answer.tail();
                if wrong_key(&last) {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        "the machine shows another host key than it should",
                    )
                    .with("ssh says", &last)
                    .with("mend", "make it anew with --force-deploy, or find out who answers in its place"));
                }
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => last = format!("no answer within a try; before: {last}"),
        }
        if Instant::now() + pause >= end {
            return Err(Error::new(ErrorKind::Transient, "it does not answer").with("ssh says", last));
        }
        op.sleep(pause).await?;
        pause = (pause * 3 / 2).min(LONGEST);
    }
}

/// Whether ssh refused the host's key: no waiting mends that.
fn wrong_key(said: &str) -> bool {
    said.contains("Host key verification failed") || said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED")
}

//! EC2 behind the proxy, with one fault at a counted call.
//!
//! Rules of the proxy count as well, but nobody is told at the moment at which one strikes, which is what the suite needs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::Result;
use cloud_providers_conformance::{Effect, Fault};
use fault_proxy::{Act, Answer, Behaviour, HttpFaultProxy, Match, Request, Rule, Upstream, ec2};
use tokio_util::sync::CancellationToken;

const LOST: &str = "lost reply";

/// EC2 that can be told to fail once.
pub(crate) struct Faulty {
    ec2: Arc<ec2::Ec2>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The fault and how many calls pass before it.
    fault: Option<(Fault, usize)>,
    /// Calls that hang do so until this is cancelled.
    cleared: CancellationToken,
    proxy: Weak<HttpFaultProxy>,
}

impl Faulty {
    pub(crate) fn new(ec2: Arc<ec2::Ec2>) -> Self {
        Self { ec2, state: Mutex::default() }
    }

    /// Says which proxy it is behind: only that one can break a connection.
    pub(crate) fn is_behind(&self, proxy: &Arc<HttpFaultProxy>) {
        self.state().proxy = Arc::downgrade(proxy);
    }

    pub(crate) fn inject(&self, fault: Fault) {
        let passing = fault.nth.saturating_sub(1);
        self.state().fault = Some((fault, passing));
    }

    pub(crate) fn clear(&self) {
        let mut state = self.state();
        state.fault = None;
        std::mem::take(&mut state.cleared).cancel();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and returns the fault when this is the one.
    fn strikes(&self) -> Option<Fault> {
        let mut state = self.state();
        match &mut state.fault {
            Some((_, passing)) if *passing > 0 => *passing -= 1,
            Some(_) => return state.fault.take().map(|(fault, _)| fault),
            None => {}
        }
        None
    }
}

#[async_trait::async_trait]
impl Behaviour for Faulty {
    async fn answer(&self, request: &Request, upstream: &Upstream) -> Result<Answer> {
        let Some(fault) = self.strikes() else { return self.ec2.answer(request, upstream).await };
        let cleared = self.state().cleared.clone();
        if fault.effect == Effect::Fail {
            fault.struck.cancel();
            return Ok(ec2::error(400, "AsTold", "refused by the test"));
        }
        if fault.effect == Effect::HangBefore {
            fault.struck.cancel();
            cleared.cancelled().await;
            return Ok(ec2::error(500, "InternalError", "nobody waits for this any more"));
        }
        let answer = self.ec2.answer(request, upstream).await?;
        if fault.effect == Effect::LoseReply
            && let Some(proxy) = self.state().proxy.upgrade()
        {
            let this = Match::any().with_body(std::str::from_utf8(&request.body)?);
            proxy.add(Rule::new(LOST, this, Act::Cut).after_effect().with_times(1))?;
        }
        fault.struck.cancel();
        if fault.effect == Effect::HangAfter {
            cleared.cancelled().await;
        }
        Ok(answer)
    }
}

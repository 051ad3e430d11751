//! Waits until a machine has an address, and says why when it will never have one.

use std::{net::IpAddr, sync::Arc, time::Duration};

use cloud_providers::{Error, ErrorKind, OpContext, Result, Retry, UserData};
use tokio::time::Instant;
use uuid::Uuid;
use virt::{connect::Connect, sys};

use crate::{
    client::{CallResult, Client, Console, Interface, interfaces, step},
    config::AddressSource,
    look,
};

/// How often addresses are asked for at first.
const POLL: Duration = Duration::from_millis(200);
/// How often later. Each question costs both ends some hundred microseconds, and a machine that takes long to boot
/// has nothing to say most of the time.
const LATE_POLL: Duration = Duration::from_millis(400);
/// From when on that is.
const LATE: Duration = Duration::from_secs(5);
/// How often the state, and the slower sources while the first one knows nothing, are asked.
const SLOW_POLL: Duration = Duration::from_secs(1);
/// How long the IPv4 address of each interface may come after the first address of all.
const GRACE: Duration = Duration::from_secs(3);
/// How many lines of a console go into an error.
const LINES: usize = 12;
/// What is said of a machine whose start libvirt gave up.
const DID_NOT_START: &str = "did not start";
/// A shorter line of user data is not looked for in a console: it stands in other texts as well.
const SECRET_MIN: usize = 6;

/// What one question brought.
struct Answer {
    state: sys::virDomainState,
    reason: i32,
    addresses: Vec<IpAddr>,
    /// Each interface has an IPv4 address: there is nothing better to wait for.
    complete: bool,
}

/// A machine that boots.
pub(crate) struct Boot<'a> {
    pub(crate) client: &'a Client,
    pub(crate) uuid: Uuid,
    pub(crate) source: AddressSource,
    pub(crate) limit: Duration,
    /// Not shown when the console has it.
    pub(crate) user_data: &'a UserData,
    pub(crate) console: Option<Console>,
}

impl Boot<'_> {
    /// Returns the machine's addresses once it has one.
    ///
    /// # Errors
    ///
    /// The machine stopped, or has no address in time; with the last lines of its console.
    pub(crate) async fn addresses(&self, ctx: &OpContext) -> Result<Vec<IpAddr>> {
        let start = Instant::now();
        let macs = Arc::new(self.macs(ctx).await?);
        let mut slow_at = start;
        let mut some_since = None;
        loop {
            let slow = Instant::now() >= slow_at;
            if slow {
                slow_at = Instant::now() + SLOW_POLL;
            }
            let answer = match self.ask(ctx, macs.clone(), slow).await {
                Ok(answer) => answer,
                // One failed question is no reason to give a machine up.
                Err(error)
                    if matches!(error.retry(), Retry::After { .. }) && start.elapsed() < self.limit =>
                {
                    ctx.sleep(POLL).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(why) = stopped(answer.state, answer.reason) {
                // A hypervisor that was killed while it started says nothing of the request.
                let kind = if why == DID_NOT_START { ErrorKind::Transient } else { ErrorKind::Internal };
                return Err(self.failed(kind, format!("the machine {why} while it booted")));
            }
            if answer.complete {
                return Ok(answer.addresses);
            }
            if !answer.addresses.is_empty() {
                let since = *some_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= GRACE || start.elapsed() + POLL > self.limit {
                    return Ok(answer.addresses);
                }
            }
            if start.elapsed() + POLL > self.limit {
                return Err(self
                    .failed(ErrorKind::Transient, "the machine has no address in time".into())
                    .with("waited", format!("{:?}", self.limit))
                    .with("set", "LIBVIRT_BOOT_TIMEOUT"));
            }
            ctx.sleep(if start.elapsed() < LATE { POLL } else { LATE_POLL }).await?;
        }
    }

    /// Returns the hardware addresses of the machine's interfaces, in the order of its definition.
    async fn macs(&self, ctx: &OpContext) -> Result<Vec<String>> {
        let uuid = self.uuid;
        let ask = step("virDomainGetXMLDesc", "cannot read the machine's definition");
        let facts = self.client.read(ctx, ask, move |c| look::definition(c, uuid)).await?.ok_or_else(gone)?;
        Ok(facts.nics.into_iter().map(|n| n.mac).filter(|m| !m.is_empty()).collect())
    }

    async fn ask(&self, ctx: &OpContext, macs: Arc<Vec<String>>, slow: bool) -> Result<Answer> {
        let (uuid, source) = (self.uuid, self.source);
        let ask = step("virDomainInterfaceAddresses", "cannot ask for the machine's state and address");
        let answer = self.client.read(ctx, ask, move |c| answer(c, uuid, source, slow, &macs)).await?;
        answer.ok_or_else(gone)
    }

    /// Makes the error of a failed boot.
    fn failed(&self, kind: ErrorKind, message: String) -> Error {
        let error = Error::new(kind, message).with_operation("boot").with("domain", self.uuid);
        let lines = self.console.as_ref().map(|c| c.tail(LINES)).unwrap_or_default();
        if lines.is_empty() {
            return error.with("console", "silent");
        }
        error.with("last lines of the console", without_user_data(lines, self.user_data).join(" | "))
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::NotFound, "the machine was removed while it booted")
}

fn answer(
    connection: &Connect,
    uuid: Uuid,
    source: AddressSource,
    slow: bool,
    macs: &[String],
) -> CallResult<Option<Answer>> {
    let Some(domain) = look::domain(connection, uuid)? else { return Ok(None) };
    let (mut state, mut reason) = if slow { domain.get_state()? } else { (sys::VIR_DOMAIN_RUNNING, 0) };
    let mut found: Vec<Interface> = Vec::new();
    if stopped(state, reason).is_none() {
        for (asked, number, is_slow) in [
            (AddressSource::Lease, sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE, false),
            (AddressSource::Agent, sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT, true),
            (AddressSource::Arp, sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP, true),
        ] {
            let alone = source == asked;
            if !alone && (source != AddressSource::Auto || (is_slow && !slow)) {
                continue;
            }
            // A source that does not work, such as an agent that has not started, is one that knows nothing.
            found = interfaces(&domain, number).unwrap_or_default();
            if !look::usable_addresses(&found, macs).is_empty() {
                break;
            }
        }
    }
    let addresses = look::usable_addresses(&found, macs);
    if !slow && !addresses.is_empty() {
        // A machine that was paused keeps its lease: an address alone is no sign of life.
        (state, reason) = domain.get_state()?;
    }
    let complete = look::all_have_ipv4(&found, macs);
    Ok(Some(Answer { state, reason, addresses, complete }))
}

/// Says in which way a machine has stopped, if it has.
pub(crate) fn stopped(state: sys::virDomainState, reason: i32) -> Option<&'static str> {
    let is = |wanted: u32| u32::try_from(reason).is_ok_and(|r| r == wanted);
    match state {
        sys::VIR_DOMAIN_PAUSED if is(sys::VIR_DOMAIN_PAUSED_STARTING_UP) => None,
        sys::VIR_DOMAIN_PAUSED if is(sys::VIR_DOMAIN_PAUSED_USER) => Some("was paused by somebody"),
        sys::VIR_DOMAIN_PAUSED if is(sys::VIR_DOMAIN_PAUSED_IOERROR) => {
            Some("was paused by an error of its disk, which a full storage pool gives")
        }
        // What QEMU reports as an internal error, such as an instruction that the host's KVM cannot run.
        sys::VIR_DOMAIN_PAUSED => Some("was paused by its hypervisor"),
        sys::VIR_DOMAIN_SHUTDOWN => Some("shut itself down"),
        sys::VIR_DOMAIN_SHUTOFF if is(sys::VIR_DOMAIN_SHUTOFF_CRASHED) => Some("crashed"),
        sys::VIR_DOMAIN_SHUTOFF if is(sys::VIR_DOMAIN_SHUTOFF_DESTROYED) => {
            Some("was switched off by somebody")
        }
        sys::VIR_DOMAIN_SHUTOFF if is(sys::VIR_DOMAIN_SHUTOFF_FAILED) => Some(DID_NOT_START),
        sys::VIR_DOMAIN_SHUTOFF => Some("shut itself down"),
        sys::VIR_DOMAIN_CRASHED => Some("crashed"),
        sys::VIR_DOMAIN_PMSUSPENDED => Some("went to sleep"),
        _ => None,
    }
}

/// Replaces lines that hold a line of the user data, which a guest may print.
fn without_user_data(lines: Vec<String>, user_data: &UserData) -> Vec<String> {
    let text = String::from_utf8_lossy(user_data.as_bytes());
    let secrets: Vec<&str> = text.lines().map(str::trim).filter(|l| l.len() >= SECRET_MIN).collect();
    let shown = |line: String| {
        let hit =
            secrets.iter().any(|s| line.contains(s) || (line.len() >= SECRET_MIN && s.contains(&*line)));
        if hit { "[redacted]".to_owned() } else { line }
    };
    lines.into_iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_on_a_console_is_not_shown() {
        let data = UserData::new("#cloud-config\n  content: |\n    -----BEGIN KEY\n    c2VjcmV0\n");
        let lines =
            ["booting", "got c2VjcmV0 here", "-----BEGIN", "content: |", "ok"].map(str::to_owned).to_vec();
        let shown = without_user_data(lines, &data);
        assert_eq!(shown, ["booting", "[redacted]", "[redacted]", "[redacted]", "ok"]);
        assert_eq!(without_user_data(vec!["abc".into()], &UserData::default()), ["abc"]);
    }

    #[test]
    fn every_way_to_stop_ends_the_wait() {
        for state in [sys::VIR_DOMAIN_SHUTOFF, sys::VIR_DOMAIN_CRASHED, sys::VIR_DOMAIN_SHUTDOWN] {
            assert!(stopped(state, 0).is_some(), "{state}");
        }
        assert!(stopped(sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_USER as i32).is_some());
        assert!(stopped(sys::VIR_DOMAIN_PAUSED, 0).is_some());
        assert!(stopped(sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_STARTING_UP as i32).is_none());
        assert!(stopped(sys::VIR_DOMAIN_RUNNING, 1).is_none());
    }
}

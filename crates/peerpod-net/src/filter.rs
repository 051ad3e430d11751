//! The packet filter rules of a tunnel, in the namespace its packets travel in.
//!
//! Two keep its packets out of connection tracking: every tunnel packet comes from another source port, so each flow
//! inside would take an entry of the node's tracking table, and address translation could rewrite the outer header.
//! The third drops packets with the tunnel's id that its peer did not send: the kernel's device takes them from
//! anyone. It stands where packets have been put together again, so fragments do not get around it.

use std::net::IpAddr;
use std::sync::Mutex;

use nix::errno::Errno;

use crate::netlink::{NftSocket, NftTable, NlError, Rule, RuleTarget};
use crate::{Family, NetError, TeardownReport};

/// Another process may change the table between reading and changing it.
const ATTEMPTS: usize = 20;

/// One change at a time in this process; others are noticed by the kernel and tried again.
static CHANGES: Mutex<()> = Mutex::new(());

fn table(family: Family) -> NftTable {
    NftTable { name: "peerpod", family }
}

fn comment(vni: u32) -> String {
    format!("peerpod [vni:{vni}]")
}

/// Sets the rules of a tunnel, in place of earlier rules of the same tunnel.
///
/// Packets from elsewhere than `admitted` are dropped; where that is empty nobody knows where the peer's come from, and
/// none are.
pub(crate) fn ensure(
    nft: &mut NftSocket,
    vni: u32,
    port: u16,
    peer: IpAddr,
    admitted: &[IpAddr],
) -> Result<(), NetError> {
    let step =
        || format!("cannot set the packet filter rules of tunnel {vni} on UDP port {port} with {peer}");
    for family in Family::BOTH {
        if family == Family::of(peer) {
            let comment = comment(vni);
            let target = RuleTarget { peer, admitted, port, vni, comment: &comment };
            change(|| {
                let earlier = of_tunnel(nft, family, vni, port)?;
                nft.set_rules(table(family), &target, &earlier)
            })
            .map_err(|e| e.at(step()))?;
        } else {
            // Of a peer that the tunnel had before. Where there are none, there is no table to look after either.
            let earlier = change(|| of_tunnel(nft, family, vni, port)).map_err(|e| e.at(step()))?;
            if !earlier.is_empty() {
                remove_family(nft, family, vni, port).map_err(|e| e.at(step()))?;
            }
        }
    }
    Ok(())
}

/// Removes the rules of a tunnel, and table and chains with the last rule; says how many rules there were.
pub(crate) fn remove(nft: &mut NftSocket, vni: u32, port: u16) -> Result<usize, NetError> {
    let mut removed = 0;
    for family in Family::BOTH {
        removed += remove_family(nft, family, vni, port)
            .map_err(|e| e.at(format!("cannot remove the {family} packet filter rules of tunnel {vni}")))?;
    }
    Ok(removed)
}

fn remove_family(nft: &mut NftSocket, family: Family, vni: u32, port: u16) -> Result<usize, NlError> {
    change(|| {
        let rules = of_tunnel(nft, family, vni, port)?;
        if !rules.is_empty() {
            nft.delete_rules(table(family), &rules)?;
        }
        if nft.rules(table(family))?.is_empty() {
            nft.delete_empty_table(table(family))?;
        }
        Ok(rules.len())
    })
}

/// The same as a step of a teardown.
pub(crate) fn remove_reporting(vni: u32, port: u16, report: &mut TeardownReport) {
    match NftSocket::open().and_then(|mut nft| remove(&mut nft, vni, port)) {
        Ok(0) => {}
        Ok(count) => report.note(format!("{count} packet filter rules of tunnel {vni}")),
        Err(e) => report.problem(e),
    }
}

fn of_tunnel(nft: &mut NftSocket, family: Family, vni: u32, port: u16) -> Result<Vec<Rule>, NlError> {
    let ours = comment(vni);
    let mut rules = nft.rules(table(family))?;
    // Ids are counted per port, so another daemon may use the same id on another port.
    rules.retain(|rule| rule.comment == ours && rule.has_port(port));
    Ok(rules)
}

fn change<T>(mut attempt: impl FnMut() -> Result<T, NlError>) -> Result<T, NlError> {
    let _one_at_a_time = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt() {
            // A rule or chain of the picture we had is gone, or the rule set changed meanwhile.
            Err(e)
                if tries < ATTEMPTS
                    && matches!(
                        e.errno(),
                        Some(Errno::ENOENT | Errno::EEXIST | Errno::EBUSY | Errno::EAGAIN | Errno::EINTR)
                    ) => {}
            other => return other,
        }
    }
}

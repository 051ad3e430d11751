//! Keeps tunnel packets out of connection tracking.
//!
//! Every tunnel packet comes from another source port, so each flow inside would take an entry of the node's
//! tracking table, and address translation could rewrite the outer header.

use std::net::Ipv4Addr;
use std::sync::Mutex;

use nix::errno::Errno;

use crate::netlink::{NftSocket, NftTable, NlError, Rule};
use crate::{NetError, TeardownReport};

const TABLE: NftTable = NftTable("peerpod");
/// Another process may change the table between reading and changing it.
const ATTEMPTS: usize = 20;

/// One change at a time in this process; others are noticed by the kernel and tried again.
static CHANGES: Mutex<()> = Mutex::new(());

fn comment(vni: u32) -> String {
    format!("peerpod [vni:{vni}]")
}

/// Exempts the traffic of a tunnel, in place of earlier rules of the same tunnel.
pub(crate) fn ensure(nft: &mut NftSocket, vni: u32, port: u16, peer: Ipv4Addr) -> Result<(), NetError> {
    change(|| {
        let earlier = of_tunnel(nft, vni, port)?;
        nft.exempt(TABLE, peer, port, &comment(vni), &earlier)
    })
    .map_err(|e| e.at(format!("cannot exempt UDP port {port} of {peer} from connection tracking")))
}

/// Removes the rules of a tunnel, and table and chains with the last rule; says how many rules there were.
pub(crate) fn remove(nft: &mut NftSocket, vni: u32, port: u16) -> Result<usize, NetError> {
    change(|| {
        let rules = of_tunnel(nft, vni, port)?;
        if !rules.is_empty() {
            nft.delete_rules(TABLE, &rules)?;
        }
        if nft.rules(TABLE)?.is_empty() {
            nft.delete_empty_table(TABLE)?;
        }
        Ok(rules.len())
    })
    .map_err(|e| e.at(format!("cannot remove the connection tracking rules of tunnel {vni}")))
}

/// The same as a step of a teardown.
pub(crate) fn remove_reporting(vni: u32, port: u16, report: &mut TeardownReport) {
    match NftSocket::open().and_then(|mut nft| remove(&mut nft, vni, port)) {
        Ok(0) => {}
        Ok(count) => report.note(format!("{count} connection tracking rules of tunnel {vni}")),
        Err(e) => report.problem(e),
    }
}

fn of_tunnel(nft: &mut NftSocket, vni: u32, port: u16) -> Result<Vec<Rule>, NlError> {
    let ours = comment(vni);
    let mut rules = nft.rules(TABLE)?;
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

//! The little of nf_tables that a tunnel needs: one table for each family of addresses, its chains, its rules.
//!
//! Changes travel in batches that the kernel applies whole or not at all.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_NONREC, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::NlError;
use super::attr::{self, Attributes};
use super::socket::{Transport, frame, messages};
use crate::{Family, NetError, NetErrorKind};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;

const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
/// Length of the header between netlink's own and the attributes.
const GENERIC: usize = 4;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const META_DESTINATION: u16 = 1;
const META_KEY: u16 = 2;
const META_L4PROTO: u32 = 16;
const PAYLOAD_DESTINATION: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const COMPARE_SOURCE: u16 = 1;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_DIFFERENT: u32 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_DROP: u32 = 0;
const IMMEDIATE_DESTINATION: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
/// The user data type that tools print as the rule's comment.
const USERDATA_COMMENT: u8 = 0;

/// Before connection tracking, where a packet can still be exempted from it.
const PRIORITY_RAW: i32 = -300;
const UDP_DESTINATION_OFFSET: u32 = 2;
/// The tunnel id stands behind the UDP header and a word of flags.
const TUNNEL_ID_OFFSET: u32 = 12;
const TUNNEL_ID_LENGTH: u32 = 3;
const PROTOCOL_UDP: u8 = 17;

/// A chain of the table: where it hooks in, which address of a packet its rules look at, and what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chain {
    /// Packets this host sends: those to the peer are exempted from connection tracking.
    Output,
    /// Packets that arrive: those of the peer are exempted from connection tracking.
    Prerouting,
    /// Packets for this host, put together again where they came in fragments: those of the tunnel that are not from
    /// the peer are dropped.
    Input,
}

impl Chain {
    const ALL: [Self; 3] = [Self::Output, Self::Prerouting, Self::Input];

    fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
        }
    }

    fn hook(self) -> u32 {
        match self {
            Self::Output => 3,
            Self::Prerouting => 0,
            Self::Input => 1,
        }
    }

    /// Where in the IP header the peer's address stands.
    fn peer_offset(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Output, Family::V4) => 16,
            (Self::Prerouting | Self::Input, Family::V4) => 12,
            (Self::Output, Family::V6) => 24,
            (Self::Prerouting | Self::Input, Family::V6) => 8,
        }
    }
}

/// The table whose rules are read and changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NftTable {
    pub(crate) name: &'static str,
    pub(crate) family: Family,
}

impl NftTable {
    fn family(self) -> u8 {
        match self.family {
            Family::V4 => FAMILY_IPV4,
            Family::V6 => FAMILY_IPV6,
        }
    }
}

/// The tunnel that rules are about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RuleTarget<'a> {
    pub(crate) peer: IpAddr,
    /// Where packets of the tunnel may come from; without any it is not looked at.
    pub(crate) admitted: &'a [IpAddr],
    pub(crate) port: u16,
    pub(crate) vni: u32,
    pub(crate) comment: &'a str,
}

/// A rule as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) chain: String,
    handle: u64,
    pub(crate) comment: String,
    /// The values that the rule compares packets with, in network order.
    compared: Vec<Vec<u8>>,
}

impl Rule {
    /// Whether the rule compares with this UDP port.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.compared.iter().any(|value| value[..] == port.to_be_bytes())
    }

    /// Whether the rule compares with this address.
    #[cfg(test)]
    pub(crate) fn has_peer(&self, peer: IpAddr) -> bool {
        self.compared.iter().any(|value| *value == octets(peer))
    }
}

/// A socket for the packet filter of one namespace.
pub(crate) struct NftSocket {
    transport: Transport,
}

impl NftSocket {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetError> {
        let transport = Transport::open(NETLINK_NETFILTER).map_err(|e| {
            NetError::new(
                NetErrorKind::System,
                "cannot open an nf_tables socket (a kernel with CONFIG_NF_TABLES is needed)",
            )
            .with_source(e)
        })?;
        Ok(Self { transport })
    }

    /// All rules of the table; none when there is no such table.
    pub(crate) fn rules(&mut self, table: NftTable) -> Result<Vec<Rule>, NlError> {
        let mut filter = Attributes::default();
        filter.text(RULE_TABLE, table.name);
        let frames = match self.transport.dump(message_type(GET_RULE), &payload(table.family(), 0, filter)) {
            Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => {
                return Ok(Vec::new());
            }
            other => other?,
        };
        Ok(frames
            .iter()
            .filter(|frame| frame.payload.first() == Some(&table.family()))
            .filter_map(|frame| frame.payload.get(GENERIC..))
            // Kernels before 4.9 do not filter by table.
            .filter(|attributes| attr::find_text(attributes, RULE_TABLE) == Some(table.name))
            .filter_map(read_rule)
            .collect())
    }

    /// Makes table and chains where they are missing, adds the rule of each chain, and removes `replaced`, all at once.
    pub(crate) fn set_rules(
        &mut self,
        table: NftTable,
        target: &RuleTarget<'_>,
        replaced: &[Rule],
    ) -> Result<(), NlError> {
        let mut batch = vec![(NEW_TABLE, NLM_F_CREATE, named(TABLE_NAME, table.name))];
        for chain in Chain::ALL {
            batch.push((NEW_CHAIN, NLM_F_CREATE, new_chain(table, chain)));
        }
        batch.extend(replaced.iter().map(|rule| delete_rule(table, rule)));
        for chain in Chain::ALL.into_iter().filter(|c| *c != Chain::Input || !target.admitted.is_empty()) {
            batch.push((NEW_RULE, NLM_F_CREATE, new_rule(table, chain, target)));
        }
        self.commit(table, batch)
    }

    /// Deletes rules, all at once.
    pub(crate) fn delete_rules(&mut self, table: NftTable, rules: &[Rule]) -> Result<(), NlError> {
        self.commit(table, rules.iter().map(|rule| delete_rule(table, rule)).collect())
    }

    /// Deletes the table with its chains unless a rule is left in them.
    pub(crate) fn delete_empty_table(&mut self, table: NftTable) -> Result<(), NlError> {
        let mut batch = Vec::new();
        for chain in Chain::ALL {
            let mut attributes = named(CHAIN_TABLE, table.name);
            attributes.text(CHAIN_NAME, chain.name());
            // Not recursive: a chain in which another process just put a rule stays.
            batch.push((DELETE_CHAIN, NLM_F_NONREC, attributes));
        }
        batch.push((DELETE_TABLE, NLM_F_NONREC, named(TABLE_NAME, table.name)));
        match self.commit(table, batch) {
            // In use again, not there, or of a family that this kernel does not have.
            Err(e)
                if matches!(
                    e.errno(),
                    Some(Errno::EBUSY | Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Sends a batch and waits for the verdict on each of its messages; the first refusal is returned.
    fn commit(&mut self, table: NftTable, batch: Vec<(u16, u16, Attributes)>) -> Result<(), NlError> {
        if batch.is_empty() {
            return Ok(());
        }
        let begin = self.transport.next_sequence();
        let mut bytes =
            frame(BATCH_BEGIN, NLM_F_REQUEST, begin, &payload(0, SUBSYSTEM, Attributes::default()));
        let mut open = Vec::new();
        for (kind, flags, attributes) in batch {
            let sequence = self.transport.next_sequence();
            open.push(sequence);
            let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
            bytes.extend(frame(message_type(kind), flags, sequence, &payload(table.family(), 0, attributes)));
        }
        let end = self.transport.next_sequence();
        bytes.extend(frame(BATCH_END, NLM_F_REQUEST, end, &payload(0, SUBSYSTEM, Attributes::default())));
        self.transport.send(&bytes)?;

        let mut refusal = None;
        while !open.is_empty() {
            for message in messages(self.transport.receive()?) {
                let message = message?;
                let verdict = message.status();
                if message.sequence == begin || message.sequence == end {
                    // The batch as a whole was refused, for want of rights or memory.
                    verdict?;
                } else if let Some(at) = open.iter().position(|sequence| *sequence == message.sequence) {
                    open.remove(at);
                    if let Err(e) = verdict {
                        refusal.get_or_insert(e);
                    }
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }
}

fn message_type(kind: u16) -> u16 {
    SUBSYSTEM << 8 | kind
}

/// The generic netfilter header followed by attributes.
fn payload(family: u8, resource: u16, attributes: Attributes) -> Vec<u8> {
    let mut bytes = vec![family, 0];
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend(attributes.into_bytes());
    bytes
}

fn named(kind: u16, name: &str) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.text(kind, name);
    attributes
}

fn new_chain(table: NftTable, chain: Chain) -> Attributes {
    let mut attributes = named(CHAIN_TABLE, table.name);
    attributes
        .text(CHAIN_NAME, chain.name())
        .nest(CHAIN_HOOK, |hook| {
            hook.be32(HOOK_NUMBER, chain.hook());
            hook.bytes(HOOK_PRIORITY, &PRIORITY_RAW.to_be_bytes());
        })
        .text(CHAIN_TYPE, "filter");
    attributes
}

fn new_rule(table: NftTable, chain: Chain, target: &RuleTarget<'_>) -> Attributes {
    let mut attributes = named(RULE_TABLE, table.name);
    let peer = octets(target.peer);
    let length = u32::try_from(peer.len()).expect("an address is short");
    attributes
        .text(RULE_CHAIN, chain.name())
        .nest(RULE_EXPRESSIONS, |list| {
            expression(list, "meta", |meta| {
                meta.be32(META_DESTINATION, REGISTER).be32(META_KEY, META_L4PROTO);
            });
            compare(list, COMPARE_EQUAL, &[PROTOCOL_UDP]);
            load(list, BASE_TRANSPORT, UDP_DESTINATION_OFFSET, 2);
            compare(list, COMPARE_EQUAL, &target.port.to_be_bytes());
            if chain == Chain::Input {
                load(list, BASE_TRANSPORT, TUNNEL_ID_OFFSET, TUNNEL_ID_LENGTH);
                compare(list, COMPARE_EQUAL, &target.vni.to_be_bytes()[1..]);
            }
            load(list, BASE_NETWORK, chain.peer_offset(table.family), length);
            match chain {
                Chain::Output | Chain::Prerouting => {
                    compare(list, COMPARE_EQUAL, &peer);
                    expression(list, "notrack", |_| {});
                }
                Chain::Input => {
                    for address in target.admitted {
                        compare(list, COMPARE_DIFFERENT, &octets(*address));
                    }
                    // Tells the operator how many there were.
                    expression(list, "counter", |_| {});
                    drop_packet(list);
                }
            }
        })
        .bytes(RULE_USERDATA, &comment_data(target.comment));
    attributes
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn delete_rule(table: NftTable, rule: &Rule) -> (u16, u16, Attributes) {
    let mut attributes = named(RULE_TABLE, table.name);
    attributes.text(RULE_CHAIN, &rule.chain).be64(RULE_HANDLE, rule.handle);
    (DELETE_RULE, 0, attributes)
}

fn expression(list: &mut Attributes, name: &str, fill: impl FnOnce(&mut Attributes)) {
    list.nest(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, fill);
    });
}

fn load(list: &mut Attributes, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |payload| {
        payload
            .be32(PAYLOAD_DESTINATION, REGISTER)
            .be32(PAYLOAD_BASE, base)
            .be32(PAYLOAD_OFFSET, offset)
            .be32(PAYLOAD_LENGTH, length);
    });
}

fn compare(list: &mut Attributes, operation: u32, value: &[u8]) {
    expression(list, "cmp", |compare| {
        compare.be32(COMPARE_SOURCE, REGISTER).be32(COMPARE_OPERATION, operation).nest(
            COMPARE_DATA,
            |data| {
                data.bytes(DATA_VALUE, value);
            },
        );
    });
}

fn drop_packet(list: &mut Attributes) {
    expression(list, "immediate", |immediate| {
        immediate.be32(IMMEDIATE_DESTINATION, VERDICT_REGISTER).nest(IMMEDIATE_DATA, |data| {
            data.nest(DATA_VERDICT, |verdict| {
                verdict.be32(VERDICT_CODE, VERDICT_DROP);
            });
        });
    });
}

fn comment_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("a comment of ours is short");
    let mut data = vec![USERDATA_COMMENT, length];
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    data
}

fn read_rule(attributes: &[u8]) -> Option<Rule> {
    let handle = attr::find(attributes, RULE_HANDLE)?.first_chunk::<8>()?;
    let expressions = attr::find(attributes, RULE_EXPRESSIONS).unwrap_or_default();
    Some(Rule {
        chain: attr::find_text(attributes, RULE_CHAIN)?.to_owned(),
        handle: u64::from_be_bytes(*handle),
        comment: attr::find(attributes, RULE_USERDATA).and_then(read_comment).unwrap_or_default(),
        compared: attr::iterate(expressions)
            .filter(|(_, element)| attr::find_text(element, EXPRESSION_NAME) == Some("cmp"))
            .filter_map(|(_, element)| {
                let data = attr::find(attr::find(element, EXPRESSION_DATA)?, COMPARE_DATA)?;
                attr::find(data, DATA_VALUE).map(<[u8]>::to_vec)
            })
            .collect(),
    })
}

fn read_comment(mut data: &[u8]) -> Option<String> {
    loop {
        let [kind, length, rest @ ..] = data else { return None };
        let value = rest.get(..usize::from(*length))?;
        if *kind == USERDATA_COMMENT {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        data = &rest[usize::from(*length)..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_back_as_it_was_written() {
        let peer = IpAddr::from([192, 0, 2, 7]);
        let target =
            RuleTarget { peer, admitted: &[peer], port: 4789, vni: 555_000, comment: "peerpod [vni:555000]" };
        let table = NftTable { name: "t", family: Family::V4 };
        let mut attributes = new_rule(table, Chain::Prerouting, &target).into_bytes();
        let mut handle = Attributes::default();
        handle.be64(RULE_HANDLE, 5);
        attributes.extend(handle.into_bytes());
        let rule = read_rule(&attributes).unwrap();
        assert_eq!((rule.chain.as_str(), rule.handle), ("prerouting", 5));
        assert_eq!(rule.comment, "peerpod [vni:555000]");
        assert!(rule.has_port(4789) && !rule.has_port(4790));
        assert!(rule.has_peer(peer) && !rule.has_peer(IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn user_data_of_other_tools_is_no_comment() {
        assert_eq!(read_comment(&[]), None);
        assert_eq!(read_comment(&[1, 4, 0, 0, 0, 0]), None);
        assert_eq!(read_comment(&[0, 200, b'a']), None);
        assert_eq!(read_comment(&[1, 1, 9, 0, 2, b'x', 0]).as_deref(), Some("x"));
    }
}

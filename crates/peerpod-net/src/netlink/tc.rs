//! Traffic control: everything that arrives on one interface leaves by another.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use nix::errno::Errno;
use nix::libc::{RTM_DELQDISC, RTM_GETTFILTER, RTM_NEWQDISC, RTM_NEWTFILTER};

use super::{NlError, RouteSocket};

const INGRESS: &str = "ingress";
/// The handle of every ingress queueing discipline; filters name it as their parent.
const INGRESS_HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// All protocols.
const ETH_P_ALL: u16 = 3;

impl RouteSocket {
    /// Sends everything that arrives on `from` out of `to`, in place of any earlier ingress rule of `from`.
    pub(crate) fn redirect(&mut self, from: u32, to: u32) -> Result<(), NlError> {
        self.remove_ingress(from)?;
        let mut qdisc = ingress_of(from);
        qdisc.attributes.push(TcAttribute::Kind(INGRESS.into()));
        self.ask(RTM_NEWQDISC, &qdisc, NLM_F_CREATE | NLM_F_EXCL)?;
        let filter = redirect_filter(from, to);
        self.ask(RTM_NEWTFILTER, &filter, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Removes the ingress queueing discipline of an interface and with it its filters; says whether there was one.
    pub(crate) fn remove_ingress(&mut self, link: u32) -> Result<bool, NlError> {
        let mut qdisc = ingress_of(link);
        qdisc.attributes.push(TcAttribute::Kind(INGRESS.into()));
        match self.ask(RTM_DELQDISC, &qdisc, 0) {
            Ok(_) => Ok(true),
            // EINVAL: the ingress hook is held by another kind, clsact, which is not ours.
            Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The interfaces to which a link's ingress filters redirect; 0 stands for one that is gone.
    pub(crate) fn redirect_targets(&mut self, link: u32) -> Result<Vec<u32>, NlError> {
        let mut query = TcMessage::with_index(index(link));
        query.header.parent = INGRESS_HANDLE;
        let answer = match self.dump(RTM_GETTFILTER, &query) {
            Ok(answer) => answer,
            // No ingress hook, or the interface went away.
            Err(e) if matches!(e.errno(), Some(Errno::EINVAL | Errno::ENOENT | Errno::ENODEV)) => {
                return Ok(Vec::new());
            }
            Err(e) => return Err(e),
        };
        Ok(answer.iter().flat_map(targets).collect())
    }
}

fn index(link: u32) -> i32 {
    i32::try_from(link).expect("interface indexes are positive 31-bit numbers")
}

fn ingress_of(link: u32) -> TcMessage {
    let mut qdisc = TcMessage::with_index(index(link));
    qdisc.header.parent = TcHandle::INGRESS;
    qdisc.header.handle = INGRESS_HANDLE;
    qdisc
}

fn redirect_filter(from: u32, to: u32) -> TcMessage {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    // One key without a mask matches every packet.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut filter = TcMessage::with_index(index(from));
    filter.header.parent = INGRESS_HANDLE;
    filter.header.info = u32::from(ETH_P_ALL.to_be());
    filter.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.into()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    filter
}

fn targets(filter: &TcMessage) -> Vec<u32> {
    let mut found = Vec::new();
    for attribute in &filter.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            let TcOption::U32(TcFilterU32Option::Action(actions)) = option else { continue };
            for attribute in actions.iter().flat_map(|action| &action.attributes) {
                let TcActionAttribute::Options(options) = attribute else { continue };
                for option in options {
                    if let TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) = option
                        && mirror.eaction == TcMirrorActionType::EgressRedir
                    {
                        found.push(mirror.ifindex);
                    }
                }
            }
        }
    }
    found
}

//! A small synchronous client of the kernel's route netlink.
//!
//! The work of a creation runs on a thread that changes its own namespaces; such a thread may start no further
//! threads, so there is no async runtime on it.

use std::io;

use cloud_providers::Result;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::io_error;

/// How often a dump is taken again after the kernel said that it changed meanwhile.
const DUMP_TRIES: usize = 20;
/// More than the kernel ever puts into one datagram of a dump.
const BUFFER: usize = 64 << 10;

/// A socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|e| io_error("cannot open a netlink socket", e))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Makes something that must not be there yet.
    pub(crate) fn create(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Changes or deletes something.
    pub(crate) fn change(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    /// Asks for one thing.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK)
    }

    /// Asks for everything of a kind; taken again when it changed while the kernel listed it.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut last = Err(io::Error::from(io::ErrorKind::Interrupted));
        for _ in 0..DUMP_TRIES {
            last = self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            match &last {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        last
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;

        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let length = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            let mut rest = &self.buffer[..length];
            while rest.len() >= 16 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if length < 16 || length > rest.len() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "netlink message of a wrong length",
                    ));
                }
                let parsed = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]);
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
                // A link of a kind that the decoder does not know is none of ours.
                let Ok(parsed) = parsed else { continue };
                if parsed.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= parsed.header.flags & NLM_F_DUMP_INTR != 0;
                match parsed.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        if interrupted {
                            return Err(io::Error::from(io::ErrorKind::Interrupted));
                        }
                        return Ok(answers);
                    }
                    NetlinkPayload::Overrun(_) => return Err(io::Error::from(io::ErrorKind::Interrupted)),
                    _ => {}
                }
            }
        }
    }
}

/// Returns whether the kernel said that the thing is not there.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(nix::errno::Errno::from_raw),
        Some(nix::errno::Errno::ENODEV | nix::errno::Errno::ENOENT)
    )
}

//! The transport: one request at a time, dumps repeated when the kernel says they were interrupted.

use std::fmt;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, Parseable,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::attr;
use crate::{NetError, NetErrorKind};

/// The kernel answers at once; this only keeps a lost answer from hanging a thread for ever.
const ANSWER_WITHIN: i64 = 10;
/// A table that changes without pause is read this often before the read counts as failed.
const DUMP_ATTEMPTS: usize = 50;
/// Larger than any datagram the kernel sends in answer.
const BUFFER: usize = 256 * 1024;
const HEADER: usize = 16;
const EXTENDED_ACK_MESSAGE: u16 = 1;

/// Why a netlink request failed.
#[derive(Debug)]
pub(crate) enum NlError {
    /// The kernel refused, with its own words where it gave some.
    Kernel { errno: Errno, hint: Option<String> },
    /// The socket failed.
    Io(io::Error),
    /// The answer could not be read.
    Decode(String),
}

impl NlError {
    /// The kernel's error number, if it was the kernel that refused.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Io(_) | Self::Decode(_) => None,
        }
    }

    /// Turns the failure into the public error, described as the step that failed.
    pub(crate) fn at(self, step: impl Into<String>) -> NetError {
        NetError::new(NetErrorKind::Kernel, step).with_source(self)
    }
}

impl fmt::Display for NlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { errno, hint: Some(hint) } => write!(f, "{errno} ({hint})"),
            Self::Kernel { errno, hint: None } => write!(f, "{errno}"),
            Self::Io(error) => write!(f, "netlink socket: {error}"),
            Self::Decode(what) => write!(f, "netlink answer: {what}"),
        }
    }
}

impl std::error::Error for NlError {}

impl From<io::Error> for NlError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One message of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u16,
    pub(super) payload: Vec<u8>,
}

/// A netlink socket bound to the namespace it was opened in.
pub(super) struct Transport {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Transport {
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Kernels before 4.12 know neither; they then answer without words, which is fine.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_WITHIN, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends a request and waits until it is acknowledged; returns what came before the acknowledgement.
    pub(super) fn request(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Result<Vec<Frame>, NlError> {
        let sequence = self.next_sequence();
        self.send(&frame(kind, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, payload))?;
        self.gather(sequence).map(|(frames, _)| frames)
    }

    /// Reads a whole table, again and again until no change interrupted the reading.
    pub(super) fn dump(&mut self, kind: u16, payload: &[u8]) -> Result<Vec<Frame>, NlError> {
        repeat_interrupted(|| {
            let sequence = self.next_sequence();
            self.send(&frame(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, payload))?;
            self.gather(sequence)
        })
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), NlError> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    fn gather(&mut self, sequence: u32) -> Result<(Vec<Frame>, bool), NlError> {
        let mut gather = Gather::new(sequence);
        while !gather.feed(self.receive()?)? {}
        Ok((gather.frames, gather.interrupted))
    }

    pub(super) fn receive(&mut self) -> Result<&[u8], NlError> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, 0) {
                Ok((length, from)) if from.port_number() == 0 => {
                    return Ok(&self.buffer[..length.min(self.buffer.len())]);
                }
                // Only the kernel answers; other processes may send to this socket, too.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Repeats a dump until it was not interrupted.
fn repeat_interrupted<T>(mut dump: impl FnMut() -> Result<(T, bool), NlError>) -> Result<T, NlError> {
    for _ in 0..DUMP_ATTEMPTS {
        match dump() {
            Ok((frames, false)) => return Ok(frames),
            Ok((_, true)) | Err(NlError::Kernel { errno: Errno::EINTR, .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Err(NlError::Kernel {
        errno: Errno::EINTR,
        hint: Some(format!("the table changed during each of {DUMP_ATTEMPTS} readings")),
    })
}

/// Collects the answer to one request out of the datagrams of a socket.
struct Gather {
    sequence: u32,
    frames: Vec<Frame>,
    interrupted: bool,
}

impl Gather {
    fn new(sequence: u32) -> Self {
        Self { sequence, frames: Vec::new(), interrupted: false }
    }

    /// Takes a datagram in; returns whether the answer is complete.
    fn feed(&mut self, datagram: &[u8]) -> Result<bool, NlError> {
        for message in messages(datagram) {
            let message = message?;
            // What is left of an earlier request that was given up is not ours.
            if message.sequence != self.sequence {
                continue;
            }
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_DONE | NLMSG_ERROR => return message.status().map(|()| true),
                kind => self.frames.push(Frame { kind, payload: message.payload.to_vec() }),
            }
        }
        Ok(false)
    }
}

/// A message inside a datagram.
pub(super) struct RawMessage<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

impl RawMessage<'_> {
    /// The outcome carried by an acknowledgement or the end of a dump.
    pub(super) fn status(&self) -> Result<(), NlError> {
        let code = match self.payload.first_chunk::<4>() {
            Some(code) => i32::from_ne_bytes(*code),
            // A dump may end without a status.
            None => 0,
        };
        if code == 0 {
            return Ok(());
        }
        Err(NlError::Kernel { errno: Errno::from_raw(code.saturating_neg()), hint: self.hint() })
    }

    /// The kernel's own words, which follow the copy of the refused request.
    fn hint(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let copied = self.payload.get(4..4 + HEADER)?;
        let length = u32::from_ne_bytes(*copied.first_chunk::<4>()?) as usize;
        let skip = if self.flags & NLM_F_CAPPED != 0 { HEADER } else { length.next_multiple_of(4) };
        let text = attr::find(self.payload.get(4 + skip..)?, EXTENDED_ACK_MESSAGE)?;
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    }
}

/// Splits a datagram into its messages.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<RawMessage<'_>, NlError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Some(header) = datagram.first_chunk::<HEADER>() else {
            datagram = &[];
            return Some(Err(NlError::Decode("a message ends inside its header".into())));
        };
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        let (kind, flags, sequence) = (half(4), half(6), word(8));
        let Some(payload) = datagram.get(HEADER..length) else {
            datagram = &[];
            return Some(Err(NlError::Decode(format!("a message claims {length} bytes"))));
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(RawMessage { kind, flags, sequence, payload }))
    })
}

/// Puts the header before a payload.
pub(super) fn frame(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = HEADER + payload.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend_from_slice(&u32::try_from(length).expect("a request is small").to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// A socket for links, addresses, routes, neighbours and traffic control of one namespace.
pub(crate) struct RouteSocket {
    transport: Transport,
    place: String,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's namespace; `place` names that namespace in errors.
    pub(crate) fn open(place: impl fmt::Display) -> Result<Self, NetError> {
        let transport = Transport::open(NETLINK_ROUTE).map_err(|e| {
            NetError::new(NetErrorKind::System, format!("cannot open a netlink socket in {place}"))
                .with_source(e)
        })?;
        Ok(Self { transport, place: place.to_string() })
    }

    /// The namespace this socket belongs to, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Sends a request about a link, an address or the like; returns those that the kernel tells of in answer.
    pub(super) fn ask<T: Emitable + Parseable<[u8]>>(
        &mut self,
        kind: u16,
        message: &T,
        flags: u16,
    ) -> Result<Vec<T>, NlError> {
        decode(kind, self.transport.request(kind, flags, &emit(message))?)
    }

    /// Asks for all of them.
    pub(super) fn dump<T: Emitable + Parseable<[u8]>>(
        &mut self,
        kind: u16,
        message: &T,
    ) -> Result<Vec<T>, NlError> {
        decode(kind, self.transport.dump(kind, &emit(message))?)
    }
}

fn emit(message: &impl Emitable) -> Vec<u8> {
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    payload
}

/// Reads what the kernel tells in answer to a request. Only messages of the same kind of object are read: the type for
/// any message would bring the code for all that the kernel knows.
fn decode<T: Parseable<[u8]>>(request: u16, frames: Vec<Frame>) -> Result<Vec<T>, NlError> {
    let told = frames.iter().filter(|frame| frame.kind == new_of(request));
    told.map(|frame| T::parse(&frame.payload).map_err(|e| NlError::Decode(e.to_string()))).collect()
}

/// How the kernel tells of an object: the requests about it follow in groups of four, after the one that makes it.
fn new_of(request: u16) -> u16 {
    request & !3
}

/// Hears of every change to links, IPv4 addresses and IPv4 routes of a namespace.
pub(crate) struct Watch {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Watch {
    /// Starts listening in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetError> {
        const GROUPS: [u32; 3] = [1, 5, 7];
        let listen = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            Ok(socket)
        };
        let socket = listen().map_err(|e| {
            NetError::new(NetErrorKind::System, "cannot listen for changes of the network").with_source(e)
        })?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Returns after a change, or after `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) {
        let limit = TimeVal::new(
            i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            i64::from(limit.subsec_micros()).max(1),
        );
        self.buffer.clear();
        // Whatever happens here, a timeout or notifications lost for want of room, the caller looks again.
        let _ = setsockopt(&self.socket, sockopt::ReceiveTimeout, &limit);
        let _ = self.socket.recv_from(&mut self.buffer, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        frame(kind, flags, sequence, &0i32.to_ne_bytes())
    }

    #[test]
    fn an_interrupted_dump_is_read_again() {
        let mut readings = 0;
        let frames = repeat_interrupted(|| {
            readings += 1;
            let mut gather = Gather::new(7);
            let intr = if readings < 3 { NLM_F_DUMP_INTR } else { 0 };
            assert!(!gather.feed(&message(16, intr, 7))?);
            assert!(gather.feed(&message(NLMSG_DONE, 0, 7))?);
            Ok((gather.frames, gather.interrupted))
        })
        .unwrap();
        assert_eq!((readings, frames.len()), (3, 1));
    }

    #[test]
    fn a_dump_interrupted_at_its_end_is_read_again() {
        let mut gather = Gather::new(1);
        assert!(gather.feed(&message(NLMSG_DONE, NLM_F_DUMP_INTR, 1)).unwrap());
        assert!(gather.interrupted);
    }

    #[test]
    fn a_table_that_never_rests_is_an_error_in_the_end() {
        let error = repeat_interrupted(|| Ok(((), true))).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EINTR));
        assert!(error.to_string().contains("changed during each"), "{error}");
    }

    #[test]
    fn answers_to_an_earlier_request_are_passed_over() {
        let mut gather = Gather::new(2);
        let mut datagram = message(NLMSG_DONE, 0, 1);
        datagram.extend(message(16, 0, 2));
        datagram.extend(message(NLMSG_DONE, 0, 2));
        assert!(gather.feed(&datagram).unwrap());
        assert_eq!(gather.frames.len(), 1);
    }

    #[test]
    fn cut_off_messages_are_errors() {
        let whole = message(16, 0, 1);
        for length in 1..whole.len() {
            assert!(Gather::new(1).feed(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn the_kernel_words_are_part_of_the_error() {
        let mut payload = (-17i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&frame(16, 0, 3, &[]));
        let mut words = attr::Attributes::default();
        words.bytes(EXTENDED_ACK_MESSAGE, b"name is taken\0");
        payload.extend_from_slice(&words.into_bytes());
        let datagram = frame(NLMSG_ERROR, NLM_F_ACK_TLVS | NLM_F_CAPPED, 3, &payload);
        let error = Gather::new(3).feed(&datagram).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST));
        assert!(error.to_string().contains("name is taken"), "{error}");
    }
}

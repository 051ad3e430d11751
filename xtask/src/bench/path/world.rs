//! Many sandboxes on one gateway of ours, each with a forwarder of ours.

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::chain::{Guest, register, start_gateway};
use super::place::{Place, Serving};

/// The ports below are those of the chains.
const FIRST: u16 = 100;

/// How many sandboxes are given something to do.
pub(super) const BUSY: u16 = 8;

/// Guests that a gateway can be told of.
pub(super) struct Guests<'a> {
    place: &'a Place,
    pub(super) forwarders: Vec<Serving>,
    first: u16,
    // After the forwarders, which use it.
    _agent: Serving,
}

impl<'a> Guests<'a> {
    /// Starts so many. Those that will be busy give way to all others with their agent: they stand for other machines.
    pub(super) fn start(place: &'a Place, count: u16, offset: u16) -> Result<Self> {
        let first = FIRST + offset;
        let busy = format!("busy-{first}.sock");
        let agent = place.agent(&busy, true)?;
        let mut forwarders = Vec::new();
        for index in 0..count {
            let polite = index < BUSY && count > 1;
            let number = first + index;
            let agent = if polite { &busy } else { "agent.sock" };
            forwarders.push(Guest { number, port: 21_000 + number, agent, polite }.start(place, &[])?);
        }
        Ok(Self { place, forwarders, first, _agent: agent })
    }

    /// Starts a gateway and tells it of these guests.
    pub(super) fn gateway(&self, name: &str, guests: Range<u16>) -> Result<Node<'a>> {
        let gateway = start_gateway(self.place, name)?;
        let socket = |index| self.place.path(&format!("{name}-{index}.sock"));
        let sockets: Vec<PathBuf> = guests.clone().map(socket).collect();
        let numbers = self.first + guests.start..self.first + guests.end;
        register(self.place, name, numbers.zip(sockets.iter().cloned()))?;
        Ok(Node { place: self.place, gateway, sockets })
    }
}

/// A gateway with sandboxes.
pub(super) struct Node<'a> {
    place: &'a Place,
    pub(super) gateway: Serving,
    sockets: Vec<PathBuf>,
}

impl Node<'_> {
    /// The agent socket of a sandbox.
    pub(super) fn socket(&self, index: usize) -> String {
        self.sockets[index].to_string_lossy().into_owned()
    }

    /// Opens what a shim keeps open for each sandbox: two connections. Each makes a call, so that it is served.
    pub(super) fn shims(&self) -> Result<Vec<UnixStream>> {
        let mut shims = Vec::new();
        for (index, socket) in self.sockets.iter().enumerate() {
            for _ in 0..2 {
                shims.push(UnixStream::connect(socket).with_context(|| format!("sandbox {index}"))?);
            }
            let words = ["load", "--kind", "check", "--most", "1", "--warm-up", "0", "--socket"];
            self.place.ask(&[words.as_slice(), &[&self.socket(index)]].concat())?;
        }
        Ok(shims)
    }
}

//! The lines that `tc -batch` reads.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use crate::Shape;

/// The rate of classes without a limit: the greatest that every kernel's htb takes.
const UNLIMITED: &str = "32gbit";
/// The class of everything that goes to nobody of the experiment.
const OTHERS: u16 = 1;
/// The class of the first shape.
const FIRST: u16 = 0x10;

/// Where packets go to that are shaped.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Target {
    /// The address of the machine that receives.
    pub address: IpAddr,
    /// What holds for it.
    pub shape: Shape,
    /// Packets to this port, or from it, are left alone: our SSH goes through this machine.
    pub spared: Option<Spared>,
}

/// The end of an SSH connection that goes from one machine of the experiment to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spared {
    /// The machine that receives has the server.
    To(u16),
    /// This machine has the server.
    From(u16),
}

impl Target {
    /// Names an address.
    pub fn new(address: IpAddr, shape: Shape) -> Self {
        Self { address, shape, spared: None }
    }
}

/// Returns the lines for the interface `device`, whose old root qdisc is gone: a class for each shape that occurs, and a
/// filter for each address.
pub fn batch(device: &str, targets: &[Target]) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        let _ = writeln!(text, "{words}");
    };
    line(format!("qdisc add dev {device} root handle 1: htb default {OTHERS:x}"));
    line(format!(
        "class add dev {device} parent 1: classid 1:{OTHERS:x} htb rate {UNLIMITED} {} quantum 60000",
        burst(None)
    ));
    let mut classes: BTreeMap<[Option<u64>; 3], u16> = BTreeMap::new();
    for target in targets {
        let next = FIRST.saturating_add(u16::try_from(classes.len()).unwrap_or(u16::MAX));
        let class = *classes.entry(key(target.shape)).or_insert_with(|| {
            let rate = target.shape.rate_bps.map_or_else(|| UNLIMITED.to_owned(), |bps| format!("{bps}bit"));
            let burst = burst(target.shape.rate_bps);
            line(format!(
                "class add dev {device} parent 1: classid 1:{next:x} htb rate {rate} {burst} quantum 60000"
            ));
            if let Some(netem) = netem(target.shape) {
                line(format!("qdisc add dev {device} parent 1:{next:x} handle {next:x}: netem {netem}"));
            }
            next
        });
        let (protocol, word, length, prio) = match target.address {
            IpAddr::V4(_) => ("ip", "ip", 32, 10),
            IpAddr::V6(_) => ("ipv6", "ip6", 128, 11),
        };
        let address = target.address;
        let filter = |prio: u16, more: &str, class: u16| {
            format!(
                "filter add dev {device} parent 1: protocol {protocol} prio {prio} u32 \
                 match {word} dst {address}/{length}{more} flowid 1:{class:x}"
            )
        };
        if let Some(spared) = target.spared {
            let more = match spared {
                Spared::To(port) => format!(" match {word} dport {port} 0xffff"),
                Spared::From(port) => format!(" match {word} sport {port} 0xffff"),
            };
            line(filter(prio - 8, &more, OTHERS));
        }
        line(filter(prio, "", class));
    }
    text
}

/// Returns how much may be sent at once: what passes in two milliseconds, and never less than two packets.
///
/// What `tc` takes by itself is next to nothing at high rates, and each packet would wait for a timer.
fn burst(rate_bps: Option<u64>) -> String {
    let bytes = rate_bps.map_or(4_000_000, |bps| (bps / 8 / 500).clamp(3200, 4_000_000));
    format!("burst {bytes}b cburst {bytes}b")
}

/// What tells two shapes apart; loss in millionths, finer than the kernel counts in effect.
fn key(shape: Shape) -> [Option<u64>; 3] {
    [shape.delay_us, shape.rate_bps, shape.loss_percent.map(|percent| (percent * 1e4).round() as u64)]
}

/// Returns what netem has to do, where there is anything.
fn netem(shape: Shape) -> Option<String> {
    let delay = shape.delay_us.filter(|us| *us > 0);
    let loss = shape.loss_percent.filter(|percent| *percent > 0.0);
    if delay.is_none() && loss.is_none() {
        return None;
    }
    let mut words = Vec::new();
    if let Some(us) = delay {
        words.push(format!("delay {us}us"));
    }
    if let Some(percent) = loss {
        words.push(format!("loss {percent}%"));
    }
    // Packets wait in netem for as long as the delay: its own limit of 1000 would drop what a fast link sends meanwhile.
    let bps = shape.rate_bps.unwrap_or(10_000_000_000);
    let waiting = u128::from(bps) * u128::from(delay.unwrap_or_default()) / 8 / 1_000_000 / 1000;
    words.push(format!("limit {}", waiting.clamp(1000, 200_000)));
    Some(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(delay_us: Option<u64>, rate_bps: Option<u64>, loss_percent: Option<f64>) -> Shape {
        Shape { delay_us, rate_bps, loss_percent }
    }

    #[test]
    fn each_shape_has_a_class_and_each_address_a_filter() {
        let slow = shape(Some(25_000), Some(100_000_000), Some(0.1));
        let text = batch(
            "eth0",
            &[
                Target::new("10.0.0.2".parse().unwrap(), slow),
                Target::new("10.0.0.3".parse().unwrap(), slow),
                Target::new("fd00::2".parse().unwrap(), shape(None, Some(8), None)),
            ],
        );
        let expected = "\
qdisc add dev eth0 root handle 1: htb default 1
class add dev eth0 parent 1: classid 1:1 htb rate 32gbit burst 4000000b cburst 4000000b quantum 60000
class add dev eth0 parent 1: classid 1:10 htb rate 100000000bit burst 25000b cburst 25000b quantum 60000
qdisc add dev eth0 parent 1:10 handle 10: netem delay 25000us loss 0.1% limit 1000
filter add dev eth0 parent 1: protocol ip prio 10 u32 match ip dst 10.0.0.2/32 flowid 1:10
filter add dev eth0 parent 1: protocol ip prio 10 u32 match ip dst 10.0.0.3/32 flowid 1:10
class add dev eth0 parent 1: classid 1:11 htb rate 8bit burst 3200b cburst 3200b quantum 60000
filter add dev eth0 parent 1: protocol ipv6 prio 11 u32 match ip6 dst fd00::2/128 flowid 1:11
";
        assert_eq!(text, expected);
    }

    #[test]
    fn ssh_that_goes_through_a_machine_is_spared() {
        let mut target = Target::new("10.0.0.2".parse().unwrap(), shape(None, None, Some(100.0)));
        target.spared = Some(Spared::To(22));
        let text = batch("eth0", &[target]);
        assert!(
            text.contains("prio 2 u32 match ip dst 10.0.0.2/32 match ip dport 22 0xffff flowid 1:1\n"),
            "{text}"
        );
        assert!(text.contains("netem loss 100% limit 1000\n"), "{text}");
    }

    #[test]
    fn a_fast_link_with_a_long_delay_has_room_for_what_is_on_the_way() {
        assert_eq!(
            netem(shape(Some(100_000), Some(1_000_000_000), None)).unwrap(),
            "delay 100000us limit 12500"
        );
        assert_eq!(netem(shape(Some(0), Some(1), Some(0.0))), None);
    }
}

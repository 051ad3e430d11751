//! What is no row: memory, peers that stop reading, guests that are not there yet, and neighbours.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::place::{Asked, Place};
use super::rows::number;
use super::world::{BUSY, Guests, Node};
use super::{Options, Part};
use crate::bench::host::Undisturbed;
use crate::bench::quantile;

/// How long a measurement of a kind may take beyond the time it is given.
const SLACK: Duration = Duration::from_secs(60);

/// What a load takes until it is under way, with plenty to spare.
const BEGUN: Duration = Duration::from_millis(200);

/// What is done for lack of progress is done after a second.
const NO_PROGRESS: Duration = Duration::from_secs(3);

/// How often idle and busy neighbours are compared; the figures are medians.
const ROUNDS: usize = 5;

/// What saturates a sandbox: kind of call, bytes, and how many at once.
const LOADS: [&str; 4] = ["check:0:64", "copy-file:1048576:4", "read-stdout:32768:8", "write-stdin:32768:8"];

/// All of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Extra {
    /// Resident memory of the gateway by sandboxes: idle, and after load on one of them. In KiB.
    pub(super) gateway_kib: Vec<(u16, u64, u64)>,
    /// Of the forwarder: idle, and after load.
    pub(super) forwarder_kib: Option<(u64, u64)>,
    pub(super) stalls: Vec<Stall>,
    /// Guests that refuse, and guests whose packets are dropped.
    pub(super) dialling: Option<(Dial, Dial)>,
    pub(super) neighbours: Option<Neighbours>,
}

/// How much memory grew when a peer stopped reading.
#[derive(Debug, Serialize)]
pub(super) struct Stall {
    pub(super) what: String,
    pub(super) gateway_kib: u64,
    pub(super) forwarder_kib: u64,
    /// What the client was told when its connection was ended for it.
    pub(super) closed: Option<String>,
}

/// Milliseconds from "the guest can be reached" to "it is".
#[derive(Debug, Default, Serialize)]
pub(super) struct Dial {
    pub(super) samples: f64,
    pub(super) mean_ms: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// The health check of one sandbox among 100, in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Neighbours {
    pub(super) sandboxes: u16,
    /// While all are idle.
    pub(super) quiet_p99_us: f64,
    /// While others are saturated.
    pub(super) saturated: Vec<Beside>,
    /// While others' guests have stopped with calls under way.
    pub(super) stalled: Beside,
}

/// The health check of a sandbox beside others that are saturated or stalled.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Beside {
    /// How many others, and by what.
    pub(super) what: String,
    /// Where those, or one of many, share the thread of the gateway.
    pub(super) p99_us: f64,
    /// Of a sandbox that has a gateway of its own: what the machine costs it, whoever carries the others.
    pub(super) apart_p99_us: f64,
}

impl Beside {
    /// The medians of pairs, each of a sandbox that shares the gateway and one that does not.
    fn medians(what: String, pairs: &[Vec<f64>]) -> Self {
        let median = |index: usize| quantile(&pairs.iter().map(|pair| pair[index]).collect::<Vec<_>>(), 0.5);
        Self { what, p99_us: median(0), apart_p99_us: median(1) }
    }
}

/// Measures the parts that are asked for.
pub(super) fn measure(
    place: &Place,
    options: &Options,
    undisturbed: &mut Undisturbed,
    say: &dyn Fn(&str),
) -> Result<Extra> {
    let Options { parts, quick, .. } = options;
    let quick = *quick;
    let mut extra = Extra::default();
    if parts.contains(&Part::Stalls) {
        extra.stalls = stalls(place, quick)?;
        say("peers that stop reading are measured");
    }
    let counts: &[u16] = if quick { &[1, 10] } else { &[1, 20, 100] };
    let most = counts.last().copied().unwrap_or(1);
    if parts.contains(&Part::Memory) {
        let alone = Guests::start(place, 1, 0)?;
        let forwarder = &alone.forwarders[0];
        let idle = forwarder.resident_kib()?;
        let node = alone.gateway("alone", 0..1)?;
        work(place, &node, 0)?;
        extra.forwarder_kib = Some((idle, forwarder.resident_kib()?));
    }
    if parts.contains(&Part::Memory) || parts.contains(&Part::Neighbours) {
        // And one for a gateway of its own.
        let guests = Guests::start(place, most + 1, 1)?;
        if parts.contains(&Part::Memory) {
            for count in counts {
                let node = guests.gateway(&format!("many-{count}"), 0..*count)?;
                let shims = node.shims()?;
                let idle = node.gateway.resident_kib()?;
                work(place, &node, usize::from(*count) - 1)?;
                extra.gateway_kib.push((*count, idle, node.gateway.resident_kib()?));
                drop(shims);
            }
            say("memory is measured");
        }
        if parts.contains(&Part::Neighbours) {
            let found = neighbours(place, &guests, most, quick, undisturbed);
            extra.neighbours = Some(found.context("neighbours")?);
            say("neighbours are measured");
        }
    }
    if parts.contains(&Part::Dialling) {
        let refused = dial(place, "refused", quick).context("guests that refuse")?;
        let dropped = dial(place, "dropped", quick).context("guests whose packets are dropped")?;
        extra.dialling = Some((refused, dropped));
        say("dialling is measured");
    }
    Ok(extra)
}

/// Loads one sandbox for a while: large files and many small calls.
fn work(place: &Place, node: &Node<'_>, index: usize) -> Result<()> {
    for load in ["copy-file:1048576:4", "check:0:64", "read-stdout:32768:8"] {
        begin(place, &node.socket(index), load, Duration::from_millis(500), false)?.end(SLACK)?;
    }
    Ok(())
}

/// Begins a load that is written as kind, payload and calls at the same time.
fn begin<'a>(place: &'a Place, socket: &str, load: &str, time: Duration, polite: bool) -> Result<Asked<'a>> {
    let mut parts = load.split(':');
    let mut part = || parts.next().context("a load has three parts");
    let (kind, payload, outstanding) = (part()?, part()?, part()?);
    let millis = time.as_millis().to_string();
    let words = ["load", "--socket", socket, "--kind", kind, "--payload", payload, "--warm-up", "20"];
    place.begin(&[&words[..], &["--outstanding", outstanding, "--millis", &millis]].concat(), polite)
}

fn stalls(place: &Place, quick: bool) -> Result<Vec<Stall>> {
    const CASES: [(&str, &str, &str, bool); 5] = [
        ("client reads nothing, check", "check", "0", false),
        ("client reads nothing, read-stdout 32 KiB", "read-stdout", "32768", false),
        ("agent reads nothing, check", "check", "0", true),
        ("agent reads nothing, write-stdin 32 KiB", "write-stdin", "32768", true),
        ("agent reads nothing, copy-file 1 MiB", "copy-file", "1048576", true),
    ];
    let mut found = Vec::new();
    for (number, (what, kind, payload, agent)) in CASES.into_iter().enumerate() {
        if quick && number % 2 == 0 {
            continue;
        }
        // Fresh ones each time: memory that was needed once is not given back.
        let guests = Guests::start(place, 1, 200 + u16::try_from(number)?)?;
        let node = guests.gateway(&format!("stall-{number}"), 0..1)?;
        work(place, &node, 0)?;
        let forwarder = &guests.forwarders[0];
        let socket = node.socket(0);
        // One message on its way is held whole, whoever reads. Whether it finds memory of a load before is chance.
        node.gateway.forget_peak()?;
        forwarder.forget_peak()?;
        begin(place, &socket, &format!("{kind}:{payload}:1"), Duration::from_millis(500), false)?
            .end(SLACK)?;
        let peaks = || anyhow::Ok((node.gateway.peak_kib()?, forwarder.peak_kib()?));
        let before = peaks()?;
        let mut words = vec!["flood", "--socket", &socket, "--kind", kind, "--payload", payload];
        if agent {
            words.push("--stalled-agent");
        }
        let flood = place.begin(&words, false)?;
        place.settle(&[&node.gateway, forwarder], std::slice::from_ref(&flood))?;
        std::thread::sleep(if quick { Duration::ZERO } else { NO_PROGRESS });
        let most = peaks()?;
        let answer = flood.end(SLACK)?;
        found.push(Stall {
            what: what.to_owned(),
            gateway_kib: most.0 - before.0,
            forwarder_kib: most.1 - before.1,
            closed: answer.get("closed").and_then(|closed| closed.as_str()).map(str::to_owned),
        });
    }
    Ok(found)
}

fn neighbours(
    place: &Place,
    guests: &Guests<'_>,
    sandboxes: u16,
    quick: bool,
    undisturbed: &mut Undisturbed,
) -> Result<Neighbours> {
    let node = guests.gateway("neighbours", 0..sandboxes)?;
    let other = guests.gateway("other", sandboxes..sandboxes + 1)?;

    let (rounds, time) = if quick { (1, 300) } else { (ROUNDS, 2000) };
    let time = Duration::from_millis(time);
    // One of the thread that has the first sandbox too: they are given to the threads in turn, of which there is one for
    // each processor, and eight at least.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).max(8);
    let last = usize::from(sandboxes) - 1;
    let watched = if last < threads { last } else { last / threads * threads };
    let (watched, apart) = (node.socket(watched), other.socket(0));
    let check = |socket: &str| -> Result<f64> {
        let millis = time.as_millis().to_string();
        // Paced, as health checks are.
        let words = ["load", "--socket", socket, "--kind", "check", "--pause-micros", "300"];
        let answer = place.begin(&[&words[..], &["--millis", &millis]].concat(), false)?.end(SLACK)?;
        number(&answer, "p99_us")
    };
    let pair = [watched.as_str(), apart.as_str()];
    let busy = usize::from(BUSY.min(sandboxes - 1));
    let all = (0..busy).map(|index| (index, LOADS[index % LOADS.len()])).collect();
    let mut cases = vec![(format!("{busy} others"), all)];
    cases.extend(LOADS.map(|load| (format!("1 other, {load}"), vec![(0, load)])));
    let mut idle = Vec::new();
    let mut found = vec![Vec::new(); cases.len()];
    // They take turns: what else the machine does changes a p99 more than anything that is measured here.
    for _ in 0..rounds {
        idle.push(check(&watched)?);
        for ((_, loads), found) in cases.iter().zip(&mut found) {
            // Longer than the measurement; they end with the values.
            let saturate =
                |(index, load): &(usize, &str)| begin(place, &node.socket(*index), load, time * 20, true);
            let _running = loads.iter().map(saturate).collect::<Result<Vec<_>>>()?;
            std::thread::sleep(BEGUN);
            found.push(undisturbed.turn(&pair, check)?);
        }
    }
    let saturated =
        cases.into_iter().zip(found).map(|((what, _), found)| Beside::medians(what, &found)).collect();
    let mut running = Vec::new();
    for index in 0..busy {
        guests.forwarders[index].guard.signal_group(Signal::SIGSTOP)?;
        let socket = node.socket(index);
        running.push(place.begin(&["flood", "--socket", &socket, "--kind", "write-stdin"], true)?);
    }
    let stalled = place
        .settle(&[&node.gateway], &running)
        .and_then(|()| (0..rounds).map(|_| undisturbed.turn(&pair, check)).collect::<Result<Vec<_>>>());
    for forwarder in &guests.forwarders[..busy] {
        forwarder.guard.signal_group(Signal::SIGCONT)?;
    }
    Ok(Neighbours {
        sandboxes,
        quiet_p99_us: quantile(&idle, 0.5),
        saturated,
        stalled: Beside::medians(format!("{busy} others"), &stalled?),
    })
}

fn dial(place: &Place, until: &str, quick: bool) -> Result<Dial> {
    let name = format!("dial-{until}");
    let gateway = super::chain::start_gateway(place, &name)?;
    let (control, folder) = (place.text(&format!("{name}.control")), place.text(""));
    let (samples, to) = if quick { ("4", "1500") } else { ("60", "20000") };
    let words = ["dial", "--control", &control, "--folder", &folder, "--certificates", &folder];
    let more = ["--until", until, "--samples", samples, "--to-millis", to];
    let answer = place.begin(&[&words[..], &more].concat(), false)?.end(Duration::from_secs(120))?;
    drop(gateway);
    Ok(Dial {
        samples: number(&answer, "samples")?,
        mean_ms: number(&answer, "mean_ms")?,
        p50_ms: number(&answer, "p50_ms")?,
        p99_ms: number(&answer, "p99_ms")?,
        max_ms: number(&answer, "max_ms")?,
    })
}

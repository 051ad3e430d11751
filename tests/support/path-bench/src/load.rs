//! So many calls of one kind, so many at the same time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{ArgMatches, Command};
use peerpod_proto::envelope::Response;
use peerpod_proto::frame::Kind;
use prost::Message as _;
use serde_json::json;

use crate::message::{self, write_frame};
use crate::stream::{Frames, connect, send};

/// The clock is looked at after so many calls.
const LOOK: u64 = 16;

pub(crate) fn command() -> Command {
    Command::new("load")
        .about("Makes calls and prints one JSON object")
        .arg(crate::path("socket", "Unix socket of the chain"))
        .args(message::args())
        .arg(crate::number("outstanding", "1", "Calls at the same time"))
        .arg(crate::number("millis", "1000", "For how long"))
        .arg(crate::number("most", "1000000000", "The most calls, if that is sooner"))
        .arg(crate::number("pause-micros", "0", "Pause between two calls"))
        .arg(crate::number("warm-up", "200", "Calls before the measurement"))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let request = message::request(matches)?;
    let outstanding = usize::try_from(crate::given_number(matches, "outstanding"))?;
    ensure!(outstanding > 0, "--outstanding must be 1 or more");
    let limit = Duration::from_millis(crate::given_number(matches, "millis"));
    let most = crate::given_number(matches, "most").max(1);
    let pause = Duration::from_micros(crate::given_number(matches, "pause-micros"));
    let mut calls = Calls::connect(&crate::given_path(matches, "socket"), request.to_vec())?;
    let warm_up = crate::given_number(matches, "warm-up");
    if warm_up > 0 {
        calls.make(outstanding, Duration::MAX, warm_up, pause)?;
    }
    let start = Instant::now();
    let mut times = calls.make(outstanding, limit, most, pause)?;
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let per_second = times.len() as f64 / seconds;
    let bytes = calls.frame.len().max(calls.longest_answer) as f64;
    println!(
        "{}",
        json!({
            "requests": times.len(),
            "seconds": seconds,
            "per_second": per_second,
            "mb_per_s": per_second * bytes / 1e6,
            "p50_us": at(&times, 0.5),
            "p90_us": at(&times, 0.9),
            "p99_us": at(&times, 0.99),
            "max_us": at(&times, 1.0),
        })
    );
    Ok(())
}

/// Returns the time in microseconds that the given part of all calls does not exceed.
fn at(sorted: &[u32], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).map_or(0.0, |nanos| f64::from(*nanos) / 1e3)
}

/// Calls over one connection.
struct Calls {
    stream: std::os::unix::net::UnixStream,
    frames: Frames,
    frame: Vec<u8>,
    next_id: u32,
    longest_answer: usize,
}

impl Calls {
    fn connect(socket: &std::path::Path, request: Vec<u8>) -> Result<Self> {
        let stream = connect(socket)?;
        let frames = Frames::new(stream.try_clone()?);
        let mut frame = Vec::new();
        write_frame(&mut frame, Kind::Request, 1, &request);
        Ok(Self { stream, frames, frame, next_id: 1, longest_answer: 0 })
    }

    fn issue(&mut self) -> Result<()> {
        self.frame[4..8].copy_from_slice(&self.next_id.to_be_bytes());
        self.next_id = self.next_id.checked_add(2).context("all stream ids are used")?;
        send(&mut self.stream, &self.frame)
    }

    /// Makes calls for a time, `most` at most, and returns how long each took in nanoseconds.
    fn make(&mut self, outstanding: usize, limit: Duration, most: u64, pause: Duration) -> Result<Vec<u32>> {
        let base = self.next_id;
        let mut begun: Vec<Instant> = Vec::with_capacity(1 << 16);
        let mut times = Vec::with_capacity(1 << 16);
        let start = Instant::now();
        let (mut over, mut open) = (false, 0);
        while open < outstanding && (begun.len() as u64) < most {
            begun.push(Instant::now());
            self.issue()?;
            open += 1;
        }
        while open > 0 {
            let (header, envelope) = self.frames.next()?.context("the connection ended under calls")?;
            let index = (header.stream_id.wrapping_sub(base) / 2) as usize;
            let took = begun.get(index).context("an answer to nothing")?.elapsed();
            if times.is_empty() {
                let response = Response::decode(envelope).context("the answer is none")?;
                response.into_result().map_err(|status| anyhow::anyhow!("the call failed: {status}"))?;
            }
            self.longest_answer = self.longest_answer.max(envelope.len());
            times.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
            open -= 1;
            if (times.len() as u64).is_multiple_of(LOOK) || !pause.is_zero() {
                over |= start.elapsed() >= limit;
            }
            if !over && (begun.len() as u64) < most {
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
                begun.push(Instant::now());
                self.issue()?;
                open += 1;
            }
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_the_sorted_times() {
        let sorted = [1_000, 2_000, 3_000, 4_000, 5_000];
        assert_eq!((at(&sorted, 0.5), at(&sorted, 1.0), at(&sorted, 0.0)), (3.0, 5.0, 1.0));
        assert_eq!(at(&[], 0.5), 0.0);
    }
}

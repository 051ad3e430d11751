//! Cuts at any byte, under load.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerpod_proto::messages::agent::method;
use peerpod_proto::relay::LinkState;
use tokio_util::sync::CancellationToken;

use crate::common::{wait_for, within};
use crate::set::*;

/// Numbers that look random and can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Makes calls of all kinds until it is told to stop, and checks every byte. Returns how many calls it made.
async fn load(set: &Set, seed: u64, stop: &CancellationToken) -> u64 {
    let mut tasks = Vec::new();
    for number in 0..6_u64 {
        let (client, agent, stop) = (shim(&set.gateway), Arc::clone(&set.agent), stop.clone());
        let mut random = Random(seed + number);
        tasks.push(tokio::spawn(async move {
            let name = format!("s{number:03}");
            let (mut offset, mut calls) = (0, 0);
            while !stop.is_cancelled() {
                let most = if random.below(8) == 0 { 200_000 } else { 3_000 };
                let length = random.below(most) as usize;
                calls += 1;
                match number % 3 {
                    0 => {
                        let payload = format!("{name} {length}");
                        let bytes =
                            within(call(&client, method::READ_STDOUT, payload)).await.unwrap().unwrap();
                        assert_eq!(bytes, generated(offset, length), "{name} at {offset}");
                    }
                    1 => {
                        let payload = [name.as_bytes(), &generated(offset, length)].concat();
                        within(call(&client, method::WRITE_STDIN, payload)).await.unwrap().unwrap();
                    }
                    _ => {
                        let mut payload = format!("{name} {calls} ").into_bytes();
                        payload.extend(generated(offset, length));
                        let answer = within(call(&client, "Echo", payload.clone())).await.unwrap().unwrap();
                        assert_eq!(answer, payload);
                    }
                }
                offset += length as u64;
            }
            match number % 3 {
                0 => assert_eq!(agent.read.lock().unwrap()[name.as_bytes()], offset, "{name}"),
                1 => assert!(agent.written.lock().unwrap()[name.as_bytes()] == generated(0, offset as usize)),
                _ => {}
            }
            calls
        }));
    }
    let mut calls = 0;
    for task in tasks {
        calls += task.await.unwrap();
    }
    calls
}

/// Cuts the link again and again under load, after any number of bytes: within frames, within the greeting, while nothing
/// goes on. `RESUME_SEED` repeats a run, as far as the kernel's scheduling does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_cuts_lose_and_repeat_nothing() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("RESUME_SEED").map_or(now | 1, |text| text.parse().expect("a number"));
    println!("seed {seed}: repeat with RESUME_SEED={seed}");
    let set = Set::new().await;
    let waiting = call(&shim(&set.gateway), method::WAIT_PROCESS, "p");
    let stop = CancellationToken::new();
    let cutting = async {
        let mut random = Random(seed);
        for _ in 0..1_000 {
            let most = [60, 400, 5_000, 60_000][random.below(4) as usize];
            set.proxy.cut_after(random.below(most) as u32);
            wait_for("the cut", || !set.proxy.is_to_be_cut()).await;
        }
        stop.cancel();
    };
    let (calls, ()) = tokio::join!(load(&set, seed, &stop), cutting);
    wait_for("the link stands", || matches!(*set.gateway.state().borrow(), LinkState::Connected { .. }))
        .await;
    set.agent.exit.notify_waiters();
    assert_eq!(within(waiting).await.unwrap().unwrap(), "exit code");
    assert_eq!(set.agent.waits.load(Ordering::SeqCst), 1);
    let seen = set.agent.seen.lock().unwrap();
    let twice = seen.values().filter(|count| **count != 1).count();
    assert_eq!(twice, 0, "of {} requests", seen.len());
    println!("{calls} calls, {} connections, {} bytes", set.proxy.connections(), set.proxy.bytes());
    assert!(calls > 100 && set.proxy.connections() > 500);
}

#[tokio::test]
async fn a_half_written_frame_is_sent_again_whole() {
    let set = Set::new().await;
    let shim = shim(&set.gateway);
    let large = generated(0, 1 << 20);
    // Of the request, then of the answer to it.
    for (number, bytes) in [300_000, 1_400_000].into_iter().enumerate() {
        set.proxy.cut_after(bytes);
        let payload = [&[number as u8], &large[..]].concat();
        assert_eq!(within(call(&shim, "Echo", payload.clone())).await.unwrap().unwrap(), payload);
        assert!(!set.proxy.is_to_be_cut());
        assert_eq!(set.agent.seen.lock().unwrap()[&payload[..]], 1);
    }
    assert!(set.back(3).await);
}

//! Names: a container asks the name server that its node names.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use test_support::{AgentPlayer, PROGRAMS, spec};
use tokio::net::UdpSocket;

use super::files::{self, SHARED};
use crate::node::NODE;

const NAME: &str = "page.e2e.test";
const LIMIT: Duration = Duration::from_secs(30);
const HEADER: usize = 12;

/// The container's `resolv.conf` names a server on the node, and the name is resolved by it.
pub(super) async fn assess(agent: &AgentPlayer, address: Ipv4Addr) -> Result<String> {
    let server = UdpSocket::bind((NODE, 53)).await.context("cannot serve names on the node")?;
    let serving = tokio::spawn(serve(server, address));
    let source = format!("{SHARED}/resolv.conf");
    files::copy(agent, &source, format!("nameserver {NODE}\noptions timeout:2\n").as_bytes()).await?;
    let mut oci = spec(&[&format!("{PROGRAMS}/test-agent"), "lookup", NAME]);
    oci.mounts.push(super::bind(&source, "/etc/resolv.conf"));
    agent.start_container_of("dns", oci).await.context("starting the lookup failed")?;
    let text = tokio::time::timeout(LIMIT, agent.read_stdout("dns", "")).await;
    serving.abort();
    let text = text.context("the lookup takes too long")?.context("reading its output")?;
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(text.trim() == address.to_string(), "{NAME} is {:?} in the pod, not {address}", text.trim());
    Ok(format!("{NAME} is {address}"))
}

/// Answers every question for an IPv4 address with `address`, and every other one with nothing.
async fn serve(server: UdpSocket, address: Ipv4Addr) {
    let mut packet = [0; 512];
    while let Ok((length, peer)) = server.recv_from(&mut packet).await {
        if let Some(answer) = answer(&packet[..length], address) {
            // A question whose answer is lost is asked again.
            let _ = server.send_to(&answer, peer).await;
        }
    }
}

fn answer(question: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    // The name ends with an empty label; type and class follow.
    let name = question.get(HEADER..)?.iter().position(|&byte| byte == 0)?;
    let end = HEADER + name + 1 + 4;
    let asked = question.get(end - 4..end)?;
    let ours = asked == [0, 1, 0, 1];
    let mut answer = question.get(..end)?.to_vec();
    // A reply without error, recursion available; one question, and one answer where it is ours.
    answer[2..HEADER].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(ours), 0, 0, 0, 0]);
    if ours {
        // The name of the question, IPv4 address, internet, 60 seconds, four bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_for_an_address_is_answered_and_others_get_nothing() {
        let question = |kind: u8| {
            let mut text = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            text.extend(*b"\x04page\x03e2e\x04test\x00");
            text.extend([0, kind, 0, 1]);
            text
        };
        let found = answer(&question(1), Ipv4Addr::new(10, 1, 2, 3)).unwrap();
        assert!(found.ends_with(&[0, 4, 10, 1, 2, 3]) && found[..2] == [7, 7]);
        let none = answer(&question(28), Ipv4Addr::LOCALHOST).unwrap();
        assert_eq!((none.len(), none[7]), (question(28).len(), 0));
        assert_eq!(answer(&question(1)[..20], Ipv4Addr::LOCALHOST), None);
    }
}

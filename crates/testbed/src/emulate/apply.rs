//! Applies, shows and clears over SSH.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use cloud_providers::{Error, ErrorKind, OpContext, Result};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::Value;

use super::{
    Pair, Target,
    batch::{Spared, batch},
    pairs,
};
use crate::{Event, Host, NetworkConstraints, Progress, ssh::Remote, state::Store};

/// How many machines are worked on at once.
const AT_ONCE: usize = 32;

/// How a script begins: `tc` and `ip` may stand where only root looks, and a user needs sudo.
const PRELUDE: &str = r#"
PATH="$PATH:/usr/sbin:/sbin"
LC_ALL=C; export LC_ALL
# A shell of busybox runs its own tc, which knows little, unless the path is said.
t=tc; IFS=:; for d in $PATH; do if [ -x "$d/tc" ]; then t=$d/tc; break; fi; done; unset IFS
if [ "$(id -u)" = 0 ]; then s=; else s="sudo -n"; fi
"#;

/// What the kernel of a machine says of an interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Shown {
    /// The machine.
    pub machine: String,
    /// The interface.
    pub device: String,
    /// The answer of `tc -s -j qdisc show`; null where that `tc` does not know JSON.
    pub qdiscs: Value,
    /// The same for people.
    pub text: String,
}

/// Applies `wanted` in place of whatever was applied before; with `enable: false` clears it.
///
/// All machines are asked first whether they can: nothing is applied when one cannot.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] naming the machines that lack `tc`, a part of the kernel, or the right to use it.
pub async fn apply(
    op: &OpContext,
    remote: &Remote,
    store: &Arc<Store>,
    progress: &Arc<dyn Progress>,
    wanted: &NetworkConstraints,
) -> Result<usize> {
    if !wanted.enable {
        clear(op, remote, store, progress).await?;
        return Ok(0);
    }
    let environment = store.saved().environment;
    let pairs = pairs(&environment, wanted)?;
    let mut by_source: BTreeMap<&str, (&Host, Vec<Target>)> = BTreeMap::new();
    for pair in &pairs {
        let (_, targets) = by_source.entry(&pair.src.alias).or_insert((pair.src, Vec::new()));
        targets.extend(targets_of(pair));
    }
    by_source.retain(|_, (_, targets)| !targets.is_empty());

    let probes = by_source.values().map(|(host, targets)| async move {
        let addresses: BTreeSet<IpAddr> = targets.iter().map(|target| target.address).collect();
        // A rate alone needs less of the kernel.
        let netem = targets.iter().any(|t| t.shape.delay_us.is_some() || t.shape.loss_percent.is_some());
        (host.alias.clone(), probe(op, remote, host, &addresses, netem).await)
    });
    let answers: Vec<_> = stream::iter(probes).buffered(AT_ONCE).collect().await;
    op.check()?;
    let mut routes = BTreeMap::new();
    let mut lacking = Vec::new();
    for (alias, answer) in answers {
        match answer {
            Ok(found) => _ = routes.insert(alias, found),
            Err(error) if *error.kind() == ErrorKind::Unsupported => {
                lacking.push(format!("{alias}: {error}"))
            }
            Err(error) => return Err(error.with("machine", alias)),
        }
    }
    if let Some(error) = Error::all(ErrorKind::Unsupported, lacking) {
        return Err(error
            .with("mend", "load the modules sch_htb, sch_netem and cls_u32, install iproute2, and log in as root or with sudo"));
    }

    clear(op, remote, store, progress).await?;
    let work = by_source.values().map(|(host, targets)| {
        let routes = &routes[host.alias.as_str()];
        async move { (host.alias.as_str(), one(op, remote, store, host, targets, routes).await) }
    });
    let results: Vec<_> = stream::iter(work).buffered(AT_ONCE).collect().await;
    op.check()?;
    for (alias, result) in results {
        result.map_err(|error| error.with("machine", alias))?;
        progress.tell(alias, &Event::Note { text: "what it sends is shaped".into() });
    }
    Ok(by_source.len())
}

/// Returns what a pair means in addresses.
fn targets_of(pair: &Pair<'_>) -> Vec<Target> {
    let of = |host: &Host| -> BTreeSet<IpAddr> {
        let own = host.addresses.iter().copied().chain(host.address.parse().ok());
        own.filter(|ip| !ip.is_loopback() && !ip.is_unspecified()).collect()
    };
    let mine = of(pair.src);
    let theirs = of(pair.dst);
    // Machines behind one address are told apart by ports, which say nothing of who receives.
    let addresses = theirs.iter().filter(|ip| !mine.contains(ip)).copied();
    let through = |host: &Host, by: &BTreeSet<IpAddr>, name: &str| {
        host.jump.as_deref().is_some_and(|jump| {
            let at = jump.rsplit_once('@').map_or(jump, |(_, at)| at);
            let at = at.rsplit_once(':').map_or(at, |(host, _)| host).trim_matches(['[', ']']);
            at == name || at.parse().is_ok_and(|ip| by.contains(&ip))
        })
    };
    let spared = if through(pair.dst, &mine, &pair.src.alias) {
        Some(Spared::To(pair.dst.port))
    } else if through(pair.src, &theirs, &pair.dst.alias) {
        Some(Spared::From(pair.src.port))
    } else {
        None
    };
    addresses.map(|address| Target { address, shape: pair.shape, spared }).collect()
}

/// Asks a machine whether it can, and over which interface each address is reached.
async fn probe(
    op: &OpContext,
    remote: &Remote,
    host: &Host,
    addresses: &BTreeSet<IpAddr>,
    netem: bool,
) -> Result<BTreeMap<IpAddr, String>> {
    let mut script = String::from(PRELUDE);
    script.push_str(
        r#"
for p in $t ip; do command -v $p >/dev/null 2>&1 || { echo "lacks the program $p (package iproute2)"; exit 3; }; done
$s true 2>/dev/null || { echo "lacks root: log in as root, or let the user run sudo without a password"; exit 3; }
# Tried on the loopback where nobody has set anything: it is taken back at once.
try() {
  k=$1; shift
  e=$($s $t "$@" 2>&1) && return
  $s $t qdisc del dev lo root 2>/dev/null
  echo "lacks $k in its kernel: $e"; exit 3
}
if ! $t qdisc show dev lo 2>/dev/null | grep -qv noqueue; then
  try sch_htb qdisc replace dev lo root handle 1: htb
  try cls_u32 filter add dev lo parent 1: protocol ip prio 1 u32 match ip dst 127.0.0.99/32 flowid 1:1
  $s $t qdisc del dev lo root 2>/dev/null
  if [ NETEM = true ]; then
    try sch_netem qdisc replace dev lo root handle 1: netem
    $s $t qdisc del dev lo root 2>/dev/null
  fi
fi
"#
        .replace("NETEM", if netem { "true" } else { "false" })
        .as_str(),
    );
    for address in addresses {
        script.push_str(&format!("echo \"route {address} $(ip -o route get {address} 2>&1 | head -n 1)\"\n"));
    }
    let answer = remote.run(op, &host.alias, "sh -s", script.as_bytes()).await?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    match answer.outcome.code() {
        0 => {}
        3 => return Err(Error::unsupported(text.trim().replace('\n', " "))),
        _ => return Err(failed(&answer)),
    }
    let mut routes = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some("route"), Some(address)) = (words.next(), words.next()) else { continue };
        let device = words.skip_while(|word| *word != "dev").nth(1);
        if let (Ok(address), Some(device)) = (address.parse(), device) {
            // What stays on the machine is not sent.
            if device != "lo" {
                routes.insert(address, device.to_owned());
            }
        }
    }
    let lost: Vec<String> = addresses
        .iter()
        .filter(|a| !text.contains(&format!("route {a} ")))
        .map(ToString::to_string)
        .collect();
    if lost.is_empty() {
        return Ok(routes);
    }
    Err(Error::internal("a machine did not say how it reaches another").with("addresses", lost.join(", ")))
}

fn failed(answer: &crate::ssh::Answer) -> Error {
    let kind = if answer.outcome.code() == 255 { ErrorKind::Transient } else { ErrorKind::Internal };
    Error::new(kind, "the machine did not do it")
        .with("status", answer.outcome.code())
        .with("it says", format!("{:?}", answer.tail()))
}

/// Applies the targets of one machine.
async fn one(
    op: &OpContext,
    remote: &Remote,
    store: &Arc<Store>,
    host: &Host,
    targets: &[Target],
    routes: &BTreeMap<IpAddr, String>,
) -> Result<()> {
    let mut by_device: BTreeMap<&str, Vec<Target>> = BTreeMap::new();
    for target in targets {
        if let Some(device) = routes.get(&target.address) {
            by_device.entry(device).or_default().push(*target);
        }
    }
    if by_device.is_empty() {
        return Ok(());
    }
    // Written first: what may have been applied can be cleared.
    let devices: Vec<String> = by_device.keys().map(|device| (*device).to_owned()).collect();
    store.update(|saved| _ = saved.emulated.insert(host.alias.clone(), devices.clone()))?;
    let mut script = String::from(PRELUDE);
    for (device, targets) in by_device {
        let device = plain(device)?;
        script.push_str(&format!("$s $t qdisc del dev {device} root 2>/dev/null\n"));
        script.push_str(&format!(
            "$s $t -batch - <<'END' || {{ $s $t qdisc del dev {device} root 2>/dev/null; exit 1; }}\n"
        ));
        script.push_str(&batch(device, &targets));
        script.push_str("END\n");
    }
    let answer = remote.run(op, &host.alias, "sh -s", script.as_bytes()).await?;
    if answer.outcome.success() { Ok(()) } else { Err(failed(&answer)) }
}

/// Returns the name of an interface as it can stand in a script.
fn plain(device: &str) -> Result<&str> {
    let name = device.split('@').next().unwrap_or_default();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c)) {
        return Err(Error::internal("the interface has an odd name").with("interface", format!("{device:?}")));
    }
    Ok(name)
}

/// Takes away everything that was applied. Nothing applied is success.
///
/// # Errors
///
/// When a machine cannot be reached or says no; those that did it are done, and the next call goes on.
pub async fn clear(
    op: &OpContext,
    remote: &Remote,
    store: &Arc<Store>,
    progress: &Arc<dyn Progress>,
) -> Result<()> {
    let saved = store.saved();
    let hosts = &saved.environment.obtained.hosts;
    let work = saved.emulated.iter().map(|(alias, devices)| async move {
        // A machine that is gone took its emulation with it.
        if !hosts.iter().any(|host| host.alias == *alias) {
            return (alias, Ok(()));
        }
        (alias, clear_one(op, remote, alias, devices).await)
    });
    let results: Vec<_> = stream::iter(work).buffered(AT_ONCE).collect().await;
    let mut failed = Vec::new();
    for (alias, result) in results {
        match result {
            Ok(()) => {
                store.update(|saved| _ = saved.emulated.remove(alias))?;
                progress.tell(alias, &Event::Note { text: "what it sends is no longer shaped".into() });
            }
            Err(error) => failed.push(error.with("machine", alias)),
        }
    }
    op.check()?;
    match failed.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

async fn clear_one(op: &OpContext, remote: &Remote, alias: &str, devices: &[String]) -> Result<()> {
    let mut script = String::from(PRELUDE);
    for device in devices {
        let device = plain(device)?;
        // Only what we made: an own root of the user has another handle or kind.
        script.push_str(&format!(
            "if $t qdisc show dev {device} 2>/dev/null | grep -q 'htb 1: root'; then $s $t qdisc del dev {device} root || exit 1; fi\n"
        ));
    }
    let answer = remote.run(op, alias, "sh -s", script.as_bytes()).await?;
    if answer.outcome.success() { Ok(()) } else { Err(failed(&answer)) }
}

/// Asks the kernels of all machines that are shaped what holds.
///
/// # Errors
///
/// When a machine cannot be asked.
pub async fn show(
    op: &OpContext,
    remote: &Remote,
    emulated: &BTreeMap<String, Vec<String>>,
) -> Result<Vec<Shown>> {
    let all = emulated.iter().flat_map(|(alias, devices)| devices.iter().map(move |device| (alias, device)));
    let asks = all.map(|(alias, device)| async move {
        let name = plain(device)?;
        let script = format!("{PRELUDE}\n$t -s -j qdisc show dev {name} 2>/dev/null; echo; echo =====; $t -s qdisc show dev {name}\n");
        let answer = remote.run(op, alias, "sh -s", script.as_bytes()).await?;
        if !answer.outcome.success() {
            return Err(failed(&answer).with("machine", alias));
        }
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        let (json, text) = text.split_once("=====\n").unwrap_or(("", &text));
        Ok(Shown {
            machine: alias.clone(),
            device: device.clone(),
            qdiscs: serde_json::from_str(json).unwrap_or(Value::Null),
            text: text.to_owned(),
        })
    });
    stream::iter(asks).buffered(AT_ONCE).collect::<Vec<_>>().await.into_iter().collect()
}

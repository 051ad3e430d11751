//! The chains that are compared: what stands between client and agent.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::place::{Place, Serving, Sign};

/// The name of the server in our certificates.
pub(super) const SERVER_NAME: &str = "podvm-path-bench";

/// What `--help` says of chains.
pub(super) const HELP: &str = "\
Chains: direct (no hop), splice-unix (one raw relay), splice-tls (the floor: two raw relays with mutual TLS between
them), ours, ours-level1 (a forwarder that keeps no sessions), ours-level0 (our gateway, a raw relay in the guest),
splice-ours (a raw relay on the node, our forwarder).

Any program can take the place of either hop: 'NAME=GATEWAY;FORWARDER', each a command line that is split at blanks;
an empty half is ours, and the word splice a raw relay. What is replaced in it:
  {listen}      gateway: path of the unix socket to serve; forwarder: address and port
  {connect}     gateway: address and port of the forwarder; forwarder: path of the agent's socket
  {host} {port} the address and port between them
  {ca} {cert} {key}  files of the own end: who vouches for the other one, own certificate, own key
  {server-name} name in the forwarder's certificate
  {config}      forwarder: file with its certificates and pod network, as the daemon writes it
  {pod-namespace}    forwarder: path of the pod's network namespace
  {dir}         a folder for other files
Example: --chain 'other=/opt/gw -listen {listen} -guest {connect} -ca {ca} -cert {cert} -key {key};/opt/fwd -config {config}
  -listen {listen} -kata-agent-socket {connect} -pod-namespace {pod-namespace}'";

/// One hop.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Hop {
    Ours,
    /// A forwarder that keeps nothing for a node that lost its connection.
    WithoutSessions,
    Splice,
    Template(String),
}

/// What stands between client and agent.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Shape {
    Direct,
    SpliceUnix,
    Hops { gateway: Hop, forwarder: Hop },
}

/// A chain by name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Chain {
    pub(super) name: String,
    shape: Shape,
}

/// A chain that runs.
pub(super) struct Running {
    pub(super) name: String,
    /// Where the client connects.
    pub(super) socket: PathBuf,
    /// The programs of ours that stand in it, by what they are.
    pub(super) programs: Vec<(&'static str, Serving)>,
}

impl Chain {
    /// Reads a chain as it is given on the command line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some((name, halves)) = text.split_once('=') {
            let (gateway, forwarder) =
                halves.split_once(';').ok_or("a chain of programs is NAME=GATEWAY;FORWARDER")?;
            let hop = |text: &str| match text.trim() {
                "" => Hop::Ours,
                "splice" => Hop::Splice,
                text => Hop::Template(text.to_owned()),
            };
            let shape = Shape::Hops { gateway: hop(gateway), forwarder: hop(forwarder) };
            return Ok(Self { name: name.to_owned(), shape });
        }
        Self::known(text).ok_or_else(|| format!("there is no chain {text:?} (see --help)"))
    }

    fn known(name: &str) -> Option<Self> {
        let hops = |gateway, forwarder| Shape::Hops { gateway, forwarder };
        let shape = match name {
            "direct" => Shape::Direct,
            "splice-unix" => Shape::SpliceUnix,
            "splice-tls" => hops(Hop::Splice, Hop::Splice),
            "ours" => hops(Hop::Ours, Hop::Ours),
            "ours-level1" => hops(Hop::Ours, Hop::WithoutSessions),
            "ours-level0" => hops(Hop::Ours, Hop::Splice),
            "splice-ours" => hops(Hop::Splice, Hop::Ours),
            _ => return None,
        };
        Some(Self { name: name.to_owned(), shape })
    }

    /// Those that goals compare.
    pub(super) fn judged() -> Vec<Self> {
        ["direct", "splice-tls", "ours"].into_iter().filter_map(Self::known).collect()
    }

    /// The chains that goals are about, and those given or, without any, the further ones of ours.
    pub(super) fn with_floor(given: Vec<Self>) -> Vec<Self> {
        let further = ["splice-unix", "ours-level1", "ours-level0"];
        let given =
            if given.is_empty() { further.into_iter().filter_map(Self::known).collect() } else { given };
        let mut all = Self::judged();
        for chain in given {
            if all.iter().all(|there| there.name != chain.name) {
                all.push(chain);
            }
        }
        all
    }

    /// Starts the chain. The number gives it a port of its own.
    pub(super) fn start(&self, place: &Place, number: u16) -> Result<Running> {
        let name = self.name.clone();
        let (socket, port) = (place.path(&format!("front-{number}.sock")), 21_000 + number);
        let programs = match &self.shape {
            Shape::Direct => {
                return Ok(Running { name, socket: place.path("agent.sock"), programs: Vec::new() });
            }
            Shape::SpliceUnix => {
                let ends =
                    (format!("unix:{}", socket.display()), format!("unix:{}", place.text("agent.sock")));
                vec![("relay", splice(place, &name, ends, Sign::Unix(socket.clone()))?)]
            }
            Shape::Hops { gateway, forwarder } => {
                let guest = Guest { number, port, agent: "agent.sock", polite: false };
                let forwarder = match forwarder {
                    Hop::Ours => guest.start(place, &[])?,
                    Hop::WithoutSessions => guest.start(place, &["-link-grace", "0"])?,
                    Hop::Splice => {
                        let agent = place.text("agent.sock");
                        let ends = (format!("tls:127.0.0.1:{port}"), format!("unix:{agent}"));
                        splice(place, &format!("{name}-guest"), ends, Sign::Tcp(format!("127.0.0.1:{port}")))?
                    }
                    Hop::Template(template) => {
                        let listen = format!("127.0.0.1:{port}");
                        let words =
                            Words { place, port, listen: &listen, connect: &place.text("agent.sock") };
                        let ends = ["client.pem", "server.pem", "server-key.pem"];
                        let config = guest.write_config(place)?;
                        let words = words.fill(template, ends, &config)?;
                        place.serve(&format!("{name}-guest"), &words, false, &Sign::Tcp(listen))?
                    }
                };
                let gateway = match gateway {
                    Hop::Ours | Hop::WithoutSessions => {
                        let gateway = start_gateway(place, &format!("{name}-node"))?;
                        register(place, &format!("{name}-node"), [(number, socket.clone())])?;
                        gateway
                    }
                    Hop::Splice => {
                        let ends = (format!("unix:{}", socket.display()), format!("tls:127.0.0.1:{port}"));
                        splice(place, &format!("{name}-node"), ends, Sign::Unix(socket.clone()))?
                    }
                    Hop::Template(template) => {
                        let connect = format!("127.0.0.1:{port}");
                        let listen = socket.to_string_lossy();
                        let words = Words { place, port, listen: &listen, connect: &connect };
                        let words = words.fill(template, ["ca.pem", "client.pem", "client-key.pem"], "")?;
                        place.serve(&format!("{name}-node"), &words, false, &Sign::Unix(socket.clone()))?
                    }
                };
                vec![("gateway", gateway), ("forwarder", forwarder)]
            }
        };
        Ok(Running { name, socket, programs })
    }
}

fn splice(place: &Place, name: &str, ends: (String, String), sign: Sign) -> Result<Serving> {
    let words = ["splice", "--listen", &ends.0, "--connect", &ends.1, "--certificates", &place.text("")];
    place.bench(name, &words.map(str::to_owned), false, &sign)
}

/// Starts a gateway of ours.
pub(super) fn start_gateway(place: &Place, name: &str) -> Result<Serving> {
    let control = place.path(&format!("{name}.control"));
    let program = place.programs.gateway.to_string_lossy().into_owned();
    let words = [program, "--control-socket".to_owned(), control.to_string_lossy().into_owned()];
    place.serve(name, &words, false, &Sign::Unix(control))
}

/// Registers guests, by number and agent socket, with a gateway, and waits until all are reached.
pub(super) fn register(
    place: &Place,
    gateway: &str,
    guests: impl IntoIterator<Item = (u16, PathBuf)>,
) -> Result<()> {
    let list: Vec<_> = guests
        .into_iter()
        .map(|(number, socket)| {
            json!({ "id": format!("s{number}"), "socket": socket,
                    "target": format!("127.0.0.1:{}", 21_000 + number) })
        })
        .collect();
    let file = place.path(&format!("{gateway}.json"));
    std::fs::write(&file, serde_json::to_vec(&list)?)?;
    let control = place.text(&format!("{gateway}.control"));
    let words = ["register", "--control", &control, "--sandboxes", &file.to_string_lossy()];
    place.ask(&[words.as_slice(), &["--certificates", &place.text("")]].concat()).map(drop)
}

/// A guest with a forwarder of ours.
pub(super) struct Guest<'a> {
    pub(super) number: u16,
    pub(super) port: u16,
    pub(super) agent: &'a str,
    pub(super) polite: bool,
}

impl Guest<'_> {
    /// Starts the forwarder, as an image starts it.
    pub(super) fn start(&self, place: &Place, more: &[&str]) -> Result<Serving> {
        let config = self.write_config(place)?;
        let listen = format!("127.0.0.1:{}", self.port);
        let sources = place.text("bind-sources");
        let pod = place.pod_namespace();
        let agent = place.text(self.agent);
        let mut words = vec![place.programs.forwarder.to_string_lossy().into_owned()];
        let args = ["-config", &config, "-listen", &listen, "-kata-agent-socket", &agent];
        words.extend(args.map(str::to_owned));
        words.extend(
            ["-pod-namespace", &pod.to_string_lossy(), "-bind-source-dirs", &sources].map(str::to_owned),
        );
        words.extend(more.iter().map(|&word| word.to_owned()));
        place.serve(&format!("guest-{}", self.number), &words, self.polite, &Sign::Tcp(listen))
    }

    /// Writes what the daemon would give it. All pods share a namespace, so each has its own interface.
    fn write_config(&self, place: &Place) -> Result<String> {
        let number = self.number;
        let read =
            |name: &str| std::fs::read_to_string(place.path(name)).with_context(|| format!("read {name}"));
        let config = json!({
            "pod-network": {
                "podip": format!("10.244.{}.{}/32", number / 250, 2 + number % 250),
                "pod-hw-addr": format!("6a:1b:2c:3d:{:02x}:{:02x}", number / 256, number % 256),
                "interface": format!("e{number}"),
                "worker-node-ip": "10.77.0.1/24",
                "tunnel-type": "vxlan",
                "routes": [],
                "neighbors": null,
                "mtu": 1450,
                "index": number,
                "vxlan-port": 4789,
                "vxlan-id": 555_000 + u32::from(number),
                "dedicated": false,
                "external-net-via-pod-vm": false,
            },
            "pod-namespace": "default",
            "pod-name": format!("p{number}"),
            "tls-server-key": read("server-key.pem")?,
            "tls-server-cert": read("server.pem")?,
            "tls-client-ca": read("client.pem")?,
        });
        // A folder of its own: the forwarder keeps a second name of the agent's socket beside it.
        let folder = place.path(&format!("guest-{number}"));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join("apf.json");
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

/// What is put into a command line.
struct Words<'a> {
    place: &'a Place,
    port: u16,
    listen: &'a str,
    connect: &'a str,
}

impl Words<'_> {
    fn fill(&self, template: &str, files: [&str; 3], config: &str) -> Result<Vec<String>> {
        let [ca, cert, key] = files.map(|name| self.place.text(name));
        let port = self.port.to_string();
        let pod = self.place.pod_namespace().to_string_lossy().into_owned();
        let dir = self.place.text("");
        let known = [
            ("{listen}", self.listen),
            ("{connect}", self.connect),
            ("{host}", "127.0.0.1"),
            ("{port}", &port),
            ("{ca}", &ca),
            ("{cert}", &cert),
            ("{key}", &key),
            ("{server-name}", SERVER_NAME),
            ("{config}", config),
            ("{pod-namespace}", &pod),
            ("{dir}", &dir),
        ];
        fill(template, &known)
    }
}

fn fill(template: &str, known: &[(&str, &str)]) -> Result<Vec<String>> {
    let words = template.split_whitespace().map(|word| {
        let word = known.iter().fold(word.to_owned(), |word, (name, value)| word.replace(name, value));
        let unknown = word.find('{').filter(|at| word[*at..].contains('}'));
        anyhow::ensure!(unknown.is_none(), "{word:?} names nothing that is known (see --help)");
        Ok(word)
    });
    words.collect()
}

/// How long a load runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) Duration);

impl Time {
    /// As the option of the load generator.
    pub(super) fn millis(self) -> String {
        self.0.as_millis().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_have_their_chains_whatever_is_asked_for() {
        let names = |given: &[&str]| -> Vec<String> {
            let given = given.iter().map(|text| Chain::parse(text).unwrap()).collect();
            Chain::with_floor(given).into_iter().map(|chain| chain.name).collect()
        };
        assert_eq!(names(&["ours", "splice-unix"]), ["direct", "splice-tls", "ours", "splice-unix"]);
        assert_eq!(names(&["x=;/bin/f {listen}"]), ["direct", "splice-tls", "ours", "x"]);
        assert!(names(&[]).contains(&"ours-level0".to_owned()));
    }

    #[test]
    fn a_half_that_is_left_out_is_ours() {
        let Shape::Hops { gateway, forwarder } = Chain::parse("go=/bin/g {listen};").unwrap().shape else {
            panic!("two hops")
        };
        assert_eq!((gateway, forwarder), (Hop::Template("/bin/g {listen}".to_owned()), Hop::Ours));
        assert!(Chain::parse("go=/bin/g").unwrap_err().contains("NAME=GATEWAY;FORWARDER"));
        assert!(Chain::parse("nonsense").unwrap_err().contains("nonsense"));
    }

    #[test]
    fn templates_are_filled_and_unknown_names_are_told() {
        let known = [("{listen}", "/run/a b"), ("{port}", "15150")];
        assert_eq!(
            fill("gw -l {listen} 127.0.0.1:{port}", &known).unwrap(),
            ["gw", "-l", "/run/a b", "127.0.0.1:15150"]
        );
        assert!(fill("gw {lisen}", &known).unwrap_err().to_string().contains("{lisen}"));
    }
}

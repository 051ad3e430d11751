//! `fault-proxy`: the proxy as a program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use fault_proxy::control::Control;
use fault_proxy::ec2::{Ec2, Settings};
use fault_proxy::{Conversation, HttpFaultProxy, Options, Rule, Upstream};

fn cli() -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("fault-proxy")
        .about("Passes HTTP calls on to a server and does to some of them what rules say")
        .arg(
            text("upstream", "URL", "Where calls go, such as http://127.0.0.1:5000")
                .required_unless_present("replay"),
        )
        .arg(address("listen", "127.0.0.1:0", "Where calls are taken"))
        .arg(address("control", "127.0.0.1:0", "Where orders are taken; whoever reaches it gives orders"))
        .arg(text("rules", "FILE", "Rules to begin with: a JSON list").value_parser(value_parser!(PathBuf)))
        .arg(
            text("seed", "NUMBER", "What chance begins with")
                .default_value("0")
                .value_parser(value_parser!(u64)),
        )
        .arg(
            text("behaviour", "NAME", "What is supplied where the server is not faithful")
                .value_parser(["none", "ec2"])
                .default_value("none"),
        )
        .arg(text("settings", "JSON", "Settings of the behaviour; by default what is usual in tests"))
        .arg(
            text("record", "FILE", "Write what is said to a file, without secrets")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            text("replay", "FILE", "Answer from a recorded file in place of a server")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with_all(["upstream", "record"]),
        )
        .arg(
            text("ignore-field", "NAME", "A field that recorded and replayed calls need not have in common")
                .action(ArgAction::Append)
                .requires("replay"),
        )
}

fn address(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let parser = value_parser!(SocketAddr);
    Arg::new(name).long(name).value_name("ADDRESS").default_value(default).value_parser(parser).help(help)
}

#[tokio::main]
async fn main() -> Result<()> {
    run(&cli().get_matches()).await
}

async fn run(matches: &ArgMatches) -> Result<()> {
    let path = |name: &str| matches.get_one::<PathBuf>(name);
    let upstream = match path("replay") {
        Some(file) => {
            let ignored = matches.get_many::<String>("ignore-field").unwrap_or_default();
            let ignored: Vec<String> = ignored.cloned().collect();
            Upstream::replay(Conversation::read(file)?.ignoring(&ignored))
        }
        None => Upstream::server(matches.get_one::<String>("upstream").map_or("", String::as_str))?,
    };
    let upstream = match path("record") {
        Some(file) => upstream.recording(file)?,
        None => upstream,
    };
    let get = |name: &str| matches.get_one::<SocketAddr>(name).copied().context("clap gives a default");
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or_default();
    let mut options = Options::default().with_listen(get("listen")?).with_seed(seed);
    if matches.get_one::<String>("behaviour").is_some_and(|name| name == "ec2") {
        let settings = match matches.get_one::<String>("settings") {
            Some(text) => serde_json::from_str(text).context("--settings")?,
            None => Settings::realistic(),
        };
        options = options.with_behaviour(Arc::new(Ec2::new(settings)));
    }
    let proxy = HttpFaultProxy::start(upstream, options).await?;
    if let Some(file) = path("rules") {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let rules: Vec<Rule> = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        for rule in rules {
            proxy.add(rule).with_context(|| file.display().to_string())?;
        }
    }
    let control = Control::start(&proxy, get("control")?).await?;
    println!("proxy http://{}", proxy.address());
    println!("control http://{}", control.address());
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = end.recv() => {}
        told = tokio::signal::ctrl_c() => told?,
    }
    Ok(())
}

//! `setup-aws`: the set-up as a program.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use ipnet::Ipv4Net;
use setup_aws::{Access, Account, ImageOptions, Name, NetworkOptions, State, WorkerOptions, leftovers, plan};

fn cli() -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let everywhere = [
        text("name", "NAME", "Name of the set-up; everything carries it as a tag")
            .default_value("peerpod-e2e"),
        text("region", "REGION", "Region; otherwise that of environment or profile"),
        text("endpoint", "URL", "Another address of the service, such as that of an emulator"),
        text("state", "FILE", "Where to write what there is").default_value("setup-aws.json"),
    ];
    Command::new("setup-aws")
        .about("Network, image and worker machine for tests on AWS, and their removal")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(everywhere.map(|arg| arg.global(true)))
        .subcommand(
            Command::new("plan")
                .about("Says what a live run makes, and the class of its cost; asks nothing")
                .arg(
                    text("pods", "NUMBER", "How many pod VMs")
                        .default_value("1")
                        .value_parser(value_parser!(u32)),
                )
                .arg(text("instance-type", "TYPE", "Type of pod VMs").default_value("m6a.large")),
        )
        .subcommand(
            Command::new("network")
                .about("Makes VPC, subnets, routes and security group, or finds them")
                .arg(
                    text("cidr", "CIDR", "Addresses of the VPC")
                        .default_value("10.83.0.0/16")
                        .value_parser(value_parser!(Ipv4Net)),
                )
                .arg(
                    text("zones", "NUMBER", "In how many zones")
                        .default_value("2")
                        .value_parser(value_parser!(u8).range(1..=8)),
                )
                .arg(text("instance-type", "TYPE", "What the zones have to offer").default_value("m6a.large"))
                .arg(text("vpc", "ID", "A VPC that is there; it is used and never deleted"))
                .arg(
                    text(
                        "reach-from",
                        "ADDRESS",
                        "From where SSH and the forwarder are reached; may be repeated",
                    )
                    .action(ArgAction::Append)
                    .value_parser(value_parser!(IpAddr)),
                ),
        )
        .subcommand(
            Command::new("image")
                .about("Makes an image of a raw disk, or finds the one of the same bytes")
                .arg(text("disk", "FILE", "The raw disk").required(true).value_parser(value_parser!(PathBuf)))
                .arg(
                    text("architecture", "NAME", "Architecture of its programs")
                        .value_parser(["x86_64", "arm64"])
                        .default_value("x86_64"),
                ),
        )
        .subcommand(
            Command::new("worker")
                .about("Makes a machine to log in to, or finds it")
                .arg(text("instance-type", "TYPE", "Its type").default_value("t3.medium"))
                .arg(text("worker-image", "AMI", "Its image; otherwise the newest of Debian 12"))
                .arg(text("public-key", "FILE", "Who may log in").value_parser(value_parser!(PathBuf))),
        )
        .subcommand(
            Command::new("show").about("Lists what there is by its tag, and the variables of the provider"),
        )
        .subcommand(
            Command::new("delete").about("Deletes what carries the tag, and looks whether it is gone"),
        )
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&cli().get_matches()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("setup-aws: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn get<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map_or("", String::as_str)
}

async fn run(matches: &ArgMatches) -> Result<()> {
    let (command, sub) = matches.subcommand().context("clap demands one")?;
    if command == "plan" {
        let pods = sub.get_one::<u32>("pods").copied().unwrap_or_default();
        for line in plan(true, pods, get(sub, "instance-type")) {
            println!("{line}");
        }
        return Ok(());
    }
    let name = Name::new(get(sub, "name"))?;
    let text = |name: &str| sub.get_one::<String>(name).cloned();
    let access = Access { region: text("region"), endpoint: text("endpoint"), keys: None };
    let account = Account::open(&access).await?;
    let path = PathBuf::from(get(sub, "state"));
    let mut state = State::read(&path, name.as_str(), account.region())?;
    match command {
        "network" => {
            let options = NetworkOptions {
                cidr: *sub.get_one("cidr").context("clap has a default")?,
                zones: sub.get_one::<u8>("zones").copied().map_or(2, usize::from),
                instance_type: get(sub, "instance-type").to_owned(),
                reach_from: sub.get_many("reach-from").unwrap_or_default().copied().collect(),
                vpc: text("vpc"),
            };
            let network = account.network(&name, &options).await?;
            println!("network {} with {} and {}", network.vpc, network.subnets.join(", "), network.group);
            state.network = Some(network);
        }
        "image" => {
            let disk = sub.get_one::<PathBuf>("disk").context("clap demands it")?.clone();
            let options = ImageOptions { disk, architecture: get(sub, "architecture").to_owned() };
            let uploaded = account.image(&name, &options).await?;
            println!("image {} ({} blocks sent)", uploaded.image, uploaded.blocks);
            state.image = Some(uploaded.image);
        }
        "worker" => {
            let network =
                state.network.as_ref().context("there is no network yet: run `setup-aws network`")?;
            let key = sub.get_one::<PathBuf>("public-key");
            let read = |path: &PathBuf| {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
            };
            let options = WorkerOptions {
                instance_type: text("instance-type"),
                image: text("worker-image"),
                public_key: key.map(read).transpose()?,
            };
            let worker = account.worker(&name, network, &options).await?;
            println!(
                "worker {} at {}",
                worker.instance,
                worker.public_address.as_deref().unwrap_or("no address")
            );
            state.worker = Some(worker);
        }
        "show" => {
            for id in leftovers(&account, &name).await? {
                println!("{id}");
            }
            for (variable, value) in state.variables() {
                println!("{variable}={value}");
            }
            return Ok(());
        }
        _ => {
            let done = account.delete(&name).await?;
            for id in &done.deleted {
                println!("deleted {id}");
            }
            println!("nothing is left of {}", name.as_str());
            if path.exists() {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            return Ok(());
        }
    }
    state.write(&path)
}

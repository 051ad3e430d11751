#![doc = include_str!("../README.md")]

mod bench;
mod book;
mod bundle;
mod campaign;
mod check_targets;
mod command;
mod context;
mod demo;
mod deny;
mod dist;
mod docs;
mod e2e;
mod features;
mod fuzz;
mod http;
mod inputs;
mod kubernetes;
mod leftovers;
mod light;
mod limits;
mod machines;
mod manifests;
mod measure;
mod metrics;
mod new_provider;
mod outside;
mod podvm;
mod programs;
mod registry;
mod release;
mod sdk;
mod setup;
mod signals;
mod storm;
mod test;
mod tidy;
mod tools;
mod world;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::context::Context;

fn main() -> ExitCode {
    let matches = cli().get_matches();
    let mut context = match Context::from_process() {
        Ok(context) => context,
        Err(error) => return fail(&error),
    };
    // What builds nothing need not wait for others.
    let builds = !matches!(matches.subcommand_name(), Some("deny" | "setup" | "tidy"));
    let claimed = if builds { context.claim_target() } else { Ok(None) };
    match claimed.and_then(|_claimed| run(&mut context, &matches)) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Something that only the reader can mend (missing programs, missing rights) has a code of its own.
    let code = if error.downcast_ref::<setup::Missing>().is_some() { 2 } else { 1 };
    eprintln!("cargo xtask: {error:#}");
    ExitCode::from(code)
}

fn run(context: &mut Context, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match matches.subcommand() {
        Some(("test", sub)) => {
            deny::take_database(context, sub);
            test::run(context, &test::Options::from_matches(sub))
        }
        Some(("demo", sub)) => {
            let options = demo::Options::from_matches(sub);
            context.quiet_stdout = options.json();
            demo::run(context, &options)
        }
        Some(("bench", sub)) => bench::run(context, sub),
        Some(("campaign", sub)) => {
            for simulation in [campaign::sim::NODE, campaign::sim::CLUSTER] {
                if let Some(sub) = sub.subcommand_matches(simulation.name) {
                    return campaign::sim::run(context, simulation, sub);
                }
            }
            if let Some(sub) = sub.subcommand_matches("together") {
                return campaign::together::run(context, &campaign::together::Options::from_matches(sub));
            }
            let sub = sub.subcommand_matches("real").expect("clap demands one of them");
            campaign::run(context, &campaign::Options::from_matches(sub))
        }
        Some(("podvm", sub)) => {
            let sub = sub.subcommand_matches("build").expect("clap demands the subcommand");
            // Standard output has the path alone, for scripts.
            context.quiet_stdout = true;
            podvm::run(context, sub).map(|()| ExitCode::SUCCESS)
        }
        Some(("kubernetes", _)) => {
            // Standard output has the path alone, for scripts.
            context.quiet_stdout = true;
            kubernetes::run(context).map(|()| ExitCode::SUCCESS)
        }
        Some(("manifests", sub)) => manifests::run(context, sub).map(|()| ExitCode::SUCCESS),
        Some(("outside", _)) => outside::run(context),
        Some(("registry", sub)) => registry::run(context, sub),
        Some(("new-provider", sub)) => new_provider::run(context, sub),
        Some(("deny", sub)) => deny::run(context, sub),
        Some(("dist", sub)) => dist::run(context, sub),
        Some(("limits", sub)) => limits::run(context, sub),
        Some(("measure", sub)) => {
            let options = measure::Options::from_matches(sub);
            context.quiet_stdout = options.json();
            measure::run(context, &options)
        }
        Some(("check-targets", sub)) => check_targets::run(context, sub),
        Some(("fuzz", sub)) => fuzz::run(context, sub),
        Some(("features", sub)) => features::run(context, sub),
        Some(("release", sub)) => release::run(context, sub),
        Some(("storm", sub)) => storm::run(context, sub),
        Some(("e2e", sub)) => e2e::run(context, sub),
        Some(("docs", sub)) => docs::run(context, sub),
        Some(("tidy", _)) => tidy::run(context),
        Some(("setup", _)) => {
            setup::install(context, setup::Need::Tests)?;
            println!("everything that the demo and the tests use is installed");
            Ok(ExitCode::SUCCESS)
        }
        _ => unreachable!("clap demands one of the subcommands"),
    }
}

fn cli() -> Command {
    Command::new("cargo xtask")
        .about("The project's own tasks")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("demo")
                .about("Shows one pod from the first call of the shim to the last trace of it")
                .arg(machines::Provider::arg_with_emulated())
                .arg(flag("keep", "Leave it running and say how to look at it"))
                .arg(flag("clean", "End demos that were kept or whose task was killed"))
                .arg(flag("json", "Print one JSON object; everything else goes to standard error"))
                .arg(
                    Arg::new("agent")
                        .long("agent")
                        .value_name("PATH")
                        .value_parser(clap::value_parser!(std::path::PathBuf))
                        .help("Run this agent in the guest in place of the test agent"),
                )
                .arg(
                    Arg::new("uri")
                        .long("uri")
                        .value_name("URI")
                        .help("Use this libvirtd, such as qemu:///system, in place of starting one"),
                )
                .arg(
                    Arg::new("image")
                        .long("image")
                        .value_name("PATH")
                        .value_parser(clap::value_parser!(std::path::PathBuf))
                        .help("Boot this qcow2 image, with --provider libvirt, in place of building one"),
                )
                .arg(
                    Arg::new("programs")
                        .long("programs")
                        .value_name("FOLDER")
                        .value_parser(clap::value_parser!(std::path::PathBuf))
                        .help("Run the programs in this folder in place of building them"),
                )
                .arg(flag("one-id", "Without root: map your user alone, and no ranges of /etc/subuid"))
                .arg(
                    Arg::new("gateway")
                        .long("gateway")
                        .value_name("MODE")
                        .value_parser(["process", "in-process"])
                        .default_value("process")
                        .help("Whether the gateway is a program of its own or part of the daemon"),
                ),
        )
        .subcommand(storm::command())
        .subcommand(e2e::command())
        .subcommand(
            Command::new("test")
                .about("Runs the stages of the test, fast to slow; heavy ones only when their inputs changed")
                .arg(flag("all", "Run every stage, also those whose inputs are unchanged"))
                .arg(flag("list", "List the stages and end"))
                .arg(deny::database_arg())
                .arg(
                    Arg::new("stage")
                        .long("stage")
                        .value_name("NAME")
                        .action(ArgAction::Append)
                        .help("Run this stage only; may be given more than once"),
                ),
        )
        .subcommand(bench::command())
        .subcommand(
            Command::new("campaign")
                .about("Does harm, and looks at what becomes of it")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(campaign::sim::command(campaign::sim::NODE))
                .subcommand(campaign::sim::command(campaign::sim::CLUSTER))
                .subcommand(campaign::together::command())
                .subcommand(
                    Command::new("real")
                        .about(
                            "Kills the daemon at random moments under running pods, over the real programs",
                        )
                        .arg(number("kills", "How often the daemon is killed [default: 100]"))
                        .arg(number("sandboxes", "How many pods run all the while [default: 20]"))
                        .arg(
                            Arg::new("seed")
                                .long("seed")
                                .value_name("NUMBER")
                                .value_parser(clap::value_parser!(u64))
                                .help("Where the random moments begin; the one in use is printed"),
                        ),
                ),
        )
        .subcommand(podvm::command())
        .subcommand(kubernetes::command())
        .subcommand(manifests::command())
        .subcommand(registry::command())
        .subcommand(outside::command())
        .subcommand(new_provider::command())
        .subcommand(deny::command())
        .subcommand(dist::command())
        .subcommand(features::command())
        .subcommand(fuzz::command())
        .subcommand(check_targets::command())
        .subcommand(release::command())
        .subcommand(limits::command())
        .subcommand(measure::command())
        .subcommand(docs::command())
        .subcommand(Command::new("tidy").about("Checks what no compiler checks: layout, docs, dependencies"))
        .subcommand(
            Command::new("setup").about("Installs what the demo and the tests use (Debian and Ubuntu)"),
        )
}

fn number(name: &'static str, help: &'static str) -> Arg {
    let parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=200);
    Arg::new(name).long(name).value_name("N").value_parser(parser).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

//! `storm`: the storm as a program.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use storm::{Live, Options, Report, Scripted, Sky, run};

fn cli() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let number =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("NUMBER").help(help);
    Command::new("storm")
        .about("Makes and deletes many instances under faults, and looks for what is left")
        .arg(
            Arg::new("provider")
                .long("provider")
                .value_parser(["aws", "scripted"])
                .default_value("scripted")
                .help("Over which cloud"),
        )
        .arg(
            number("pods", "How many instances")
                .default_value("500")
                .value_parser(value_parser!(u32).range(1..)),
        )
        .arg(
            number("at-once", "How many at a time")
                .default_value("50")
                .value_parser(value_parser!(u16).range(1..)),
        )
        .arg(number("throttled", "Share of calls that are too many").default_value("0.1").value_parser(share))
        .arg(
            number("faults", "Share of calls that fail before, and of those that fail after their effect")
                .default_value("0.05")
                .value_parser(share),
        )
        .arg(number("seed", "What chance begins with").default_value("0").value_parser(value_parser!(u64)))
        .arg(flag("live", "The provider with the settings of the environment, in whatever account that is"))
        .arg(
            Arg::new("scope")
                .long("scope")
                .value_name("NAME")
                .help("The cluster that instances are tagged with"),
        )
        .arg(
            number("connect", "The port at which each instance has to answer")
                .value_parser(value_parser!(u16).range(1..)),
        )
        .arg(flag("quiet", "No faults; check the number of calls"))
        .arg(flag("json", "Print one JSON object"))
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=0.9).contains(share)).ok_or("a share is 0 to 0.9".to_owned())
}

fn main() -> ExitCode {
    match go(&cli().get_matches()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn go(matches: &ArgMatches) -> Result<ExitCode> {
    let get = |name: &str| matches.get_one::<f64>(name).copied().context("clap has a default");
    let pods = matches.get_one::<u32>("pods").copied().context("clap has a default")?;
    let quiet = matches.get_flag("quiet");
    let mut options = if quiet { Options::quiet(pods) } else { Options::storm(pods) };
    if !quiet {
        (options.throttled, options.faults) = (get("throttled")?, get("faults")?);
    }
    options.at_once = matches.get_one::<u16>("at-once").copied().map_or(options.at_once, usize::from);
    options.seed = matches.get_one::<u64>("seed").copied().unwrap_or_default();
    options.scope = matches.get_one::<String>("scope").cloned().unwrap_or(options.scope);
    options.connect = matches.get_one::<u16>("connect").copied();
    let name = matches.get_one::<String>("provider").map_or("scripted", String::as_str);
    if matches.get_flag("live") {
        let report = live(name, &options)?;
        println!("{report}");
        return Ok(if report.calm_problems().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let over_aws = name == "aws";
    let report = if over_aws { aws(&options)? } else { virtually(&options)? };
    let problems = match (quiet, over_aws) {
        (false, _) => report.problems(),
        // The double makes more calls by design: it shows every step that a cloud may have.
        (true, false) => report.calm_problems(),
        (true, true) => report.quiet_problems(),
    };
    if matches.get_flag("json") {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    for problem in &problems {
        eprintln!("storm: {problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// In virtual time, in which nobody waits.
fn virtually(options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(async { run(&Scripted::new() as &dyn Sky, options).await })
}

/// Runs until it is done, or a signal asks for the end.
async fn until_told(work: impl Future<Output = Result<Report>>) -> Result<Report> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        report = work => report,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("told to end"),
    }
}

/// In the account of the environment, without faults.
fn live(provider: &str, options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let sky = Live::start(provider, options).await?;
        let report = until_told(run(&sky, options)).await;
        // What was cut short, by a signal or an error, must not go on costing money.
        let swept = sky.sweep().await;
        report.and_then(|report| swept.map(|()| report))
    })
}

#[cfg(feature = "aws")]
fn aws(options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let sky = storm::Aws::start(options).await?;
        // Told to end, it is dropped here, and the emulator ends with it.
        until_told(run(&sky, options)).await
    })
}

#[cfg(not(feature = "aws"))]
fn aws(_: &Options) -> Result<Report> {
    anyhow::bail!("this program was built without the provider aws: build it with --features aws")
}

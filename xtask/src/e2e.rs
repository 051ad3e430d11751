//! `cargo xtask e2e`: from nothing to pod VMs, and back to nothing. In an account it makes network, image and pod VMs; with
//! `local` and `libvirt` a worker machine and pods on it.

pub(crate) mod worker;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use fault_proxy::ec2::{Ec2, Probe, Settings};
use fault_proxy::{HttpFaultProxy, Upstream};
use test_support::Moto;

use crate::command::Run;
use crate::context::Context;
use crate::machines::Provider;
use crate::signals::Ends;
use crate::{podvm, sdk, setup};

/// One step; machines of an account take minutes.
const LIMIT: Duration = Duration::from_secs(45 * 60);
const PROVIDER: &str = "cloud-providers-aws";
const REGION: &str = "us-east-1";

/// The command line.
pub(crate) fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("e2e")
        .about("From nothing to pods and back: on a worker machine, or with network and image in an account")
        .arg(
            text("provider", "NAME", "Who makes the machines; the other options are for accounts (aws)")
                .value_parser(["local", "libvirt", "aws"])
                .required(true),
        )
        .arg(
            flag("live", "Really do it, in the account that the SDK finds; costs money")
                .conflicts_with("emulator"),
        )
        .arg(flag("emulator", "Rehearse it against an emulator"))
        .arg(text("region", "REGION", "Region of the account; otherwise that of environment or profile"))
        .arg(
            text(
                "reach-from",
                "ADDRESS",
                "The address of this machine as the cloud sees it, for the ports of pod VMs",
            )
            .value_parser(value_parser!(IpAddr))
            .required_if_eq("live", "true"),
        )
        .arg(
            text("pods", "NUMBER", "How many pod VMs")
                .default_value("1")
                .value_parser(value_parser!(u32).range(1..=50)),
        )
        .arg(text("instance-type", "TYPE", "Their type").default_value("m6a.large"))
        .arg(flag("plain", "Pod VMs without SEV-SNP, which few types and regions have"))
}

/// What is used and where it is.
struct Plan {
    name: String,
    pods: u32,
    instance_type: String,
    plain: bool,
    reach_from: Option<IpAddr>,
    region: Option<String>,
    /// The emulator's address, and nothing for an account.
    endpoint: Option<String>,
    setup: PathBuf,
    storm: PathBuf,
    folder: tempfile::TempDir,
}

/// Runs it.
///
/// # Errors
///
/// When a step fails; what was made is deleted all the same.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let provider = Provider::from_matches(matches);
    if provider != Provider::Aws {
        return worker::run(context, provider);
    }
    let live = matches.get_flag("live");
    let pods = matches.get_one::<u32>("pods").copied().unwrap_or(1);
    let instance_type = matches.get_one::<String>("instance-type").cloned().unwrap_or_default();
    if !live && !matches.get_flag("emulator") {
        let text = "with --live this makes, in the account that the SDK finds, and deletes again:\n\
             \x20 1 VPC, 1 internet gateway, 1 route table, 1 security group, up to 2 subnets (free)\n\
             \x20 1 snapshot of about 100 MB and 1 image of it (cents a month, kept for minutes)\n";
        return Err(setup::Missing(format!(
            "{text}  {pods} instances {instance_type} with public addresses (billed by the second, for minutes)\n\
             add --live --reach-from ADDRESS to do it, or --emulator to rehearse it"
        ))
        .into());
    }
    let storm = sdk::program(context, PROVIDER, "storm")?;
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let mut plan = Plan {
        name: format!("e2e-{seconds}-{}", std::process::id()),
        pods,
        instance_type,
        plain: matches.get_flag("plain"),
        reach_from: matches.get_one::<IpAddr>("reach-from").copied(),
        region: matches.get_one::<String>("region").cloned(),
        endpoint: None,
        setup: storm.with_file_name("setup-aws"),
        storm,
        folder: tempfile::tempdir()?,
    };
    if live {
        return through(context, &plan, None);
    }
    setup::install(context, setup::Need::Emulator)?;
    let moto = Moto::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let options = fault_proxy::Options::default().with_behaviour(Arc::new(Ec2::new(Settings::realistic())));
    let proxy = runtime.block_on(HttpFaultProxy::start(Upstream::server(&moto.url())?, options))?;
    plan.endpoint = Some(proxy.url());
    plan.region = Some(REGION.to_owned());
    let probe = Probe::new(&moto.url(), REGION)?;
    let code = through(context, &plan, Some(&runtime))?;
    let left = runtime.block_on(probe.leftovers())?;
    if !left.is_empty() {
        bail!("the emulator still has {}", left.join(", "));
    }
    Ok(code)
}

/// Runs as a stage of the test: the rehearsal.
///
/// # Errors
///
/// When a step fails or something is left.
pub(crate) fn stage(context: &Context) -> Result<String> {
    let matches = command().try_get_matches_from(["e2e", "--provider", "aws", "--emulator"])?;
    let code = run(context, &matches)?;
    anyhow::ensure!(code == ExitCode::SUCCESS, "see above");
    Ok("network, image and a pod VM, made and deleted on an emulator".to_owned())
}

/// Everything, with the deletion whatever becomes of it.
fn through(context: &Context, plan: &Plan, runtime: Option<&tokio::runtime::Runtime>) -> Result<ExitCode> {
    // A signal ends the step that runs, since it goes to the whole group; then everything is deleted.
    let own;
    let runtime = match runtime {
        Some(runtime) => runtime,
        None => {
            own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            &own
        }
    };
    let _ends = Ends::watch(runtime)?;
    context.say(format!("set-up {}", plan.name));
    let done = steps(context, plan);
    if let Err(error) = &done {
        context.say(format!("\nfailed: {error:#}\ndeleting what was made"));
    }
    let deleted = plan.setup(context).arg("delete").visible(LIMIT);
    if let Err(error) = &deleted {
        context.say(format!(
            "NOT EVERYTHING IS DELETED: {error:#}\nmend it and run: setup-aws delete --name {}{}",
            plan.name,
            plan.region.as_ref().map(|region| format!(" --region {region}")).unwrap_or_default()
        ));
    }
    Ok(if done.is_ok() && deleted.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn steps(context: &Context, plan: &Plan) -> Result<()> {
    let mut network = plan.setup(context).args(["network", "--instance-type", &plan.instance_type]);
    if let Some(address) = plan.reach_from {
        network = network.args(["--reach-from", &address.to_string()]);
    }
    network.visible(LIMIT)?;
    let options = podvm::Options { format: podvm::Format::Raw, ..podvm::Options::default() };
    let image = podvm::build(context, &options)?;
    plan.setup(context).args(["image", "--disk"]).arg(image.path).visible(LIMIT)?;
    let shown = plan.setup(context).arg("show").stdout()?;
    let mut storm = plan.with_account(context.program(&plan.storm));
    for line in shown.lines() {
        if let Some((name, value)) = line.split_once('=') {
            storm = storm.env(name, value);
        }
    }
    let pods = plan.pods.to_string();
    storm = storm.env("PODVM_INSTANCE_TYPE", &plan.instance_type).env("USE_PUBLIC_IP", "true");
    storm = storm.env("DISABLECVM", if plan.plain { "true" } else { "false" });
    storm = storm.args(["--provider", "aws", "--live", "--pods", &pods, "--scope", &plan.name]);
    if plan.endpoint.is_none() {
        // A machine that runs is one whose forwarder answers.
        storm = storm.args(["--connect", "15150"]);
    }
    storm.visible(LIMIT).context("the pod VMs").map(drop)
}

impl Plan {
    fn setup(&self, context: &Context) -> Run {
        let state = self.folder.path().join("state.json");
        let run = self.with_account(context.program(&self.setup));
        let mut run = run.args(["--name", &self.name]).arg("--state").arg(state);
        if let Some(endpoint) = &self.endpoint {
            run = run.args(["--endpoint", endpoint]);
        }
        if let Some(region) = &self.region {
            run = run.args(["--region", region]);
        }
        run
    }

    /// The account of the environment, or the emulator and nothing else.
    fn with_account(&self, run: Run) -> Run {
        let run = match &self.region {
            Some(region) => run.env("AWS_REGION", region),
            None => run,
        };
        let Some(endpoint) = &self.endpoint else { return run };
        run.env_remove("AWS_PROFILE")
            .env_remove("AWS_SESSION_TOKEN")
            .env("AWS_ACCESS_KEY_ID", "rehearsal")
            .env("AWS_SECRET_ACCESS_KEY", "rehearsal")
            .env("AWS_ENDPOINT_URL", endpoint)
            .env("AWS_EC2_METADATA_DISABLED", "true")
    }
}

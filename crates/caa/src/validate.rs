//! `cloud-api-adaptor <provider> validate`, and `-cloud-config-verify`: everything that is wrong with a configuration and
//! can be found before the first pod, in one report.

mod certificates;
mod checks;
mod folders;
mod kernel;
mod node;
mod outside;
mod settings;
mod together;

use std::{ffi::OsString, io::Write as _, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Result, anyhow, bail};
use cloud_providers::{CheckOutcome, EnvSource, Finding, OptionSpec, Provider, VerifyReport};
use serde::Serialize;

pub use checks::table;

use crate::{
    cli::{self, Read},
    config, log,
    trace::Traces,
};
use settings::Options;

/// The word after the provider.
pub(crate) const WORD: &str = "validate";
const DONE: (u8, &str) = (0, "nothing failed; warnings and what could not be checked are no failure");
const FINDINGS: (u8, &str) = (1, "something failed");
pub(crate) const USAGE: (u8, &str) = (2, "the command line cannot be read, such as an unknown provider");

/// Every exit code of this command with its meaning.
pub const EXITS: [(u8, &str); 3] = [DONE, FINDINGS, USAGE];

/// The flags of this command, beside those of the daemon and the provider.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::bool("live", "ask the cloud and the cluster as well, without changing anything in them")
        .default("false"),
    OptionSpec::bool("json", "print the report as JSON").default("false"),
];

/// What is printed as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    provider: &'a str,
    live: bool,
    ok: bool,
    findings: &'a [Finding],
}

/// Looks at the configuration of a command line, `<provider> validate [options]`, as the program does.
///
/// # Errors
///
/// When the command line cannot be read, or is none of this command.
pub fn report(args: &[OsString], env: &dyn EnvSource) -> Result<VerifyReport> {
    match cli::parse(args, env).map_err(|error| anyhow!(error.report()))? {
        cli::Command::Validate { mut read, live, .. } => inspect(&mut read, live),
        _ => bail!("the command line does not ask for {WORD}"),
    }
}

/// Prints the report. Exit codes: 0 when nothing failed, 1 when something did.
pub(crate) fn run(mut read: Read, live: bool, json: bool) -> ExitCode {
    let report = match inspect(&mut read, live) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(FINDINGS.0);
        }
    };
    let text = match json {
        false => report.to_string(),
        true => {
            let provider = read.registration.name;
            let shown = Shown { provider, live, ok: report.is_ok(), findings: &report.findings };
            let text = serde_json::to_string_pretty(&shown).expect("a report is plain data with text keys");
            format!("{text}\n")
        }
    };
    // A closed pipe, as before `head`, changes nothing about what was found.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if report.is_ok() { ExitCode::from(DONE.0) } else { ExitCode::from(FINDINGS.0) }
}

fn inspect(read: &mut Read, live: bool) -> Result<VerifyReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if live {
        // A filter that cannot be read is a finding of its own.
        let _ =
            log::init(&read.config.log_level, read.config.log_json, Traces::default(), &read.config.recent);
    }
    let report = runtime.block_on(async {
        let mut report = settings(read);
        report.extend(local(read, false).await);
        report.extend(outside::cluster(&read.config, live && read.problems.is_empty()).await);
        if live && !read.problems.is_empty() {
            let why = "the settings have to be mended before the cloud is asked";
            report.push(Finding::not_checked(checks::PROVIDER, why));
        } else if live {
            let options = options(read);
            let (findings, provider) =
                outside::provider(&read.config, &mut *read.cloud, read.registration.name, options).await;
            report.extend(findings);
            if let Some(provider) = provider {
                outside::free(provider).await;
            }
        }
        report
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(report)
}

/// Makes the provider of a daemon that starts with `-cloud-config-verify`, and looks at everything.
///
/// # Errors
///
/// The whole report, when something failed.
pub(crate) async fn at_start(read: &mut Read) -> Result<Arc<dyn Provider>> {
    let name = read.registration.name;
    // The settings are right, or the daemon had not come here.
    let mut report: VerifyReport = local(read, true).await.into_iter().collect();
    report.extend(outside::cluster(&read.config, true).await);
    let options = options(read);
    let (findings, provider) = outside::provider(&read.config, &mut *read.cloud, name, options).await;
    report.extend(findings);
    for finding in &report.findings {
        match finding.outcome {
            CheckOutcome::Ok => tracing::info!(provider = name, "verified: {finding}"),
            CheckOutcome::Failed => {}
            outcome => tracing::warn!(provider = name, %outcome, "verified: {finding}"),
        }
    }
    match provider {
        Some(provider) if report.is_ok() => Ok(provider),
        provider => {
            if let Some(provider) = provider {
                outside::free(provider).await;
            }
            bail!("-cloud-config-verify: provider {name} cannot work as it is configured:\n{report}")
        }
    }
}

fn options(read: &Read) -> Options {
    Options([config::OPTIONS, read.registration.options])
}

/// Looks at the values alone.
fn settings(read: &Read) -> VerifyReport {
    let options = options(read);
    let of = |outcome, texts: &[String]| {
        texts.iter().map(|text| options.finding(checks::SETTINGS, outcome, text)).collect::<Vec<_>>()
    };
    let mut report: VerifyReport = of(CheckOutcome::Failed, &read.problems).into_iter().collect();
    report.extend(of(CheckOutcome::Warning, &read.config.warnings));
    if read.problems.is_empty() {
        report.push(Finding::ok(checks::SETTINGS, "every option has a value that can be used"));
    }
    report
}

/// Looks at what this node alone can tell. `daemon` says that this process is the daemon.
async fn local(read: &mut Read, daemon: bool) -> Vec<Finding> {
    let options = options(read);
    let (of_provider, _) = read.cloud.settings().parse_all();
    let config = &read.config;
    let mut findings = together::look(config, &read.values, &of_provider, options);
    findings.extend(certificates::look(config, &read.values));
    findings.extend(folders::look(config).await);
    findings.extend(node::ports(config).await);
    findings.extend(node::limits(config));
    findings.push(node::underlay(config));
    findings.push(node::rights(daemon));
    findings.push(kernel::look(config).await);
    findings.extend(outside::gateway(config).await);
    findings
}

//! Which command does what.

use clap::ArgMatches;
use clap_complete::Shell;

use super::{App, args, failure::Failure, look, machines, network, start};
use crate::document;

/// Runs the command of `matches`.
pub(super) async fn command(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    match name {
        "new" => start::new(app, matches).await,
        "check" => start::check(app).await,
        "plan" => start::plan(app).await,
        "up" => Box::pin(start::up(app, matches)).await,
        "init" => Box::pin(start::init(app, matches)).await,
        "destroy" => Box::pin(start::destroy(app, matches)).await,
        "status" => look::status(app).await,
        "hosts" => look::hosts(app, matches),
        "inventory" => look::inventory(app, matches),
        "ssh" => machines::ssh(app, matches).await,
        "exec" => machines::exec(app, matches).await,
        "ips" => network::ips(app, matches).await,
        "emulate" => network::emulate(app, matches).await,
        "providers" => look::providers(app),
        "schema" => {
            let schema = document::schema();
            app.ui.raw(&format!("{}\n", serde_json::to_string_pretty(&schema).unwrap_or_default()));
            Ok(())
        }
        "completions" => {
            let mut text = Vec::new();
            let shell = *matches.get_one::<Shell>("shell").unwrap_or(&Shell::Bash);
            clap_complete::generate(shell, &mut args::command(), "testbed", &mut text);
            app.ui.raw(&String::from_utf8_lossy(&text));
            Ok(())
        }
        other => Err(cloud_providers::Error::internal(format!("the command {other} is not wired")).into()),
    }
}

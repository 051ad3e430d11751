//! Canaries that must not sing.

use std::ffi::OsString;

use cloud_providers::{CreateRequest, OpContext, OptionKind, OptionSpec, clap};

use crate::{
    Effect, Obstacle, Offer,
    context::{Context, ensure},
    interrupt::{Act, Recorder},
    logs,
};

/// A text that stands nowhere else in this process.
const CANARY: &str = "canary-3b1f9c";

pub(crate) async fn never_shown(c: &Context) {
    c.check("credentials", credentials(c)).await;
    c.check("user-data", user_data(c)).await;
}

/// Collects texts and looks for the canary in them.
struct Shown(Vec<(String, String)>);

impl Shown {
    fn add(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.0.push((what.into(), text.into()));
    }

    fn add_error(&mut self, what: &str, error: &cloud_providers::Error) {
        self.add(
            format!("the error of {what}"),
            format!("{error:?} {error} {:?}", std::error::Error::source(error)),
        );
    }

    fn check(self) -> Offer<()> {
        for (what, text) in self.0 {
            let at = text.find(CANARY);
            let around = at.map(|at| text.chars().skip(at.saturating_sub(80)).take(200).collect::<String>());
            ensure!(at.is_none(), "{what} shows a secret: …{}…", around.unwrap_or_default());
        }
        Ok(())
    }
}

fn caught() -> Offer<usize> {
    if logs::catch() { Ok(logs::mark()) } else { Err(Obstacle::unsupported("the log of this process")) }
}

/// Returns a value that holds the canary and parses.
fn secret_value(spec: &OptionSpec) -> String {
    match spec.kind {
        OptionKind::Map => format!("k={CANARY}"),
        _ => CANARY.to_owned(),
    }
}

async fn credentials(c: &Context) -> Offer<()> {
    let specs = c.harness.cloud().settings().specs();
    let secrets: Vec<&OptionSpec> = specs.iter().filter(|s| s.secret).collect();
    if secrets.is_empty() {
        return Err(Obstacle::unsupported("secret options"));
    }
    let start = caught()?;
    let mut shown = Shown(Vec::new());
    let more: Vec<(String, String)> =
        secrets.iter().filter_map(|s| Some((s.env?.to_owned(), secret_value(s)))).collect();
    let args: Vec<OsString> =
        secrets.iter().map(|s| format!("-{}={}", s.flag, secret_value(s)).into()).collect();
    for typed in [false, true] {
        let mut cloud = c.harness.cloud();
        if typed {
            if let Err(error) = cloud.parse_cmd(clap::Command::new("x"), &args) {
                shown.add_error("the command line", &error);
            }
            cloud.load_env(&c.environment(&[]))?;
        } else {
            cloud.load_env(&c.environment(&more))?;
        }
        shown.add("the debug form of the settings", format!("{:?}", cloud.settings()));
        shown.add("the problems", cloud.problems().join("\n"));
        let command = cloud.settings().add_flags(clap::Command::new("x"));
        shown.add("the help", command.clone().render_long_help().to_string());
        match cloud.new_provider().await {
            Err(error) => shown.add_error("new_provider", &error),
            Ok(provider) => {
                shown.add("the debug form of the provider", format!("{provider:?}"));
                let (ctx, request) = (OpContext::new(), c.request());
                let call = provider.create_instance(&ctx, &request);
                match c.within(c.bounds.operation, "the create", call).await? {
                    Ok(instance) => shown.add("the instance", format!("{instance:?}")),
                    Err(error) => shown.add_error("a create with the secret as credential", &error),
                }
                let request = c.request();
                let ctx = Recorder::at(1, Act::Fail).context();
                let call = provider.create_instance(&ctx, &request);
                if let Err(error) = c.within(c.bounds.operation, "the create", call).await? {
                    shown.add_error("a create that fails", &error);
                }
            }
        }
        let found = c.look().await?;
        shown.add("what is in the account", format!("{found:?}"));
    }
    shown.add("the log", logs::since(start).join("\n"));
    shown.check()
}

async fn user_data(c: &Context) -> Offer<()> {
    let start = caught()?;
    let mut shown = Shown(Vec::new());
    let with_canary = |request: CreateRequest| {
        let request = request.with_user_data(format!("#cloud-config\n# {CANARY}\n"));
        c.keep(&request);
        request
    };
    let request = with_canary(c.request());
    let instance = c.create(&request).await?;
    shown.add("the instance", format!("{instance:?}"));
    let provider = c.provider().await?;
    shown.add("the debug form of the provider", format!("{provider:?}"));
    let found = c.look().await?;
    shown.add("what is in the account", format!("{found:?}"));
    if provider.capabilities().list_owned {
        let list = provider.list_owned(&OpContext::new(), &c.scope()).await;
        shown.add("the list", format!("{list:?}"));
    }
    let mut other = request.clone();
    other.holder = "node-2".into();
    if let Err(error) = c.try_create(&OpContext::new(), &other).await? {
        shown.add_error("a create with another request", &error);
    }
    c.delete(&instance).await?;
    let recorder = Recorder::at(1, Act::Fail);
    if let Err(error) = c.try_create(&recorder.context(), &with_canary(c.request())).await? {
        shown.add_error("a create whose record fails", &error);
    }
    if c.can(Effect::Fail).is_ok() {
        let profile = c.profile().await?;
        for nth in c.points(profile.calls()?) {
            c.fault(nth, Effect::Fail).await?;
            let result = c.try_create(&OpContext::new(), &with_canary(c.request())).await?;
            c.harness.clear_faults().await?;
            if let Err(error) = result {
                shown.add_error("a create whose remote call fails", &error);
            }
        }
    }
    shown.add("the log", logs::since(start).join("\n"));
    shown.check()
}

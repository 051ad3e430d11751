//! Commands on machines.

use std::{os::unix::process::CommandExt as _, process::Stdio};

use clap::ArgMatches;
use cloud_providers::{Error, ErrorKind, Result};
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

use super::{App, failure::Failure, open};
use crate::{
    Host, Obtained,
    near::hint,
    ssh::{Outcome, Remote},
};

/// How many machines a command runs on at once.
const AT_ONCE: usize = 64;

/// Returns the machines that `names` stands for: roles or machines, separated by commas, or `all`.
pub(super) fn of<'a>(hosts: &'a [Host], names: &str) -> Result<Vec<&'a Host>> {
    let mut chosen: Vec<&Host> = Vec::new();
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let found: Vec<&Host> =
            hosts.iter().filter(|host| host.alias == name || host.roles.contains(name)).collect();
        let found = if found.is_empty() && name == "all" { hosts.iter().collect() } else { found };
        if found.is_empty() {
            return Err(unknown(hosts, name));
        }
        chosen.extend(found);
    }
    // Each machine once, in the order of the document.
    let chosen: Vec<&Host> =
        hosts.iter().filter(|host| chosen.iter().any(|other| other.alias == host.alias)).collect();
    if chosen.is_empty() { Err(unknown(hosts, names)) } else { Ok(chosen) }
}

fn unknown(hosts: &[Host], name: &str) -> Error {
    let obtained = Obtained::new(hosts.to_vec(), Vec::new());
    let roles: Vec<String> = obtained.roles().into_keys().map(str::to_owned).collect();
    let machines: Vec<&str> = hosts.iter().map(|host| host.alias.as_str()).collect();
    let all = machines.iter().copied().chain(roles.iter().map(String::as_str));
    let error = Error::new(
        ErrorKind::NotFound,
        format!("no machine and no role is called {name:?}{}", hint(name, all)),
    );
    if hosts.is_empty() {
        return error.with("machines", "none").with("mend", "run `testbed up` first");
    }
    let few = |mut names: Vec<&str>| {
        let more = names.len().saturating_sub(20);
        names.truncate(20);
        let text = names.join(", ");
        if more > 0 { format!("{text} and {more} more") } else { text }
    };
    error.with("machines", few(machines)).with("roles", few(roles.iter().map(String::as_str).collect()))
}

fn words(matches: &ArgMatches) -> String {
    // As ssh itself: words are put together, and the shell over there takes them apart.
    matches.get_many::<String>("command").into_iter().flatten().cloned().collect::<Vec<_>>().join(" ")
}

pub(super) async fn ssh(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let (folder, saved) = open::saved(app)?;
    let name = matches.get_one::<String>("host").map_or("", String::as_str);
    let hosts = of(&saved.environment.obtained.hosts, name)?;
    let host = match hosts[..] {
        [host] => host,
        _ => {
            let names = hosts.iter().map(|host| host.alias.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::config(format!("{} machines have the role {name:?}", hosts.len()))
                .with("machines", names)
                .with("mend", "name one of them, or use `testbed exec` for all")
                .into());
        }
    };
    let remote = Remote::new(app.env.as_ref(), &folder)?;
    let command = words(matches);
    if app.ui.json() {
        if command.is_empty() {
            return Err(Error::config("--json needs a command: nobody reads a terminal as JSON").into());
        }
        let answer = remote.run(&app.op, &host.alias, &command, &[]).await?;
        app.ui.line(&json!({
            "machine": host.alias,
            "status": answer.outcome.code(),
            "stdout": String::from_utf8_lossy(&answer.stdout),
            "stderr": String::from_utf8_lossy(&answer.stderr),
        }));
        return if answer.outcome.success() { Ok(()) } else { Err(Failure::status(answer.outcome.code())) };
    }
    let options: Vec<&str> =
        matches.get_many::<String>("option").into_iter().flatten().map(String::as_str).collect();
    let mut process = std::process::Command::new(remote.program());
    process.args(remote.args(&options, &host.alias));
    if !command.is_empty() {
        process.arg(&command);
    }
    // The terminal and the signals are ssh's from here on.
    let error = process.exec();
    Err(Error::internal("cannot start ssh")
        .with("program", remote.program().display())
        .with_source(error)
        .into())
}

pub(super) async fn exec(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let (folder, saved) = open::saved(app)?;
    let names = matches.get_one::<String>("role").map_or("", String::as_str);
    let hosts = of(&saved.environment.obtained.hosts, names)?;
    let remote = Remote::new(app.env.as_ref(), &folder)?;
    let command = words(matches);
    let width = hosts.iter().map(|host| host.alias.len()).max().unwrap_or_default();
    let runs = hosts.iter().map(|host| one(app, &remote, host, &command, width));
    let outcomes: Vec<Result<Outcome>> = stream::iter(runs).buffered(AT_ONCE).collect().await;
    app.op.check()?;
    let mut worst = 0;
    let mut failed = Vec::new();
    for (host, outcome) in hosts.iter().zip(outcomes) {
        let code = outcome?.code();
        worst = worst.max(code);
        if code != 0 {
            failed.push(format!("{} with {code}", host.alias));
        }
    }
    if failed.is_empty() {
        app.ui.result(json!({ "machines": hosts.len(), "status": 0 }), "");
        return Ok(());
    }
    app.ui.line(
        &json!({ "result": "error", "machines": hosts.len(), "status": worst, "failed": failed.len() }),
    );
    app.ui.say(&format!("{} of {} failed: {}", failed.len(), hosts.len(), failed.join(", ")));
    Err(Failure::status(worst))
}

/// Runs the command on one machine; what it writes comes line by line with the machine's name before it.
async fn one(app: &App, remote: &Remote, host: &Host, command: &str, width: usize) -> Result<Outcome> {
    let mut child = remote.spawn(&host.alias, command, Stdio::null())?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let name = host.alias.as_str();
    let status = app
        .op
        .run(async {
            let (_, _, status) = tokio::join!(
                lines(app, name, width, "stdout", out),
                lines(app, name, width, "stderr", err),
                child.wait()
            );
            status.map_err(|error| Error::internal("cannot wait for ssh").with_source(error))
        })
        .await?;
    let outcome = Outcome::of(status);
    app.ui.line(&json!({ "machine": name, "event": "ended", "status": outcome.code() }));
    Ok(outcome)
}

async fn lines(app: &App, name: &str, width: usize, stream: &str, from: Option<impl AsyncRead + Unpin>) {
    let Some(from) = from else { return };
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        if app.ui.json() {
            app.ui.line(&json!({ "machine": name, "event": "output", "stream": stream, "line": text }));
        } else if stream == "stdout" {
            app.ui.raw(&format!("{name:width$} | {text}\n"));
        } else {
            eprintln!("{name:width$} | {text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<Host> {
        let host = |name: &str, role: &str| {
            let mut host = Host::new(name, "10.0.0.1", name);
            host.roles.insert(role.into());
            host
        };
        vec![host("web-0", "web"), host("web-1", "web"), host("db-0", "db")]
    }

    #[test]
    fn roles_and_machines_name_each_machine_once() {
        let hosts = hosts();
        let names =
            |names: &str| of(&hosts, names).unwrap().iter().map(|h| h.alias.clone()).collect::<Vec<_>>();
        assert_eq!(names("db,web-1,web"), ["web-0", "web-1", "db-0"]);
        assert_eq!(names("all").len(), 3);
    }

    #[test]
    fn a_slip_is_pointed_out() {
        let text = of(&hosts(), "wbe").unwrap_err().to_string();
        assert!(text.contains("did you mean \"web\"?") && text.contains("db-0"), "{text}");
        assert!(of(&[], "web").unwrap_err().to_string().contains("testbed up"));
        assert!(of(&hosts(), " , ").is_err());
    }
}

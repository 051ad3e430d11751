//! Addresses of the experiment's networks, and what the network is like.

use std::{net::IpAddr, path::PathBuf};

use clap::ArgMatches;
use cloud_providers::Error;
use serde_json::json;

use super::{App, failure::Failure, open, output::table};
use crate::{
    Constraint, Family, Network, NetworkConstraints, Shape, document, emulate, life::Session, ssh::Remote,
};

pub(super) async fn ips(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("take", matches)) => take(app, matches),
        Some(("give", matches)) => give(app, matches),
        Some((_, matches)) => list(app, matches),
        None => Ok(()),
    }
}

fn list(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let (_, saved) = open::saved(app)?;
    let networks = saved.environment.obtained.networks;
    let named = matches.get_one::<String>("network");
    let chosen: Vec<&Network> = networks
        .iter()
        .filter(|network| named.is_none_or(|name| network.name == *name || network.roles.contains(name)))
        .collect();
    if let (Some(name), true) = (named, chosen.is_empty()) {
        let known = networks.iter().map(|network| network.name.as_str());
        let near = crate::near::hint(name, known.clone());
        return Err(Error::new(
            cloud_providers::ErrorKind::NotFound,
            format!("no network is called {name:?}{near}"),
        )
        .with("networks", known.collect::<Vec<_>>().join(", "))
        .into());
    }
    app.ui.answer(&chosen, || {
        let mut text = String::new();
        for network in &chosen {
            let cidr = network.cidr.map(|cidr| format!(" {cidr}")).unwrap_or_default();
            match &network.pool {
                Some(pool) => {
                    text.push_str(&format!(
                        "{}{cidr}: {} free of {}\n",
                        network.name,
                        pool.free(),
                        pool.describe()
                    ));
                    let rows: Vec<Vec<String>> =
                        pool.taken.iter().map(|(ip, owner)| vec![ip.to_string(), owner.clone()]).collect();
                    if !rows.is_empty() {
                        text.push_str(&table(&["ADDRESS", "OWNER"], &rows));
                    }
                }
                None => text.push_str(&format!("{}{cidr}: no pool of free addresses\n", network.name)),
            }
        }
        if chosen.is_empty() {
            text.push_str("no networks\n");
        }
        text
    });
    Ok(())
}

fn take(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let session = open::for_state(app, "ips take")?;
    let family = match (matches.get_flag("ipv4"), matches.get_flag("ipv6")) {
        (true, _) => Some(Family::V4),
        (_, true) => Some(Family::V6),
        _ => None,
    };
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let mut obtained = session.saved().environment.obtained;
    let ip = obtained.take_ip(text("network"), text("owner"), family)?;
    session.update(|saved| saved.environment.obtained = obtained)?;
    app.ui.answer(&json!({ "address": ip, "owner": text("owner") }), || format!("{ip}\n"));
    Ok(())
}

fn give(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let session = open::for_state(app, "ips give")?;
    let addresses: Vec<IpAddr> =
        matches.get_many::<IpAddr>("address").into_iter().flatten().copied().collect();
    let mut obtained = session.saved().environment.obtained;
    // All or none: a slip in one of them changes nothing.
    addresses.iter().try_for_each(|ip| obtained.give_back_ip(*ip))?;
    session.update(|saved| saved.environment.obtained = obtained)?;
    app.ui.answer(&json!({ "given": addresses }), String::new);
    Ok(())
}

pub(super) async fn emulate(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("apply", matches)) => apply(app, matches).await,
        Some(("clear", _)) => clear(app).await,
        _ => show(app).await,
    }
}

async fn apply(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let wanted = wanted(app, matches)?;
    let session = open::for_later(app, "emulate apply").await?;
    let remote = remote(app, &session)?;
    let again = "mend it and run `testbed emulate apply` again, or `testbed emulate clear`";
    let machines = emulate::apply(&session.op, &remote, &session.store, &session.progress, &wanted)
        .await
        .map_err(|error| Failure::from(error).hint(again))?;
    let text = match (wanted.enable, machines) {
        (false, _) => "the constraints are not enabled: nothing is shaped".to_owned(),
        (true, 0) => "no machine sends to another one of these: nothing is shaped".to_owned(),
        (true, n) => format!("what {n} machines send is shaped; `testbed emulate show` tells how"),
    };
    app.ui.result(json!({ "machines": machines, "enabled": wanted.enable }), &text);
    Ok(())
}

/// Reads what is wanted: from the command line, from a file, or from the document.
fn wanted(app: &App, matches: &ArgMatches) -> Result<NetworkConstraints, Error> {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    if let Some(src) = text("src") {
        let value = |name: &str, problem: String| Error::config(format!("--{name}: {problem}"));
        let shape = Shape {
            delay_us: text("delay").map(Shape::parse_delay).transpose().map_err(|e| value("delay", e))?,
            rate_bps: text("rate").map(Shape::parse_rate).transpose().map_err(|e| value("rate", e))?,
            loss_percent: text("loss").map(Shape::parse_loss).transpose().map_err(|e| value("loss", e))?,
        };
        if shape.is_empty() {
            return Err(Error::config("give at least one of --delay, --rate and --loss"));
        }
        let mut wanted = NetworkConstraints { enable: true, ..NetworkConstraints::default() };
        match text("dst") {
            Some(dst) => {
                let mut constraint = Constraint::new(src, dst, shape);
                constraint.symmetric = !matches.get_flag("one-way");
                wanted.constraints.push(constraint);
            }
            None => return Err(Error::config("give --dst as well: the role that receives")),
        }
        return Ok(wanted);
    }
    if let Some(file) = matches.get_one::<PathBuf>("constraints") {
        let path = app.cwd.join(file);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Error::config("cannot read the constraints").with("path", path.display()).with_source(error)
        })?;
        return document::constraints(&text, &file.display().to_string());
    }
    // The document as it is now, like the other commands that do something new; the one of the environment without it.
    let saved = open::saved(app)?.1;
    let path = match (&app.file, &saved.document) {
        (None, Some(document)) => document.clone(),
        _ => app.document(),
    };
    let reservations = if path.exists() { document::read(&path)? } else { saved.environment.reservations };
    reservations.into_iter().find_map(|reservation| reservation.constraints).ok_or_else(|| {
        Error::config("the document has no network_constraints")
            .with("document", path.display())
            .with("mend", "write them there, name a file with --constraints, or give --src, --dst and --delay, --rate or --loss")
    })
}

async fn clear(app: &App) -> Result<(), Failure> {
    let session = open::for_later(app, "emulate clear").await?;
    let machines = session.store.saved().emulated.len();
    let remote = remote(app, &session)?;
    emulate::clear(&session.op, &remote, &session.store, &session.progress)
        .await
        .map_err(|error| Failure::from(error).hint("run `testbed emulate clear` again: it goes on"))?;
    app.ui.result(
        json!({ "machines": machines }),
        &format!("nothing is shaped any more; {machines} machines were"),
    );
    Ok(())
}

async fn show(app: &App) -> Result<(), Failure> {
    let (folder, saved) = open::saved(app)?;
    let remote = Remote::new(app.env.as_ref(), &folder)?;
    let shown = emulate::show(&app.op, &remote, &saved.emulated).await?;
    app.ui.answer(&shown, || {
        if shown.is_empty() {
            return "nothing is shaped\n".into();
        }
        shown.iter().map(|s| format!("{} {}\n{}", s.machine, s.device, s.text)).collect()
    });
    Ok(())
}

fn remote(app: &App, session: &Session) -> Result<Remote, Error> {
    // The files may be of an older program, or gone.
    session.write_files(&[])?;
    Remote::new(app.env.as_ref(), session.store.folder())
}

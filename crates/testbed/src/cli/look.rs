//! Commands that change nothing.

use clap::ArgMatches;
use serde_json::{Value, json};

use super::{App, failure::Failure, machines, open, output::table};
use crate::{Context, Host, find, inventories, several, ssh, state::Folder};

pub(super) async fn status(app: &App) -> Result<(), Failure> {
    let (folder, saved, members, secrets) = open::for_looking(app).await?;
    let environment = &saved.environment;
    let contexts = |name: &str| {
        let mut context = Context::new(folder.of_provider(name));
        context.op = app.op.clone();
        context.state = environment.state.get(name).cloned().unwrap_or_default();
        context
    };
    let answers = several::status(&members, &contexts, environment).await;
    let answers = answers.map_err(|error| secrets.blank_error(error))?;
    let mut rows = Vec::new();
    let mut machines = Vec::new();
    for answer in &answers {
        let expected = environment.obtained.hosts.iter().filter(|host| host.provider == answer.provider);
        match &answer.machines {
            Some(found) => {
                for machine in found {
                    rows.push((
                        machine.name.clone(),
                        answer.provider.clone(),
                        machine.state.clone(),
                        machine.id.clone(),
                    ));
                }
                // What we know of and the provider does not is gone, however it went.
                for host in
                    expected.filter(|host| !found.iter().any(|m| m.name == host.alias || m.id == host.id))
                {
                    rows.push((host.alias.clone(), answer.provider.clone(), "gone".into(), host.id.clone()));
                }
            }
            None => rows.extend(expected.map(|host| {
                (host.alias.clone(), answer.provider.clone(), "not known".into(), host.id.clone())
            })),
        }
    }
    for (name, provider, state, id) in &rows {
        machines.push(json!({ "name": name, "provider": provider, "state": state, "id": id }));
    }
    let value = json!({
        "experiment": environment.experiment(),
        "environment": folder.path(),
        "phase": environment.phase,
        "last_error": environment.last_error,
        "machines": machines,
        "missing": environment.obtained.missing,
        "emulated": saved.emulated,
    });
    app.ui.answer(&value, || {
        let mut text = format!(
            "experiment   {}\nenvironment  {}\nphase        {}\n",
            environment.experiment(),
            folder.path().display(),
            json!(environment.phase).as_str().unwrap_or_default()
        );
        if let Some(error) = &environment.last_error {
            text.push_str(&format!("last error   {error}\n"));
        }
        if !saved.emulated.is_empty() {
            let names = saved.emulated.keys().cloned().collect::<Vec<_>>().join(", ");
            text.push_str(&format!("emulation    on {names}\n"));
        }
        let rows: Vec<Vec<String>> = rows.into_iter().map(|(a, b, c, d)| vec![a, b, c, d]).collect();
        text.push('\n');
        text.push_str(&table(&["MACHINE", "PROVIDER", "STATE", "ID"], &rows));
        text
    });
    Ok(())
}

pub(super) fn hosts(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let (_, saved) = open::saved(app)?;
    let mut obtained = saved.environment.obtained;
    if let Some(role) = matches.get_one::<String>("role") {
        let names: Vec<String> =
            machines::of(&obtained.hosts, role)?.into_iter().map(|host| host.alias.clone()).collect();
        obtained.hosts.retain(|host| names.contains(&host.alias));
    }
    app.ui.answer(&inventories::json(&obtained), || {
        let row = |host: &Host| {
            let roles = host.roles.iter().cloned().collect::<Vec<_>>().join(",");
            let address = if host.port == 22 {
                host.address.clone()
            } else {
                format!("{}:{}", host.address, host.port)
            };
            vec![host.alias.clone(), address, host.user.clone().unwrap_or_default(), roles]
        };
        table(&["MACHINE", "ADDRESS", "USER", "ROLES"], &obtained.hosts.iter().map(row).collect::<Vec<_>>())
    });
    Ok(())
}

pub(super) fn inventory(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let (folder, saved) = open::saved(app)?;
    let folder = Folder::new(std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned()));
    let obtained = &saved.environment.obtained;
    let format = matches.get_one::<String>("format").map_or("yaml", String::as_str);
    let text = match if app.ui.json() { "json" } else { format } {
        "ini" => inventories::ini(&folder, obtained)?,
        "json" => {
            format!("{}\n", serde_json::to_string_pretty(&inventories::json(obtained)).unwrap_or_default())
        }
        "ssh-config" => ssh::config(&folder, saved.environment.experiment(), &obtained.hosts)?,
        _ => inventories::yaml(&folder, obtained)?,
    };
    app.ui.raw(&text);
    Ok(())
}

pub(super) fn providers(app: &App) -> Result<(), Failure> {
    let known = find::known(&app.search);
    let list: Vec<Value> = known
        .iter()
        .map(|k| {
            json!({
                "name": k.name,
                "aliases": k.aliases,
                "origin": k.origin.to_string(),
                "summary": k.summary,
                "version": k.version,
                "hidden": k.hidden,
            })
        })
        .collect();
    app.ui.answer(&list, || {
        let row = |k: &find::Known| {
            let names = std::iter::once(&k.name).chain(&k.aliases).cloned().collect::<Vec<_>>().join(", ");
            let note = if k.hidden { "never used: another one of this name comes first" } else { &k.summary };
            vec![names, k.origin.to_string(), k.version.clone(), note.to_owned()]
        };
        table(&["NAME", "FROM", "VERSION", "WHAT"], &known.iter().map(row).collect::<Vec<_>>())
    });
    Ok(())
}

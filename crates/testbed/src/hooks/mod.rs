//! What the document runs around the provisioning.

mod run;

use std::path::PathBuf;

use cloud_providers::EnvSource;

use crate::{Hook, HookAction, Point, Reservation, ssh};

pub use run::{Runner, run};

/// All points, in the order in which they come.
pub(crate) const POINTS: [Point; 4] =
    [Point::BeforePreinstall, Point::Preinstall, Point::AfterPreinstall, Point::Destroy];

/// Says what the hooks of `reservation` lack on this machine, and which of their roles no machine of `all` has.
pub fn problems(env: &dyn EnvSource, reservation: &Reservation, all: &[Reservation]) -> Vec<String> {
    let mut problems = Vec::new();
    let hooks = POINTS.iter().flat_map(|point| reservation.hooks.at(*point));
    for hook in hooks {
        match &hook.action {
            HookAction::Local(_) => {}
            HookAction::Ssh { roles, .. } => {
                let known = |role: &String| {
                    all.iter().any(|r| {
                        r.provider.name == *role
                            || r.provider.kind == *role
                            || r.machines.iter().any(|m| {
                                m.name == *role || m.roles.contains(role) || m.kind.as_ref() == Some(role)
                            })
                    })
                };
                for role in roles.iter().filter(|role| !known(role)) {
                    problems.push(format!("a hook names the role {role:?}, which no machine has"));
                }
            }
            HookAction::Ansible { playbook, .. } => {
                let mend =
                    "install Ansible, for instance with `pipx install ansible-core`, or take the hook out";
                if let Err(error) = ssh::program(env, "ansible-playbook", mend) {
                    let text = error.to_string();
                    if !problems.contains(&text) {
                        problems.push(text);
                    }
                }
                let path = reservation.base.join(playbook);
                if !path.is_file() {
                    problems.push(format!("the playbook {} of a hook is not there", path.display()));
                }
            }
        }
    }
    problems
}

/// Says a hook in a few words, for people.
pub fn describe(hook: &Hook) -> String {
    let short = |text: &str| {
        let line = text.lines().next().unwrap_or_default();
        match line.char_indices().nth(60) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None if text.lines().nth(1).is_some() => format!("{line}…"),
            None => line.to_owned(),
        }
    };
    match &hook.action {
        HookAction::Local(command) => format!("local: {}", short(command)),
        HookAction::Ssh { roles, run } if roles.is_empty() => format!("ssh to all: {}", short(run)),
        HookAction::Ssh { roles, run } => format!("ssh to {}: {}", roles.join(", "), short(run)),
        HookAction::Ansible { playbook, .. } => format!("ansible: {}", playbook.display()),
    }
}

/// Returns the file to which the output of the hooks of `point` goes.
pub(crate) fn log_of(folder: &std::path::Path, point: Point) -> PathBuf {
    let name = match point {
        Point::BeforePreinstall => "before_preinstall",
        Point::Preinstall => "preinstall",
        Point::AfterPreinstall => "after_preinstall",
        Point::Destroy => "destroy",
    };
    folder.join(format!("hooks-{name}.log"))
}

//! `hooks`.

use crate::{Hook, HookAction, Hooks};

use super::{
    keys,
    reader::Reader,
    tree::{Node, Spot, Tree},
};

/// The hooks, and the roles that they name.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node, roles: &mut Vec<(String, Spot)>) -> Hooks {
    let fields = reader.fields(node, "hooks", keys::HOOKS);
    let mut list = |reader: &mut Reader<'_>, key: &str| {
        let Some(node) = fields.get(key) else { return Vec::new() };
        reader.items(node).into_iter().filter_map(|item| hook(reader, item, roles)).collect()
    };
    Hooks {
        before_preinstall: list(reader, "before_preinstall"),
        preinstall: list(reader, "preinstall"),
        after_preinstall: list(reader, "after_preinstall"),
        destroy: list(reader, "destroy"),
    }
}

fn hook(reader: &mut Reader<'_>, node: &Node, named: &mut Vec<(String, Spot)>) -> Option<Hook> {
    if !matches!(node.value, Tree::Map(_)) {
        let action = HookAction::Local(reader.text(node, "a command")?);
        return Some(Hook { action, ignore_errors: false });
    }
    let fields = reader.fields(node, "a hook", keys::HOOK);
    let mut actions = Vec::new();
    let mut roles = Vec::new();
    if let Some(node) = fields.get("roles") {
        roles = reader.words(node, "a role");
        for item in reader.items(node) {
            if let Tree::Text(role) = &item.value {
                named.push((role.clone(), item.spot));
            }
        }
    }
    if let Some(text) = fields.get("local").and_then(|n| reader.text(n, "a command")) {
        actions.push(HookAction::Local(text));
    }
    if let Some(run) = fields.get("ssh").and_then(|n| reader.text(n, "a command")) {
        actions.push(HookAction::Ssh { roles, run });
    } else if let Some(spot) = fields.spot("roles") {
        reader.problem(spot, "roles belong to an `ssh` command");
    }
    let mut args = Vec::new();
    if let Some(node) = fields.get("args") {
        args = reader.items(node).into_iter().filter_map(|item| reader.text(item, "an argument")).collect();
    }
    if let Some(playbook) = fields.get("ansible").and_then(|n| reader.text(n, "a playbook")) {
        actions.push(HookAction::Ansible { playbook: playbook.into(), args });
    } else if let Some(spot) = fields.spot("args") {
        reader.problem(spot, "args belong to an `ansible` playbook");
    }
    let ignore_errors =
        fields.get("ignore_errors").and_then(|n| reader.bool(n, "ignore_errors")).unwrap_or(false);
    let written = ["local", "ssh", "ansible"].iter().filter(|key| fields.get(key).is_some()).count();
    if written != 1 {
        reader.problem(node.spot, "a hook has exactly one of `local`, `ssh`, `ansible`");
        return None;
    }
    actions.pop().map(|action| Hook { action, ignore_errors })
}

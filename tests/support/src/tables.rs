//! Command lines and exit codes as pages of the book list them.

use std::fmt::Display;

use clap::{Arg, Command};

/// Writes the options and arguments of a program as a Markdown table, those of its commands below.
///
/// What is hidden, and the `help` and `version` that every program has, are left out.
pub fn command_table(program: &Command) -> String {
    let commands: Vec<&Command> =
        program.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    if commands.is_empty() {
        let mut table = "| option | default | |\n| --- | --- | --- |\n".to_owned();
        for arg in shown(program) {
            table += &format!("| {} | {} | {} |\n", name(arg), default(arg), help(arg));
        }
        return table;
    }
    let mut table = "| command | option | default | |\n| --- | --- | --- | --- |\n".to_owned();
    for arg in shown(program) {
        table += &format!("| every one | {} | {} | {} |\n", name(arg), default(arg), help(arg));
    }
    let mut open: Vec<(String, &Command)> =
        commands.into_iter().rev().map(|command| (command.get_name().to_owned(), command)).collect();
    while let Some((path, command)) = open.pop() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        table += &format!("| `{path}` | | | {} |\n", prose(&about));
        for arg in shown(command) {
            table += &format!("| `{path}` | {} | {} | {} |\n", name(arg), default(arg), help(arg));
        }
        let below: Vec<&Command> =
            command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
        open.extend(below.into_iter().rev().map(|below| (format!("{path} {}", below.get_name()), below)));
    }
    table
}

/// Writes exit codes as a Markdown table.
pub fn exit_table<C: Display>(exits: impl IntoIterator<Item = (C, &'static str)>) -> String {
    let rows = exits.into_iter().map(|(code, meaning)| format!("| {code} | {} |\n", prose(meaning)));
    format!("| exit code | meaning |\n| --- | --- |\n{}", rows.collect::<String>())
}

fn shown(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str()))
}

fn name(arg: &Arg) -> String {
    let value = || match arg.get_value_names() {
        Some(names) => names.join(" "),
        None => arg.get_id().as_str().to_uppercase(),
    };
    if arg.is_positional() {
        let many = arg.get_num_args().is_some_and(|count| count.max_values() > 1);
        return format!("`{}{}`", value(), if many { "…" } else { "" });
    }
    let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
    let long = arg.get_long().unwrap_or_default();
    let value = if arg.get_action().takes_values() { format!(" {}", value()) } else { String::new() };
    format!("{short}`--{long}{value}`")
}

fn default(arg: &Arg) -> String {
    if arg.is_required_set() {
        return "required".to_owned();
    }
    let takes = arg.get_action().takes_values();
    let values = arg.get_default_values().iter().filter(|value| takes && !value.is_empty());
    values.map(|value| format!("`{}`", cell(&value.to_string_lossy()))).collect::<Vec<_>>().join(", ")
}

fn help(arg: &Arg) -> String {
    let help = prose(&arg.get_help().map(ToString::to_string).unwrap_or_default());
    let values: Vec<String> = match arg.get_action().takes_values() {
        true => arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect(),
        false => Vec::new(),
    };
    if values.is_empty() { help } else { format!("{help}: {}", values.join(", ")) }
}

/// Escapes what would end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// As [`cell`], outside of code: what stands for something else, such as `<time>`, would be read as HTML.
fn prose(text: &str) -> String {
    cell(text).replace('<', "\\<")
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn flag() -> Arg {
        Arg::new("json").long("json").short('j').action(ArgAction::SetTrue).help("Print a | <b>")
    }

    #[test]
    fn options_are_rows_with_defaults_and_what_they_take() {
        let form =
            Arg::new("form").long("form").value_parser(["json", "text"]).default_value("text").help("How");
        let hidden = Arg::new("x").long("x").hide(true);
        let table = command_table(&Command::new("p").version("1").arg(form).arg(flag()).arg(hidden));
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            ["| `--form FORM` | `text` | How: `json`, `text` |", "| `-j`, `--json` |  | Print a \\| \\<b> |"]
        );
    }

    #[test]
    fn commands_stand_in_order_with_those_below_them() {
        let id = Arg::new("id").required(true).help("Which");
        let below = Command::new("list").about("Lists");
        let program = Command::new("p")
            .arg(flag())
            .subcommand(Command::new("ips").about("Addresses").subcommand(below))
            .subcommand(Command::new("stop").about("Stops").arg(id));
        let table = command_table(&program);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| every one | `-j`, `--json` |  | Print a \\| \\<b> |",
                "| `ips` | | | Addresses |",
                "| `ips list` | | | Lists |",
                "| `stop` | | | Stops |",
                "| `stop` | `ID` | required | Which |",
            ]
        );
    }

    #[test]
    fn exit_codes_are_rows() {
        assert_eq!(exit_table([(0_u8, "done")]), "| exit code | meaning |\n| --- | --- |\n| 0 | done |\n");
    }
}

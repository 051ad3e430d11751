//! Writes values so that other programs read the same.

use serde_json::Value;

/// Puts a text in quotes of the shell where it needs them.
pub(crate) fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_-+=:,./".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Writes a value as YAML: JSON is YAML where its texts are in double quotes and hold no character that YAML refuses.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            // YAML counts these as ends of lines or as not printable; JSON takes them as they are.
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            // Beyond the basic plane YAML has one escape, not two halves; as they are they are fine.
            c => text.push(c),
        }
    }
    text
}

/// Writes a value for a line of a host in an INI inventory.
///
/// Ansible takes such a line apart like a shell and then reads each value as a literal of Python; texts that would become
/// something else are put in quotes of Python, within quotes of the shell.
pub(super) fn ini(value: &Value) -> String {
    shell(&python(value))
}

/// Writes a value as a literal of Python.
fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(n) => n.to_string(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(python_item).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let pairs = map.iter().map(|(k, v)| format!("{}: {}", python_text(k), python_item(v)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        // A text that is no literal stays what it is; quotes make sure of the others.
        Value::String(text) if harmless(text) => text.clone(),
        Value::String(text) => python_text(text),
    }
}

fn python_item(value: &Value) -> String {
    match value {
        Value::String(text) => python_text(text),
        other => python(other),
    }
}

/// Whether a text is certainly no literal of Python, and no word that Ansible turns into something else.
fn harmless(text: &str) -> bool {
    let start = text.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c == '/');
    let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./:@".contains(c));
    start && rest
}

fn python_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if (' '..='~').contains(&c) && c != '#' => quoted.push(c),
            // Escapes keep the line one line, and comments out of it.
            c if u32::from(c) <= 0xff => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) <= 0xffff => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    quoted.push('"');
    quoted
}

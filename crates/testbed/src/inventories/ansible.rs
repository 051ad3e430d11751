//! Inventories of Ansible.

use std::{collections::BTreeMap, fmt::Write as _};

use cloud_providers::{Error, Result};
use serde_json::{Map, Value};

use super::{
    value::{self, shell},
    variables,
};
use crate::{Host, Obtained, state::Folder};

/// Names that mean something else to Ansible.
const RESERVED: [&str; 3] = ["all", "ungrouped", "localhost"];

/// Returns an inventory in YAML.
///
/// # Errors
///
/// When the name of a machine is none that Ansible takes for one host.
pub fn yaml(folder: &Folder, obtained: &Obtained) -> Result<String> {
    let mut hosts = Map::new();
    for host in &obtained.hosts {
        hosts.insert(name(host)?.to_owned(), Value::Object(variables(folder, host)));
    }
    let mut text =
        String::from("# Written by testbed, and again by the next command: changes are lost.\nall:\n");
    let _ = writeln!(text, "  hosts:{}", if hosts.is_empty() { " {}" } else { "" });
    for (name, vars) in &hosts {
        let _ = writeln!(text, "    {}:", value::yaml(&name.as_str().into()));
        for (key, given) in vars.as_object().into_iter().flatten() {
            let _ = writeln!(text, "      {}: {}", value::yaml(&key.as_str().into()), value::yaml(given));
        }
    }
    let groups = groups(obtained);
    let _ = writeln!(text, "  children:{}", if groups.is_empty() { " {}" } else { "" });
    for (group, hosts) in groups {
        let _ = writeln!(text, "    {group}:\n      hosts:");
        for host in hosts {
            let _ = writeln!(text, "        {}: {{}}", value::yaml(&host.alias.as_str().into()));
        }
    }
    Ok(text)
}

/// Returns an inventory in INI.
///
/// # Errors
///
/// As [`yaml`], and when the name of a variable cannot stand on a line.
pub fn ini(folder: &Folder, obtained: &Obtained) -> Result<String> {
    let mut text = String::from("# Written by testbed, and again by the next command: changes are lost.\n");
    for host in &obtained.hosts {
        text.push_str(name(host)?);
        for (key, given) in variables(folder, host) {
            if !key.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c)) || key.is_empty() {
                return Err(Error::config("the name of a variable cannot stand in an INI inventory")
                    .with("machine", &host.alias)
                    .with("variable", format!("{key:?}"))
                    .with("mend", "use letters, digits and underscores, or the YAML inventory"));
            }
            let _ = write!(text, " {key}={}", value::ini(&given));
        }
        text.push('\n');
    }
    for (group, hosts) in groups(obtained) {
        let _ = writeln!(text, "\n[{group}]");
        hosts.iter().for_each(|host| {
            let _ = writeln!(text, "{}", host.alias);
        });
    }
    Ok(text)
}

/// Returns the groups: the roles, in names that Ansible takes.
fn groups(obtained: &Obtained) -> BTreeMap<String, Vec<&Host>> {
    let mut groups: BTreeMap<String, Vec<&Host>> = BTreeMap::new();
    for (role, hosts) in obtained.roles() {
        let mut group: String =
            role.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if group.starts_with(|c: char| c.is_ascii_digit()) {
            group.insert(0, '_');
        }
        // A group called like a host, or like one of Ansible's own, would be mixed up with it.
        if RESERVED.contains(&group.as_str()) || obtained.hosts.iter().any(|host| host.alias == group) {
            group.push_str("_role");
        }
        let members = groups.entry(group).or_default();
        for host in hosts {
            if !members.iter().any(|member| member.alias == host.alias) {
                members.push(host);
            }
        }
    }
    groups
}

/// Returns the name of a host, where Ansible reads exactly that name.
fn name(host: &Host) -> Result<&str> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = host.alias.as_str();
    if name.is_empty()
        || !name.chars().all(fine)
        || name.starts_with(['-', '.'])
        || RESERVED[..2].contains(&name)
    {
        return Err(Error::config("the name of a machine cannot stand in an inventory of Ansible")
            .with("machine", format!("{name:?}"))
            .with("mend", "use letters, digits, hyphens, underscores and dots"));
    }
    debug_assert_eq!(shell(name), name);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::json;

    use super::*;

    /// Texts that break files which are written without care.
    const HOSTILE: [&str; 14] = [
        "two\nlines: [x]",
        "a b  c",
        "#comment",
        "it's \"quoted\" \\ and $HOME `id`",
        "{{ lookup('pipe', 'id') }}",
        "yes",
        "007",
        "1e3",
        "[1, 2]",
        "None",
        "=x:y;z",
        "ünï → 🦀",
        "",
        "tab\tand\u{7f}\u{2028}end",
    ];

    fn obtained() -> Obtained {
        let mut hosts = Vec::new();
        for (i, text) in HOSTILE.iter().enumerate() {
            let mut host = Host::new(format!("m-{i}"), "10.0.0.1", "i \"1\"");
            host.user = Some("root".into());
            host.roles = ["web".to_owned(), format!("r {i}"), "all".into()].into();
            host.extra.insert("hostile".into(), (*text).into());
            host.extra.insert("nested".into(), json!({"k": [text, 7, true, null]}));
            host.extra.insert("number".into(), 7.into());
            host.extra.insert("flag".into(), true.into());
            host.extra.insert("gateway".into(), "jump".into());
            hosts.push(host);
        }
        Obtained::new(hosts, Vec::new())
    }

    fn python(script: &str, input: &str) -> Option<Value> {
        use std::io::Write as _;
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(input.as_bytes()).ok()?;
        let out = child.wait_with_output().ok()?;
        out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap())
    }

    #[test]
    fn hostile_values_come_back_from_the_yaml_inventory() {
        let text = yaml(&Folder::new("/e x"), &obtained()).unwrap();
        let back: Value = serde_yaml::from_str(&text).unwrap();
        for (i, hostile) in HOSTILE.iter().enumerate() {
            let vars = &back["all"]["hosts"][format!("m-{i}")];
            assert_eq!(vars["hostile"], *hostile);
            assert_eq!(vars["nested"], json!({"k": [hostile, 7, true, null]}));
            assert!(vars.get("gateway").is_none());
        }
        let children = back["all"]["children"].as_object().unwrap();
        assert_eq!(children["web"]["hosts"].as_object().unwrap().len(), HOSTILE.len());
        assert!(children.contains_key("r_3") && children.contains_key("all_role"), "{children:?}");
    }

    #[test]
    fn hostile_values_come_back_from_the_ini_inventory() {
        let text = ini(&Folder::new("/e x"), &obtained()).unwrap();
        // What Ansible's reader of INI does with the line of a host.
        let script = r##"
import sys, json, shlex, ast
def value(v):
    try: return ast.literal_eval(v)
    except Exception: return v
hosts = {}
for line in sys.stdin.read().split("\n"):
    if line.startswith("#") or not line: continue
    if line.startswith("["): break
    words = shlex.split(line, comments=True)
    hosts[words[0]] = {k: value(v) for k, v in (w.split("=", 1) for w in words[1:])}
print(json.dumps(hosts))
"##;
        let Some(back) = python(script, &text) else {
            assert!(Command::new("python3").arg("-V").output().is_err(), "python3 failed on\n{text}");
            return;
        };
        for (i, hostile) in HOSTILE.iter().enumerate() {
            let vars = &back[format!("m-{i}")];
            assert_eq!(vars["hostile"], *hostile, "{text}");
            assert_eq!(vars["nested"], json!({"k": [hostile, 7, true, null]}));
            assert_eq!((&vars["number"], &vars["flag"]), (&json!(7), &json!(true)));
        }
        assert!(text.contains("\n[web]\nm-0\n") && text.contains("\n[r_3]\nm-3\n"), "{text}");
    }

    #[test]
    fn a_name_that_is_a_pattern_or_a_line_is_refused() {
        for alias in ["a b", "web[1:3]", "x\n[all:vars]", "-i", "", "all", "ünï"] {
            let obtained = Obtained::new(vec![Host::new(alias, "10.0.0.1", "i")], Vec::new());
            for text in [yaml(&Folder::new("/e"), &obtained), ini(&Folder::new("/e"), &obtained)] {
                assert!(text.unwrap_err().to_string().contains("inventory"), "{alias:?}");
            }
        }
    }

    #[test]
    fn ansible_reads_what_was_meant() {
        // Where Ansible is not installed the tests above read with the readers that it uses.
        let Ok(version) = Command::new("ansible-inventory").arg("--version").output() else {
            eprintln!("skipped: ansible-inventory is not installed");
            return;
        };
        assert!(version.status.success());
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        super::super::write(&folder, &obtained()).unwrap();
        for file in ["inventory.yaml", "inventory.ini"] {
            let out = Command::new("ansible-inventory")
                .args(["--list", "-i"])
                .arg(dir.path().join(file))
                .output()
                .unwrap();
            let list: Value = serde_json::from_slice(&out.stdout).unwrap();
            for (i, hostile) in HOSTILE.iter().enumerate() {
                let vars = &list["_meta"]["hostvars"][format!("m-{i}")];
                // Ansible wraps what looks like a template.
                let got = vars["hostile"].get("__ansible_unsafe").unwrap_or(&vars["hostile"]);
                assert_eq!(got, hostile, "{file}");
            }
        }
    }
}

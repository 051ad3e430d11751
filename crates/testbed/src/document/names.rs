//! Names of experiments, groups and machines.

use std::collections::BTreeMap;

use super::{draft::MOST, reader::Reader, tree::Spot};

/// The longest name of a group: a number of up to ten digits and a hyphen still make a DNS label.
const LONGEST: usize = 52;

/// Returns whether `text` is a DNS label in lower case.
pub(super) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Makes a DNS label of what is left of `text`; empty when nothing is.
pub(super) fn label(text: &str) -> String {
    let mut label = String::new();
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => label.push(c),
            _ if label.is_empty() || label.ends_with('-') => {}
            _ => label.push('-'),
        }
        if label.len() >= LONGEST {
            break;
        }
    }
    label.trim_end_matches('-').to_owned()
}

/// Returns one name for each path: DNS labels, all different.
///
/// A name follows from its own path, so that nothing elsewhere in the document changes it. Only paths that would get the
/// same name are told apart by a hash of what was lost, and equal paths by their order.
pub(super) fn of_paths(paths: &[Vec<String>]) -> Vec<String> {
    let plain: Vec<String> = paths.iter().map(|path| plain(path)).collect();
    let mut different: BTreeMap<&str, Vec<&[String]>> = BTreeMap::new();
    for (name, path) in plain.iter().zip(paths) {
        let owners = different.entry(name).or_default();
        if !owners.contains(&path.as_slice()) {
            owners.push(path);
        }
    }
    let mut seen: BTreeMap<&[String], usize> = BTreeMap::new();
    plain
        .iter()
        .zip(paths)
        .map(|(name, path)| {
            let shared = different.get(name.as_str()).is_some_and(|owners| owners.len() > 1);
            let name = if shared { hashed(name, path) } else { name.clone() };
            let turn = seen.entry(path).and_modify(|n| *n += 1).or_insert(1);
            if *turn == 1 { name } else { format!("{name}-x{turn}") }
        })
        .collect()
}

/// The names of machines that are given away.
#[derive(Debug, Default)]
pub(super) struct Taken {
    names: BTreeMap<String, Spot>,
    is_full: bool,
}

impl Taken {
    /// Gives the name of a machine away, of `longest` characters at most, unless it is another's.
    pub(super) fn take(&mut self, reader: &mut Reader<'_>, name: &str, longest: usize, spot: Spot) -> bool {
        if self.names.len() as u64 >= MOST {
            if !self.is_full {
                reader.problem(spot, format!("with these the document has more than {MOST} machines"));
            }
            self.is_full = true;
            return false;
        }
        if name.len() > longest {
            let message = format!(
                "the machine's name `{name}` has more than {longest} characters; give it a shorter one"
            );
            reader.problem(spot, message);
            return false;
        }
        if let Some(first) = self.names.get(name) {
            let line = first.line;
            let message =
                format!("a machine is called `{name}` already, see line {line}; give one another `name`");
            reader.problem(spot, message);
            return false;
        }
        self.names.insert(name.to_owned(), spot);
        true
    }
}

fn plain(path: &[String]) -> String {
    let joined = path.join("-");
    let name = label(&joined);
    if name.is_empty() {
        return hashed("machine", path);
    }
    // What was cut off may be what tells it from another one.
    if joined.chars().count() > LONGEST { hashed(&name, path) } else { name }
}

fn hashed(name: &str, path: &[String]) -> String {
    let kept = name[..name.len().min(LONGEST - 9)].trim_end_matches('-');
    format!("{kept}-{:08x}", fnv(path))
}

/// FNV-1a: short, and the same in every version.
fn fnv(path: &[String]) -> u32 {
    let bytes = path.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn path(parts: &[&str]) -> Vec<String> {
        parts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_reads_like_its_path() {
        assert_eq!(of_paths(&[path(&["small", "control"])]), ["small-control"]);
        assert_eq!(of_paths(&[path(&["Standard_D2s_v5", "web"])]), ["standard-d2s-v5-web"]);
    }

    #[test]
    fn paths_that_read_the_same_get_different_names() {
        let names = of_paths(&[path(&["a-b", "c"]), path(&["a", "b-c"]), path(&["a", "b-c"]), path(&["é"])]);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 4, "{names:?}");
        assert_eq!(names[2], format!("{}-x2", names[1]));
    }

    proptest! {
        #[test]
        fn names_are_labels_and_all_different(paths in prop::collection::vec(prop::collection::vec(".{0,40}", 1..4), 0..8)) {
            let names = of_paths(&paths);
            prop_assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), paths.len());
            for name in &names {
                prop_assert!(is_label(name) && name.len() <= 60, "{}", name);
            }
        }

        #[test]
        fn a_label_made_of_anything_is_one(text in ".{0,80}") {
            let label = label(&text);
            prop_assert!(label.is_empty() || is_label(&label));
        }
    }
}

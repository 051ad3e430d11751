//! Sizes, flavours and images.

use std::collections::BTreeMap;

use crate::Size;

use super::{
    draft::Told,
    keys,
    problem::allowed,
    reader::{Fields, Reader},
    tree::{Node, Spot, Tree},
};

/// The flavours that every document has: name, processors, MiB. The same table as on Enos's testbeds.
pub(super) const COMMON: &[(&str, u32, u64)] = &[
    ("tiny", 1, 512),
    ("small", 1, 1024),
    ("medium", 2, 2048),
    ("big", 3, 3072),
    ("large", 4, 4096),
    ("extra-large", 6, 6144),
];

/// A flavour of the document.
#[derive(Clone, Debug, Default)]
pub(super) struct Flavour {
    pub kind: PerProvider,
    pub size: Size,
    pub image: Option<Told>,
}

/// A text that may differ from provider to provider.
#[derive(Clone, Debug, Default)]
pub(super) enum PerProvider {
    #[default]
    Nothing,
    Same(String),
    Each(BTreeMap<String, String>),
}

impl PerProvider {
    pub(super) fn read(reader: &mut Reader<'_>, node: &Node, what: &str) -> Self {
        if !matches!(node.value, Tree::Map(_)) {
            return reader.text(node, what).map_or(Self::Nothing, Self::Same);
        }
        let entries = reader.entries(node, what);
        let texts = entries
            .into_iter()
            .filter_map(|(provider, _, value)| Some((provider.to_owned(), reader.text(value, what)?)));
        Self::Each(texts.collect())
    }

    /// Returns the text for a provider, by its name or its type.
    pub(super) fn of(&self, names: [&str; 2]) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Same(text) => Some(text),
            Self::Each(texts) => names.iter().find_map(|name| texts.get(*name)).map(String::as_str),
        }
    }
}

/// Reads `flavours`.
pub(super) fn flavours(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, Flavour> {
    let mut flavours = BTreeMap::new();
    for (name, spot, value) in reader.entries(node, "flavours") {
        reader.check_word(name, spot, "a flavour");
        let fields = reader.fields(value, "a flavour", keys::FLAVOUR);
        let kind = fields.get("type").map(|n| PerProvider::read(reader, n, "a type")).unwrap_or_default();
        let image = fields.get("image").and_then(|n| Some((reader.text(n, "an image")?, n.spot)));
        flavours.insert(name.to_owned(), Flavour { kind, size: read(reader, &fields), image });
    }
    flavours
}

/// Reads `images`.
pub(super) fn images(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, PerProvider> {
    let entries = reader.entries(node, "images");
    let read = entries.into_iter().map(|(name, spot, value)| {
        reader.check_word(name, spot, "an image's name");
        (name.to_owned(), PerProvider::read(reader, value, "an image"))
    });
    read.collect()
}

/// Returns the common flavour `name`.
pub(super) fn common(name: &str) -> Option<Size> {
    let (_, vcpus, memory) = COMMON.iter().find(|(common, ..)| *common == name)?;
    Some(Size { vcpus: Some(*vcpus), memory_mib: Some(*memory), ..Size::default() })
}

/// Reads what is there of a size.
pub(super) fn read(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Size {
    let small = |n: u64| u32::try_from(n).ok();
    let own = Size {
        vcpus: fields.get("vcpus").and_then(|n| reader.int(n, "vcpus", 1..=4096)).and_then(small),
        memory_mib: fields.get("memory").and_then(|n| mib(reader, n, "memory", 1)),
        disk_gib: fields
            .get("disk")
            .and_then(|n| mib(reader, n, "disk", 1024))
            .map(|m| m.div_ceil(1024))
            .and_then(small),
        gpus: fields.get("gpus").and_then(|n| reader.int(n, "gpus", 0..=1024)).and_then(small),
    };
    match fields.get("flavour_desc") {
        Some(node) => {
            let fields = reader.fields(node, "flavour_desc", keys::SIZE);
            over(own, read(reader, &fields))
        }
        None => own,
    }
}

/// Returns `size` with what it leaves open from `base`.
pub(super) fn over(size: Size, base: Size) -> Size {
    Size {
        vcpus: size.vcpus.or(base.vcpus),
        memory_mib: size.memory_mib.or(base.memory_mib),
        disk_gib: size.disk_gib.or(base.disk_gib),
        gpus: size.gpus.or(base.gpus),
    }
}

/// Reads an amount of bytes as MiB, rounded up. A bare number counts in `unit` MiB.
fn mib(reader: &mut Reader<'_>, node: &Node, what: &str, unit: u64) -> Option<u64> {
    let amount = match &node.value {
        Tree::Number(n) => n.as_u64().and_then(|n| n.checked_mul(unit)),
        Tree::Text(text) => mib_of(text),
        _ => None,
    };
    let amount = amount.filter(|mib| (1..=1 << 30).contains(mib));
    if amount.is_none() {
        let (word, example) = if unit == 1 { ("MiB", "2048 or 2GiB") } else { ("GiB", "20 or 20GiB") };
        reader.problem(node.spot, format!("{what} is a number of {word} or has a unit, such as {example}"));
    }
    amount
}

fn mib_of(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u128 = text[..end].parse().ok()?;
    let bytes: u128 = match text[end..].trim() {
        "M" | "Mi" | "MiB" => 1 << 20,
        "G" | "Gi" | "GiB" => 1 << 30,
        "T" | "Ti" | "TiB" => 1 << 40,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    u64::try_from(number.checked_mul(bytes)?.div_ceil(1 << 20)).ok()
}

/// Returns what an image is at a provider.
pub(super) fn image(
    reader: &mut Reader<'_>,
    images: &BTreeMap<String, PerProvider>,
    told: &Told,
    names: [&str; 2],
) -> Option<String> {
    let (name, spot) = told;
    match images.get(name) {
        None => Some(name.clone()),
        Some(per) => {
            let image = per.of(names).map(str::to_owned);
            if image.is_none() {
                reader
                    .problem(*spot, format!("`images` does not say what this is at provider `{}`", names[0]));
            }
            image
        }
    }
}

/// Notes that `name` is no network.
pub(super) fn unknown(reader: &mut Reader<'_>, spot: Spot, what: &str, name: &str, known: &[&str]) {
    if known.is_empty() {
        reader.problem(spot, format!("there is no such {what}; the document has none"));
    } else {
        reader.problem(spot, format!("there is no such {what}; {}", allowed(name, known.iter().copied())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_rounded_up_to_what_holds_them() {
        assert_eq!(mib_of("4GiB"), Some(4096));
        assert_eq!(mib_of("4 G"), Some(4096));
        assert_eq!(mib_of("1GB"), Some(954));
        assert_eq!(mib_of("512M"), Some(512));
        for wrong in ["4", "GiB", "4.5GiB", "-1G", "4 kg", "", "99999999999999999999999999999999999999G"] {
            assert_eq!(mib_of(wrong), None, "{wrong}");
        }
    }
}

//! Ranges in names: `grp[2-4]` is grp2, grp3, grp4.

/// The most names that one range stands for.
const MOST: u64 = 10_000;

/// Spells out every range of `text`. Text before and behind stays; a leading zero keeps the width.
pub(super) fn expand(text: &str) -> Result<Vec<String>, String> {
    let mut names = vec![String::new()];
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let (before, inside) = (&rest[..open], &rest[open + 1..]);
        let wrong = || "a range is such as grp[2-4], from the smaller number to the greater".to_owned();
        let close = inside.find(']').ok_or_else(wrong)?;
        let (first, last) = inside[..close].split_once('-').ok_or_else(wrong)?;
        let number = |t: &str| t.parse::<u64>().ok().filter(|_| t.bytes().all(|b| b.is_ascii_digit()));
        let (from, to) = number(first).zip(number(last)).filter(|(a, b)| a <= b).ok_or_else(wrong)?;
        let total = (to - from).saturating_add(1).saturating_mul(names.len() as u64);
        if total > MOST {
            return Err(format!("the range stands for {total} names; at most {MOST}"));
        }
        let width = if first.starts_with('0') { first.len() } else { 0 };
        let numbers = from..=to;
        names = names
            .iter()
            .flat_map(|name| numbers.clone().map(move |n| format!("{name}{before}{n:0width$}")))
            .collect();
        rest = &inside[close + 1..];
    }
    if rest.contains(']') {
        return Err("there is a `]` without a `[`; a range is such as grp[2-4]".into());
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_in_it_and_no_text_is_lost() {
        assert_eq!(expand("grp[2-4]").unwrap(), ["grp2", "grp3", "grp4"]);
        assert_eq!(expand("g[1-2]-x").unwrap(), ["g1-x", "g2-x"]);
        assert_eq!(expand("g[1-2]r[1-2]").unwrap(), ["g1r1", "g1r2", "g2r1", "g2r2"]);
        assert_eq!(expand("n[09-10]").unwrap(), ["n09", "n10"]);
        assert_eq!(expand("grp1").unwrap(), ["grp1"]);
        assert_eq!(expand("g[7-7]").unwrap(), ["g7"]);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for wrong in [
            "g[4-2]",
            "g[1-",
            "g[1]",
            "g[a-b]",
            "g[-2]",
            "g[1-2",
            "g]",
            "g[+1-2]",
            "g[1-100000]",
            "g[0-18446744073709551615]",
        ] {
            assert!(expand(wrong).is_err(), "{wrong}");
        }
    }
}

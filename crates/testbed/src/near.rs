//! What was probably meant by a word that is not known.

/// Returns the candidate with the fewest slips, when at most a third of its letters differ.
pub(crate) fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let slips = |candidate: &str| strsim::damerau_levenshtein(&word, &candidate.to_lowercase());
    candidates
        .into_iter()
        .map(|candidate| (slips(candidate), candidate))
        .filter(|(slips, candidate)| *slips <= candidate.chars().count().max(3) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Returns `, did you mean "x"?`, or nothing.
pub(crate) fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    near(word, candidates).map(|near| format!(", did you mean {near:?}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_another_word_is_not() {
        assert_eq!(near("loacl", ["local", "libvirt"]), Some("local"));
        assert_eq!(near("Libvrit", ["local", "libvirt"]), Some("libvirt"));
        assert_eq!(near("quite-else", ["local", "libvirt"]), None);
        assert_eq!(hint("awx", ["aws"]), ", did you mean \"aws\"?");
        assert_eq!(hint("awx", []), "");
    }
}

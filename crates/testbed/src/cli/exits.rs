//! What the program ends with.

/// An exit code and what it says.
type Exit = (u8, &'static str);

pub(super) const DONE: Exit = (0, "done");
pub(super) const FAILED: Exit = (1, "failed: a provider, a hook, a command on a machine");
pub(super) const WRONG: Exit = (2, "wrong command line, document, or state");
pub(super) const MISSING: Exit = (3, "no such environment, machine, role or file");
pub(super) const HELD: Exit = (4, "another command holds the environment, or it is of another experiment");
pub(super) const LATER: Exit =
    (5, "machines do not answer, or a passing fault: the same command may work a little later");
pub(super) const LEFT: Exit = (6, "something is still there that was to be given back");
pub(super) const FULL: Exit = (7, "not enough to be had: capacity, quota, free addresses");
pub(super) const CANNOT: Exit = (8, "the provider or the machines cannot do this");
/// What is added to the number of a signal.
pub(super) const SIGNAL: u8 = 128;

/// Every exit code with its meaning.
pub const ALL: [(&str, &str); 10] = [
    ("0", DONE.1),
    ("1", FAILED.1),
    ("2", WRONG.1),
    ("3", MISSING.1),
    ("4", HELD.1),
    ("5", LATER.1),
    ("6", LEFT.1),
    ("7", FULL.1),
    ("8", CANNOT.1),
    ("128 + n", "ended by signal n; 130 is Ctrl-C. The state is saved: `up` or `destroy` goes on"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_every_code_under_its_number() {
        let codes = [DONE, FAILED, WRONG, MISSING, HELD, LATER, LEFT, FULL, CANNOT];
        for ((code, meaning), row) in codes.iter().zip(ALL) {
            assert_eq!((code.to_string().as_str(), *meaning), row);
        }
        assert_eq!(codes.len() + 1, ALL.len());
        assert!(ALL[codes.len()].0.starts_with(&SIGNAL.to_string()));
    }
}

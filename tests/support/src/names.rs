//! Names that no other test on this machine uses.

use std::sync::atomic::{AtomicU32, Ordering};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Returns `<prefix>-<process id>-<counter>`: unique among the tests of this process and of all that run beside it.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}-{}", std::process::id(), next())
}

/// Returns a unique name for a network interface: at most 15 bytes, as the kernel demands.
///
/// The prefix is cut to four bytes.
pub fn unique_ifname(prefix: &str) -> String {
    let short: String = prefix.chars().filter(char::is_ascii_alphanumeric).take(4).collect();
    // Process ids have up to seven digits (4194304): base 36 keeps them within five.
    let name = format!("{short}{}x{}", base36(std::process::id()), base36(next()));
    name.chars().take(15).collect()
}

pub(crate) fn next() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

fn base36(mut value: u32) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut out = Vec::new();
    loop {
        out.push(DIGITS[(value % 36) as usize]);
        value /= 36;
        if value == 0 {
            break;
        }
    }
    out.reverse();
    out.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_interface_names_fit_the_kernel() {
        assert_ne!(unique("a"), unique("a"));
        let (one, two) = (unique_ifname("bridge"), unique_ifname("bridge"));
        assert_ne!(one, two);
        assert!(one.len() <= 15, "{one}");
        assert!(one.starts_with("brid"), "{one}");
    }

    #[test]
    fn base36_of_the_largest_pid_has_five_digits() {
        assert_eq!(base36(4_194_304).len(), 5);
        assert_eq!(base36(0), "0");
        assert_eq!(base36(35), "z");
        assert_eq!(base36(36), "10");
    }
}

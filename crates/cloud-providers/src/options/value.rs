//! Strict readers of option texts.

use std::time::Duration;

/// Reads a boolean: `1 t true yes on` and `0 f false no off`, in any case.
///
/// # Errors
///
/// The expected form.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "yes" | "on" => Ok(true),
        "0" | "f" | "false" | "no" | "off" => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// Reads a duration as Go writes it: numbers with fractions and the units `ns us µs ms s m h`; `0` needs no unit.
///
/// # Errors
///
/// The expected form. Negative durations are refused: no option has a use for them.
///
/// ```
/// # use cloud_providers::parse_go_duration;
/// assert_eq!(parse_go_duration("1h15m30.918s").unwrap().as_millis(), 4_530_918);
/// assert!(parse_go_duration("5").is_err());
/// ```
pub fn parse_go_duration(text: &str) -> Result<Duration, String> {
    let bad = || "a duration such as 300ms, 90s, 5m0s or 1.5h".to_owned();
    if text == "0" || text == "+0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(bad());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_len);
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(bad());
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        nanos = whole.checked_mul(scale).and_then(|n| nanos.checked_add(n)).ok_or_else(bad)?;
        if !fraction.is_empty() {
            let digits = &fraction[..fraction.len().min(15)];
            let value: u128 = digits.parse().map_err(|_| bad())?;
            nanos += value * scale / 10u128.pow(u32::try_from(digits.len()).map_err(|_| bad())?);
        }
        rest = next;
    }
    // Go keeps durations in a signed 64-bit number of nanoseconds.
    u64::try_from(nanos).ok().filter(|n| *n <= i64::MAX as u64).map(Duration::from_nanos).ok_or_else(bad)
}

/// Writes a duration in Go's form, such as `5m0s`.
pub fn format_go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    let trim = |value: u128, per: u128, digits: usize| {
        let text = format!("{}.{:0digits$}", value / per, value % per);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => format!("{}µs", trim(n, 1_000, 3)),
        n if n < 1_000_000_000 => format!("{}ms", trim(n, 1_000_000, 6)),
        n => {
            let minutes = n / 60_000_000_000;
            let seconds = trim(n % 60_000_000_000, 1_000_000_000, 9);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    }
}

/// Splits at commas, trims, drops empty parts.
pub fn parse_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// Reads `key=value` pairs separated by commas; both sides trimmed, a later key replaces an earlier one.
///
/// # Errors
///
/// The pair that has no `=` or an empty key.
pub fn parse_map(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for part in parse_list(text) {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("key=value pairs, not {part:?}"))?;
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        if key.is_empty() {
            return Err(format!("key=value pairs, not {part:?}"));
        }
        pairs.retain(|(k, _)| *k != key);
        pairs.push((key, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_follow_go() {
        for (text, nanos) in [
            ("0", 0u128),
            ("5m0s", 300_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("300ms", 300_000_000),
            (".5s", 500_000_000),
            ("1µs", 1_000),
            ("2h45m", 9_900_000_000_000),
        ] {
            assert_eq!(parse_go_duration(text).unwrap().as_nanos(), nanos, "{text}");
        }
        for text in ["", "5", "s", "1x", "-5s", "1 s", "1..5s", ".s", "99999999999h", "5 minutes"] {
            assert!(parse_go_duration(text).is_err(), "{text}");
        }
        assert_eq!(format_go_duration(Duration::from_secs(300)), "5m0s");
        assert_eq!(format_go_duration(Duration::from_millis(1500)), "1.5s");
    }

    #[test]
    fn maps_refuse_a_pair_without_equals() {
        assert_eq!(
            parse_map("a=1, b = 2,a=3").unwrap(),
            [("b".into(), "2".into()), ("a".into(), "3".into())]
        );
        assert!(parse_map("a=1,b").is_err());
        assert!(parse_map("=1").is_err());
        assert_eq!(parse_list(" a,,b "), ["a", "b"]);
    }

    proptest! {
        #[test]
        fn a_written_duration_reads_back(nanos in 0u64..=i64::MAX as u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_go_duration(&format_go_duration(duration)).unwrap(), duration);
        }

        #[test]
        fn duration_text_never_panics(text in "[0-9.a-zµ+-]{0,24}") {
            let _ = parse_go_duration(&text);
        }
    }
}

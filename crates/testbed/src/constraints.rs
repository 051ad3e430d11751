//! Delay, rate and loss between machines, as the document's `network_constraints` asks for them.

use serde::{Deserialize, Serialize};

/// What the network between machines is to be like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkConstraints {
    /// `false` takes an emulation away that was applied before.
    pub enable: bool,
    /// Holds between any two machines of different groups of the topology, or between any two where there is none.
    pub default: Shape,
    /// Roles whose machines the default leaves alone.
    pub except: Vec<String>,
    /// Hold instead of the default, value by value; a later one wins.
    pub constraints: Vec<Constraint>,
}

/// What holds from the machines of one role to those of another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Constraint {
    /// The role (or group of the topology) that sends. A range such as `grp[2-4]` is spelled out beforehand.
    pub src: String,
    /// The role that receives.
    pub dst: String,
    /// The values.
    #[serde(flatten)]
    pub shape: Shape,
    /// It holds in the other direction, too.
    pub symmetric: bool,
}

impl Constraint {
    /// Makes a constraint in both directions.
    pub fn new(src: impl Into<String>, dst: impl Into<String>, shape: Shape) -> Self {
        Self { src: src.into(), dst: dst.into(), shape, symmetric: true }
    }
}

/// Delay, rate and loss of what a machine sends. `None` leaves a value as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Shape {
    /// Delay in microseconds.
    pub delay_us: Option<u64>,
    /// Rate in bits per second.
    pub rate_bps: Option<u64>,
    /// Loss in percent.
    pub loss_percent: Option<f64>,
}

impl Shape {
    /// Reads a delay such as `25ms`, `1.5s` or `800us`.
    ///
    /// # Errors
    ///
    /// What is allowed, in words.
    pub fn parse_delay(text: &str) -> Result<u64, String> {
        let us = number(text, &[("us", 1.0), ("ms", 1e3), ("s", 1e6)])
            .ok_or_else(|| format!("{text:?} is no delay: write a number with us, ms or s, such as 25ms"))?;
        // tc counts in 32 bits of a tick that is well below a microsecond on every kernel.
        if us > 200e6 {
            return Err(format!("{text:?} is too long a delay: at most 200s"));
        }
        Ok(us.round() as u64)
    }

    /// Reads a rate such as `100mbit`, `1gbit`, `512kbit` or `8000bit`; `bps` units count bytes, as with `tc`.
    ///
    /// # Errors
    ///
    /// What is allowed, in words.
    pub fn parse_rate(text: &str) -> Result<u64, String> {
        let units = [
            ("bit", 1.0),
            ("kbit", 1e3),
            ("mbit", 1e6),
            ("gbit", 1e9),
            ("tbit", 1e12),
            ("bps", 8.0),
            ("kbps", 8e3),
            ("mbps", 8e6),
            ("gbps", 8e9),
        ];
        let bits = number(text, &units).ok_or_else(|| {
            format!("{text:?} is no rate: write a number with bit, kbit, mbit or gbit, such as 100mbit")
        })?;
        if !(8.0..=1e13).contains(&bits) {
            return Err(format!("{text:?} is no rate that can be set: from 8bit to 10tbit"));
        }
        Ok(bits.round() as u64)
    }

    /// Reads a loss such as `0.1%`.
    ///
    /// # Errors
    ///
    /// What is allowed, in words.
    pub fn parse_loss(text: &str) -> Result<f64, String> {
        number(text, &[("%", 1.0), ("", 1.0)])
            .filter(|percent| (0.0..=100.0).contains(percent))
            .ok_or_else(|| format!("{text:?} is no loss: write a percentage from 0% to 100%, such as 0.1%"))
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns this shape with the values of `over` in place of its own.
    #[must_use]
    pub fn overridden(self, over: Self) -> Self {
        Self {
            delay_us: over.delay_us.or(self.delay_us),
            rate_bps: over.rate_bps.or(self.rate_bps),
            loss_percent: over.loss_percent.or(self.loss_percent),
        }
    }
}

/// Reads a number with one of the units, whose case does not matter.
fn number(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = (&text[..end], text[end..].trim());
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1;
    Some(digits.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_units() {
        assert_eq!(Shape::parse_delay("25ms"), Ok(25_000));
        assert_eq!(Shape::parse_delay("1.5 s"), Ok(1_500_000));
        assert_eq!(Shape::parse_delay("0us"), Ok(0));
        assert_eq!(Shape::parse_rate("100Mbit"), Ok(100_000_000));
        assert_eq!(Shape::parse_rate("1kbps"), Ok(8_000));
        assert_eq!(Shape::parse_loss("0.1%"), Ok(0.1));
        assert_eq!(Shape::parse_loss("100"), Ok(100.0));
    }

    #[test]
    fn what_is_no_value_is_refused_with_what_is_one() {
        for text in ["25", "ms", "-1ms", "1.2.3ms", "201s", "10 minutes", "1e3ms"] {
            assert!(Shape::parse_delay(text).unwrap_err().contains(text), "{text}");
        }
        for text in ["100", "0mbit", "1kib", "", "mbit"] {
            assert!(Shape::parse_rate(text).is_err(), "{text}");
        }
        for text in ["101%", "-1%", "x%", "nan"] {
            assert!(Shape::parse_loss(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_explicit_value_holds_and_the_others_stay() {
        let base = Shape { delay_us: Some(1), rate_bps: Some(2), loss_percent: Some(3.0) };
        let over = Shape { delay_us: Some(9), ..Shape::default() };
        assert_eq!(base.overridden(over), Shape { delay_us: Some(9), ..base });
        assert!(Shape::default().is_empty() && !over.is_empty());
    }
}

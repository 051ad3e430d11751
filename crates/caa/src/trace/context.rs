//! Which trace a call belongs to, as the headers of the call say it.

use std::fmt;

use peerpod_proto::envelope::KeyValue;

/// The header of the W3C, which shims with tracing send as metadata of the call.
pub const TRACEPARENT: &str = "traceparent";
/// The header of Jaeger's own propagation, which earlier shims send.
const UBER_TRACE_ID: &str = "uber-trace-id";

/// A place in a trace: the trace, and the span that what follows belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    /// 0 where there is no span above.
    span_id: u64,
    sampled: bool,
}

impl TraceContext {
    /// Begins a trace of our own.
    pub fn fresh() -> Self {
        Self { trace_id: rand::random::<u128>().max(1), span_id: 0, sampled: true }
    }

    /// Makes the context of a span.
    pub(crate) fn new(trace_id: u128, span_id: u64, sampled: bool) -> Self {
        Self { trace_id, span_id, sampled }
    }

    /// Reads the headers among the metadata of a call. One that cannot be read is as good as none: a caller's mistake in
    /// it must not cost a pod.
    pub fn of_call(metadata: &[KeyValue]) -> Option<Self> {
        let of = |key: &str, parse: fn(&str) -> Option<Self>| {
            metadata.iter().filter(|p| p.key.eq_ignore_ascii_case(key)).find_map(|p| parse(p.value.trim()))
        };
        of(TRACEPARENT, Self::parse).or_else(|| of(UBER_TRACE_ID, Self::parse_jaeger))
    }

    /// Reads a `traceparent`: `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, and of later versions their beginning.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version = hex(version, 2)?;
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        Self::valid(hex(trace, 32)?, hex(span, 16)?, hex(flags, 2)? & 1 == 1)
    }

    /// Reads `<trace>:<span>:<parent>:<flags>`, hex digits without leading zeros.
    fn parse_jaeger(text: &str) -> Option<Self> {
        // Whoever follows the rules of URLs writes the colons so.
        let text = text.replace("%3A", ":").replace("%3a", ":");
        let parts: Vec<&str> = text.split(':').collect();
        let [trace, span, _, flags] = parts[..] else { return None };
        let digits = |text: &str, most: usize| {
            let fits = (1..=most).contains(&text.len());
            fits.then(|| u128::from_str_radix(text, 16).ok()).flatten().filter(|_| !text.starts_with('+'))
        };
        Self::valid(digits(trace, 32)?, digits(span, 16)?, digits(flags, 2)? & 1 == 1)
    }

    fn valid(trace_id: u128, span_id: u128, sampled: bool) -> Option<Self> {
        let span_id = u64::try_from(span_id).ok()?;
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled })
    }

    /// The id of the trace.
    pub fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The id of the span, 0 where there is none.
    pub fn span_id(&self) -> u64 {
        self.span_id
    }

    /// Whether whoever began the trace wants it recorded.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The span above, as a field of a span has it.
    pub(crate) fn parent(&self) -> Option<String> {
        (self.span_id != 0).then(|| format!("{:016x}", self.span_id))
    }

    /// Says, as a field of a span has it, when nobody wants the trace recorded.
    pub(crate) fn unwanted(&self) -> Option<bool> {
        (!self.sampled).then_some(false)
    }

    /// The id of the trace as logs show it.
    pub(crate) fn trace(&self) -> impl fmt::Display {
        format!("{:032x}", self.trace_id)
    }
}

/// The context as a `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

/// Exactly `digits` lower-case digits, as the W3C has them.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let right = text.len() == digits && text.bytes().all(lower);
    right.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn pair(key: &str, value: &str) -> KeyValue {
        KeyValue { key: key.into(), value: value.into() }
    }

    #[test]
    fn a_traceparent_is_read_and_written() {
        let context = TraceContext::parse(PARENT).unwrap();
        assert_eq!(context.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((context.span_id(), context.is_sampled()), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(context.to_string(), PARENT);
        assert!(!TraceContext::parse(&PARENT.replace("-01", "-00")).unwrap().is_sampled());
        // A later version may have more behind.
        assert_eq!(TraceContext::parse(&format!("{}-what", PARENT.replacen("00", "01", 1))), Some(context));
    }

    #[test]
    fn what_is_no_traceparent_is_no_context() {
        for text in [
            "",
            "00",
            "00-1",
            &PARENT.to_uppercase(),
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &PARENT.replacen("00", "ff", 1),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "zz-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_call_is_asked_in_any_case_of_letters_and_the_first_that_can_be_read_counts() {
        let call = [pair("x", "y"), pair("TraceParent", "nonsense"), pair("Traceparent", PARENT)];
        assert_eq!(TraceContext::of_call(&call).unwrap().to_string(), PARENT);
        assert_eq!(TraceContext::of_call(&[pair("traceparent", "00-1")]), None);
        let jaeger = [pair("uber-trace-id", "a3ce929d0e0e4736:f067aa0ba902b7:0:1")];
        let context = TraceContext::of_call(&jaeger).unwrap();
        assert_eq!((context.trace_id(), context.span_id()), (0xa3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7));
        for text in ["", "1:2:3", "1:2:3:4:5", "g:2:0:1", "0:2:0:1", "1:+2:0:1"] {
            assert_eq!(TraceContext::of_call(&[pair("uber-trace-id", text)]), None, "{text}");
        }
    }

    #[test]
    fn traces_of_our_own_differ() {
        assert_ne!(TraceContext::fresh().trace_id(), TraceContext::fresh().trace_id());
    }
}

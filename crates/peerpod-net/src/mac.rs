//! MAC addresses as text.

use crate::{NetError, NetErrorKind};

pub(crate) fn format(bytes: &[u8]) -> String {
    let parts: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

pub(crate) fn parse(text: &str, what: &str) -> Result<[u8; 6], NetError> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    let read = bytes.iter_mut().all(|byte| {
        parts
            .next()
            .filter(|part| part.len() == 2)
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .is_some_and(|value| {
                *byte = value;
                true
            })
    });
    if read && parts.next().is_none() {
        return Ok(bytes);
    }
    Err(NetError::new(
        NetErrorKind::InvalidInput,
        format!("{what} {text:?} is no MAC address such as 02:00:00:00:00:01"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_back_as_it_was_written() {
        let text = "6a:1b:2c:3d:4e:5f";
        assert_eq!(format(&parse(text, "x").unwrap()), text);
    }

    #[test]
    fn text_that_is_no_address_is_refused_by_name() {
        for bad in
            ["", "6a", "6a:1b:2c:3d:4e", "6a:1b:2c:3d:4e:5f:60", "6a:1b:2c:3d:4e:zz", "6a:1:2c:3d:4e:5f"]
        {
            let error = parse(bad, "pod-hw-addr").unwrap_err();
            assert_eq!(error.kind(), NetErrorKind::InvalidInput);
            assert!(error.to_string().contains("pod-hw-addr"), "{error}");
        }
    }
}

//! A mutator of protobuf messages, and a reader of their fields that is independent of the code under test.

use crate::{Dice, mutate};

/// One field: its number, the type on the wire, and its value. Of text, bytes and messages without the length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Number.
    pub number: u64,
    /// 0 varint, 1 eight bytes, 2 length, 5 four bytes.
    pub kind: u8,
    /// The value; a varint as it is written.
    pub value: Vec<u8>,
}

/// Reads the fields of a message; `None` when the bytes are none.
pub fn fields(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (tag, _) = varint(&mut bytes)?;
        let kind = (tag & 7) as u8;
        let value = match kind {
            0 => varint(&mut bytes)?.1,
            1 => take(&mut bytes, 8)?,
            2 => {
                let (length, _) = varint(&mut bytes)?;
                take(&mut bytes, usize::try_from(length).ok()?)?
            }
            5 => take(&mut bytes, 4)?,
            _ => return None,
        };
        if tag >> 3 == 0 {
            return None;
        }
        fields.push(Field { number: tag >> 3, kind, value });
    }
    Some(fields)
}

/// Writes fields as a message.
pub fn message(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        put_varint(&mut out, field.number << 3 | u64::from(field.kind));
        if field.kind == 2 {
            put_varint(&mut out, field.value.len() as u64);
        }
        out.extend_from_slice(&field.value);
    }
    out
}

fn varint(bytes: &mut &[u8]) -> Option<(u64, Vec<u8>)> {
    let length = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)? + 1;
    let written = take(bytes, length)?;
    let value = written.iter().enumerate().fold(0u64, |value, (index, byte)| {
        value | u64::from(byte & 0x7f).checked_shl(7 * index as u32).unwrap_or(0)
    });
    Some((value, written))
}

fn take(bytes: &mut &[u8], length: usize) -> Option<Vec<u8>> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken.to_vec())
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Changes one place of a message, at any depth, and puts most lengths around it right; `None` when it is none.
pub fn mutated(dice: &mut Dice, input: &[u8], words: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut fields = fields(input)?;
    let inner: Vec<usize> = (0..fields.len()).filter(|at| fields[*at].kind == 2).collect();
    if !inner.is_empty() && !dice.once_in(3) {
        let at = *dice.one(&inner);
        if let Some(changed) = mutated(dice, &fields[at].value.clone(), words) {
            fields[at].value = changed;
        } else {
            mutate::bytes(dice, &mut fields[at].value, &[], words);
        }
        return Some(message(&fields));
    }
    let at = dice.below(fields.len());
    match dice.below(10) {
        0 if !fields.is_empty() => _ = fields.remove(at),
        1 if !fields.is_empty() => fields.push(fields[at].clone()),
        2 if !fields.is_empty() => fields.insert(0, fields[at].clone()),
        3 if !fields.is_empty() => {
            let other = dice.below(fields.len());
            fields.swap(at, other);
        }
        4 if !fields.is_empty() => fields[at].number = 1 + dice.below(20) as u64,
        5 => {
            let value: Vec<u8> = (0..dice.below(6)).map(|_| dice.any() as u8).collect();
            let number = *dice.one(&[1, 2, 6, 7, 15, 16, 99, 2047, 536_870_911]);
            fields.insert(at, Field { number, kind: 2, value });
        }
        6 => fields.insert(at, Field { number: 77, kind: 5, value: vec![1, 2, 3, 4] }),
        // One message in two pieces, which readers merge.
        7 if !fields.is_empty() && fields[at].kind == 2 => {
            if let Some(parts) = self::fields(&fields[at].value) {
                let half = dice.below(parts.len() + 1);
                let second = Field { value: message(&parts[half..]), ..fields[at].clone() };
                fields[at].value = message(&parts[..half]);
                fields.push(second);
            }
        }
        // A length that is no truth, or is written with more bytes than it needs.
        8 if !fields.is_empty() => {
            let mut out = message(&fields[..at]);
            put_varint(&mut out, fields[at].number << 3 | 2);
            if dice.once_in(2) {
                put_varint(&mut out, *dice.one(&[0, 0x7fff_ffff, 0xffff_ffff, u64::MAX, 1 << 40]));
            } else {
                let length = fields[at].value.len();
                out.extend([
                    length as u8 & 0x7f | 0x80,
                    (length >> 7) as u8 & 0x7f | 0x80,
                    (length >> 14) as u8 & 0x7f,
                ]);
            }
            out.extend_from_slice(&fields[at].value);
            out.extend(message(&fields[at + 1..]));
            return Some(out);
        }
        _ => {
            // Messages within messages.
            let mut nested = Vec::new();
            for _ in 0..dice.below(300) {
                nested = message(&[Field { number: 6, kind: 2, value: nested }]);
            }
            fields.push(Field { number: *dice.one(&[5, 6, 8, 30]), kind: 2, value: nested });
        }
    }
    Some(message(&fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_written_as_it_was_read() {
        let bytes = b"\x08\x96\x01\x12\x02hi\x1d\x01\x02\x03\x04\x21\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(message(&fields(bytes).unwrap()), bytes);
        assert!(fields(b"\x0a\x05abc").is_none());
    }
}

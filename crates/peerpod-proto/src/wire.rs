//! Reading and changing protobuf messages without knowing all of their fields.
//!
//! A decoder that knows a fixed set of fields drops the rest, and a relay has to keep what newer programs send.
//! So a message that is changed on its way is edited here on the level of bytes: everything that is not named
//! in an edit stays as it came, at every level.
//!
//! ```
//! use peerpod_proto::wire::Editor;
//!
//! // Field 6 is a message whose field 7 is a map; field 15 is something from the future.
//! let original = b"\x32\x0a\x3a\x08\x0a\x01k\x12\x03old\x78\x01";
//! let mut editor = Editor::new(original);
//! editor.set_map_entry(&[6], 7, "k", "new!")?;
//! assert_eq!(editor.finish()?, b"\x32\x0b\x3a\x09\x0a\x01k\x12\x04new!\x78\x01");
//! # Ok::<(), peerpod_proto::wire::WireError>(())
//! ```

mod edit;

use std::ops::Range;

pub use self::edit::Editor;

/// The highest number a field can have.
const MAX_FIELD: u64 = (1 << 29) - 1;

/// How the value of a field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    /// A number of variable length.
    Varint,
    /// Eight bytes.
    Fixed64,
    /// A length and that many bytes: text, bytes, messages, packed lists.
    Len,
    /// Four bytes.
    Fixed32,
}

/// Why bytes are no message, or cannot be edited as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The message ends within a field.
    #[error("message ends within a field at byte {at}")]
    Truncated {
        /// Where the field begins.
        at: usize,
    },
    /// A number is longer than ten bytes, or larger than 64 bits.
    #[error("number at byte {at} is longer than 64 bits")]
    Varint {
        /// Where the number begins.
        at: usize,
    },
    /// A field has no number, or one that is out of range.
    #[error("field at byte {at} has a number out of range")]
    FieldNumber {
        /// Where the field begins.
        at: usize,
    },
    /// A field is a group, or of a type that does not exist.
    #[error("field {field} has wire type {wire_type}, which is not supported")]
    WireType {
        /// Number of the field.
        field: u32,
        /// The type as a number.
        wire_type: u8,
    },
    /// A known field is written in another way than its type asks for.
    #[error("field {field} has an unexpected wire type")]
    UnexpectedType {
        /// Number of the field.
        field: u32,
    },
    /// Text is no UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// What the text is.
        what: &'static str,
    },
    /// A repeated message has fewer elements than the edit names.
    #[error("there is no element {index} at path {path:?}")]
    NoElement {
        /// The path of the message.
        path: Vec<u32>,
        /// The index asked for.
        index: usize,
    },
    /// Two edits touch the same bytes, for example a change within a field that is removed.
    #[error("two edits overlap at byte {at}")]
    Overlap {
        /// Where they meet.
        at: usize,
    },
}

/// One field as it lies in a buffer. All positions count from the start of that buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Number of the field.
    pub number: u32,
    /// How the value is written.
    pub wire_type: WireType,
    /// The whole field.
    pub span: Range<usize>,
    /// The value: without the length for [`WireType::Len`], the bytes of the number else.
    pub value: Range<usize>,
    /// The number, for [`WireType::Varint`].
    pub varint: u64,
    /// Where the tag ends: the length or the value begins here.
    body: usize,
}

impl Field {
    /// The value within the buffer that was walked.
    pub fn bytes<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        &buffer[self.value.clone()]
    }
}

/// Walks over the fields of a message. After an error the walk ends.
pub fn fields(message: &[u8]) -> Fields<'_> {
    fields_in(message, 0..message.len())
}

/// Walks over the fields of the message that lies in a part of a buffer.
fn fields_in(buffer: &[u8], range: Range<usize>) -> Fields<'_> {
    Fields { buffer: &buffer[..range.end], at: range.start }
}

/// The walk over the fields of a message; see [`fields`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    buffer: &'a [u8],
    at: usize,
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.buffer.len() {
            return None;
        }
        let field = self.read();
        self.at = match &field {
            Ok(field) => field.span.end,
            Err(_) => self.buffer.len(),
        };
        Some(field)
    }
}

impl Fields<'_> {
    fn read(&self) -> Result<Field, WireError> {
        let start = self.at;
        let (tag, body) = varint_at(self.buffer, start)?;
        let number = match tag >> 3 {
            number @ 1..=MAX_FIELD => number as u32,
            _ => return Err(WireError::FieldNumber { at: start }),
        };
        let (wire_type, value, varint) = match (tag & 7) as u8 {
            0 => {
                let (varint, end) = varint_at(self.buffer, body)?;
                (WireType::Varint, body..end, varint)
            }
            1 => (WireType::Fixed64, body..body + 8, 0),
            2 => {
                let (len, begin) = varint_at(self.buffer, body)?;
                let end = usize::try_from(len)
                    .ok()
                    .and_then(|len| begin.checked_add(len))
                    .ok_or(WireError::Truncated { at: start })?;
                (WireType::Len, begin..end, 0)
            }
            5 => (WireType::Fixed32, body..body + 4, 0),
            wire_type => return Err(WireError::WireType { field: number, wire_type }),
        };
        if value.end > self.buffer.len() {
            return Err(WireError::Truncated { at: start });
        }
        Ok(Field { number, wire_type, span: start..value.end, value, varint, body })
    }
}

/// Reads a number; returns it with the position behind it.
fn varint_at(buffer: &[u8], start: usize) -> Result<(u64, usize), WireError> {
    let mut value = 0u64;
    for (index, byte) in buffer[start..].iter().enumerate() {
        // The tenth byte has room for one bit.
        if index == 9 && *byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, start + index + 1));
        }
    }
    if buffer.len() - start < 10 {
        Err(WireError::Truncated { at: start })
    } else {
        Err(WireError::Varint { at: start })
    }
}

/// Writes a number.
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a field that has a length.
fn put_len_field(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> WireError {
        fields(bytes).find_map(Result::err).expect("the message is damaged")
    }

    #[test]
    fn fields_are_found_with_their_places() {
        let message = b"\x08\x96\x01\x12\x02hi\x1d\x01\x02\x03\x04\x21\x01\x02\x03\x04\x05\x06\x07\x08";
        let found: Vec<_> = fields(message).map(Result::unwrap).collect();
        assert_eq!(found.iter().map(|f| f.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(found[0].varint, 150);
        assert_eq!(found[1].bytes(message), b"hi");
        assert_eq!(found[3].span, 12..21);
    }

    #[test]
    fn groups_and_unknown_wire_types_are_refused() {
        assert_eq!(error(b"\x0b\x0c"), WireError::WireType { field: 1, wire_type: 3 });
        assert_eq!(error(b"\x0e"), WireError::WireType { field: 1, wire_type: 6 });
    }

    #[test]
    fn damaged_numbers_are_refused() {
        assert_eq!(error(&[0x08; 1]), WireError::Truncated { at: 1 });
        let mut long = vec![0x08];
        long.extend([0xff; 10]);
        long.push(1);
        assert_eq!(error(&long), WireError::Varint { at: 1 });
        assert_eq!(error(b"\x00\x01"), WireError::FieldNumber { at: 0 });
        assert_eq!(error(&[0xfa, 0xff, 0xff, 0xff, 0x7f, 0]), WireError::FieldNumber { at: 0 });
    }

    #[test]
    fn lengths_past_the_end_are_refused() {
        assert_eq!(error(b"\x0a\x05abc"), WireError::Truncated { at: 0 });
        assert_eq!(error(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), WireError::Truncated { at: 0 });
        assert_eq!(error(b"\x0d\x01\x02"), WireError::Truncated { at: 0 });
    }
}

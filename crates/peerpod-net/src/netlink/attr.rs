//! Netlink attributes, written and read: length, type, value, padded to four bytes.

/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The bits of the type field that are the type.
const TYPE_MASK: u16 = 0x3fff;

/// A list of attributes being written.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("an attribute of ours is short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// A number in network order, as nf_tables wants it.
    pub(super) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A number in network order, as nf_tables wants it.
    pub(super) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The attributes in `bytes`, up to the first one that is cut off.
pub(super) fn iterate(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    iterate(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// The text of the first attribute of a kind.
pub(super) fn find_text(bytes: &[u8], kind: u16) -> Option<&str> {
    std::str::from_utf8(find(bytes, kind)?).ok().map(|text| text.trim_end_matches('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut list = Attributes::default();
        list.text(1, "abc").be32(2, 7).nest(3, |inner| {
            inner.bytes(4, &[9]);
        });
        let bytes = list.into_bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(find_text(&bytes, 1), Some("abc"));
        assert_eq!(find(&bytes, 2), Some(&7u32.to_be_bytes()[..]));
        assert_eq!(find(find(&bytes, 3).unwrap(), 4), Some(&[9][..]));
        assert_eq!(find(&bytes, 5), None);
    }

    #[test]
    fn a_cut_off_attribute_ends_the_list() {
        let mut list = Attributes::default();
        list.be32(1, 1).be32(2, 2);
        let bytes = list.into_bytes();
        assert_eq!(iterate(&bytes[..12]).count(), 1);
        assert_eq!(iterate(&[0, 0, 0, 0]).count(), 0);
    }
}

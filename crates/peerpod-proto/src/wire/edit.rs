//! The editor: collects changes to a message and writes it out with the lengths around them put right.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use super::{WireError, WireType, fields_in, put_len_field, put_varint};

/// Collects changes to a message and applies them.
///
/// A message inside is named by a path: the field numbers that lead to it. Protobuf lets a single message occur
/// more than once and merges the occurrences, where the last value wins; the editor looks at all occurrences
/// and makes each change where it wins.
#[derive(Clone, Debug)]
pub struct Editor<'a> {
    buffer: &'a [u8],
    splices: Vec<Splice>,
}

/// A message found in the buffer, with the messages around it from the outermost inwards.
#[derive(Clone, Debug)]
struct Place {
    content: Range<usize>,
    around: Vec<Enclosing>,
}

/// A message that contains a change, so that its length may change too.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Enclosing {
    prefix: Range<usize>,
    content: Range<usize>,
}

/// Bytes to put in the place of others.
#[derive(Clone, Debug)]
struct Splice {
    at: Range<usize>,
    with: Vec<u8>,
    around: Vec<Enclosing>,
}

impl Splice {
    fn growth(&self) -> isize {
        self.with.len().cast_signed() - self.at.len().cast_signed()
    }
}

impl<'a> Editor<'a> {
    /// Begins to edit a message.
    pub fn new(message: &'a [u8]) -> Self {
        Self { buffer: message, splices: Vec::new() }
    }

    /// Whether a message occurs at a path.
    ///
    /// # Errors
    ///
    /// When the message is damaged along the path.
    pub fn contains(&self, path: &[u32]) -> Result<bool, WireError> {
        Ok(!self.places(path)?.is_empty())
    }

    /// Sets a text, bytes or message field of the message at a path, adding it where it is missing.
    ///
    /// # Errors
    ///
    /// When the message is damaged along the path, or the field is there with another wire type.
    pub fn set(&mut self, path: &[u32], field: u32, value: &[u8]) -> Result<(), WireError> {
        let places = self.places(path)?;
        self.set_in(&places, path, field, value)
    }

    /// Sets a field of one element of the repeated message at a path. Elements count from 0, over all
    /// occurrences of the messages around them.
    ///
    /// # Errors
    ///
    /// As for [`Editor::set`], and [`WireError::NoElement`] when there are fewer elements.
    pub fn set_in_element(
        &mut self,
        path: &[u32],
        index: usize,
        field: u32,
        value: &[u8],
    ) -> Result<(), WireError> {
        let place = self
            .places(path)?
            .into_iter()
            .nth(index)
            .ok_or_else(|| WireError::NoElement { path: path.to_vec(), index })?;
        self.set_in(&[place], path, field, value)
    }

    /// Sets an entry of a `map<string, string>` in the message at a path.
    ///
    /// # Errors
    ///
    /// As for [`Editor::set`].
    pub fn set_map_entry(&mut self, path: &[u32], map: u32, key: &str, value: &str) -> Result<(), WireError> {
        let mut last = None;
        let entries = [path, &[map]].concat();
        for entry in self.places(&entries)? {
            if self.last_value(&entry, 1)?.unwrap_or_default() == key.as_bytes() {
                last = Some(entry);
            }
        }
        if let Some(entry) = last {
            return self.set_in(&[entry], &entries, 2, value.as_bytes());
        }
        let mut entry = Vec::with_capacity(key.len() + value.len() + 8);
        put_len_field(&mut entry, 1, key.as_bytes());
        put_len_field(&mut entry, 2, value.as_bytes());
        self.append(path, map, &entry)
    }

    /// Adds an element to a repeated text, bytes or message field of the message at a path, as the last one.
    /// Messages of the path that are missing are made.
    ///
    /// # Errors
    ///
    /// When the message is damaged along the path.
    pub fn append(&mut self, path: &[u32], field: u32, value: &[u8]) -> Result<(), WireError> {
        let mut with = Vec::with_capacity(value.len() + 8);
        put_len_field(&mut with, field, value);
        let mut existing = path;
        loop {
            if let Some(place) = self.places(existing)?.pop() {
                let end = place.content.end;
                self.splices.push(Splice { at: end..end, with, around: place.around });
                return Ok(());
            }
            // The root always exists, so a missing message has a parent.
            let Some((missing, parent)) = existing.split_last() else { return Ok(()) };
            let inner = std::mem::take(&mut with);
            put_len_field(&mut with, *missing, &inner);
            existing = parent;
        }
    }

    /// Removes all occurrences of a field from the message at a path.
    ///
    /// # Errors
    ///
    /// When the message is damaged along the path.
    pub fn remove(&mut self, path: &[u32], field: u32) -> Result<(), WireError> {
        for place in self.places(path)? {
            for found in fields_in(self.buffer, place.content.clone()) {
                let found = found?;
                if found.number == field {
                    let around = place.around.clone();
                    self.splices.push(Splice { at: found.span, with: Vec::new(), around });
                }
            }
        }
        Ok(())
    }

    /// Writes the message with all changes. Without a change it comes out as it went in.
    ///
    /// # Errors
    ///
    /// [`WireError::Overlap`] when two changes touch the same bytes.
    pub fn finish(mut self) -> Result<Vec<u8>, WireError> {
        self.mend_lengths();
        // Of insertions at one place, those of inner messages come first. They keep their order else.
        self.splices.sort_by_key(|splice| (splice.at.start, splice.at.end, Reverse(splice.around.len())));
        let growth: isize = self.splices.iter().map(Splice::growth).sum();
        let mut out = Vec::with_capacity(self.buffer.len().saturating_add_signed(growth));
        let mut done = 0;
        for splice in &self.splices {
            if splice.at.start < done {
                return Err(WireError::Overlap { at: splice.at.start });
            }
            out.extend_from_slice(&self.buffer[done..splice.at.start]);
            out.extend_from_slice(&splice.with);
            done = splice.at.end;
        }
        out.extend_from_slice(&self.buffer[done..]);
        Ok(out)
    }

    /// Adds a change of its length for every message whose content grows or shrinks, inner ones first.
    fn mend_lengths(&mut self) {
        let mut enclosing = BTreeMap::new();
        for splice in &self.splices {
            for (depth, message) in splice.around.iter().enumerate() {
                enclosing
                    .entry((Reverse(depth), message.prefix.start))
                    .or_insert_with(|| (message.clone(), splice.around[..depth].to_vec()));
            }
        }
        for (message, around) in enclosing.into_values() {
            let inside = self.splices.iter().filter(|splice| splice.around.contains(&message));
            let growth: isize = inside.map(Splice::growth).sum();
            if growth != 0 {
                let mut with = Vec::with_capacity(10);
                put_varint(&mut with, message.content.len().saturating_add_signed(growth) as u64);
                self.splices.push(Splice { at: message.prefix, with, around });
            }
        }
    }

    /// Finds all messages at a path, in the order of the buffer.
    fn places(&self, path: &[u32]) -> Result<Vec<Place>, WireError> {
        let mut places = vec![Place { content: 0..self.buffer.len(), around: Vec::new() }];
        for step in path {
            let mut inner = Vec::new();
            for place in &places {
                for field in fields_in(self.buffer, place.content.clone()) {
                    let field = field?;
                    if field.number != *step {
                        continue;
                    }
                    if field.wire_type != WireType::Len {
                        return Err(WireError::UnexpectedType { field: *step });
                    }
                    let mut around = place.around.clone();
                    around.push(Enclosing {
                        prefix: field.body..field.value.start,
                        content: field.value.clone(),
                    });
                    inner.push(Place { content: field.value, around });
                }
            }
            places = inner;
        }
        Ok(places)
    }

    /// Sets a field in the last of some messages that has it, or adds it.
    fn set_in(&mut self, places: &[Place], path: &[u32], field: u32, value: &[u8]) -> Result<(), WireError> {
        for place in places.iter().rev() {
            let mut last = None;
            for found in fields_in(self.buffer, place.content.clone()) {
                let found = found?;
                if found.number == field {
                    if found.wire_type != WireType::Len {
                        return Err(WireError::UnexpectedType { field });
                    }
                    last = Some(found.body..found.span.end);
                }
            }
            if let Some(at) = last {
                let mut with = Vec::with_capacity(value.len() + 5);
                put_varint(&mut with, value.len() as u64);
                with.extend_from_slice(value);
                // Setting the same field again replaces the earlier change.
                self.splices.retain(|splice| splice.at != at);
                self.splices.push(Splice { at, with, around: place.around.clone() });
                return Ok(());
            }
        }
        match places.last() {
            Some(place) => {
                let mut with = Vec::with_capacity(value.len() + 8);
                put_len_field(&mut with, field, value);
                let end = place.content.end;
                self.splices.push(Splice { at: end..end, with, around: place.around.clone() });
                Ok(())
            }
            None => self.append(path, field, value),
        }
    }

    /// The value that wins for a field of one message.
    fn last_value(&self, place: &Place, field: u32) -> Result<Option<&'a [u8]>, WireError> {
        let mut last = None;
        for found in fields_in(self.buffer, place.content.clone()) {
            let found = found?;
            if found.number == field && found.wire_type == WireType::Len {
                last = Some(&self.buffer[found.value]);
            }
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests;

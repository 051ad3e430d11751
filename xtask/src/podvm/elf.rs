//! Reads from ELF files what an image needs to know: the libraries of programs, and what kernel modules say of
//! themselves.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
/// The section and the kind of notes in which a program names libraries that it loads while it runs; see
/// <https://systemd.io/ELF_DLOPEN_METADATA/>.
const LOADS: (&str, u64) = (".note.dlopen", 0x407c_0c0a);

/// A 64-bit little-endian ELF file.
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

/// What a program needs to be started.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Needs {
    /// Its loader; a static program has none.
    pub(crate) loader: Option<String>,
    /// Names of its libraries.
    pub(crate) libraries: Vec<String>,
    /// Names of libraries that it is started without, and loads when it needs them.
    pub(crate) loads: Vec<String>,
}

/// Libraries of which a program loads one, the best first.
#[derive(Deserialize)]
struct Loads {
    soname: Vec<String>,
}

impl<'a> Elf<'a> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// When the bytes are something else.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "this is no 64-bit little-endian ELF file");
        Ok(Self { bytes })
    }

    /// The number of the architecture in the header.
    pub(crate) fn machine(&self) -> Result<u64> {
        self.number(18, 2)
    }

    /// Reads loader and libraries.
    ///
    /// # Errors
    ///
    /// When a table lies outside the file.
    pub(crate) fn needs(&self) -> Result<Needs> {
        let segments = self.table(32, 54, 56)?;
        let mut needs = Needs { loads: self.loads()?, ..Needs::default() };
        let mut dynamic = None;
        let mut loads = Vec::new();
        for at in segments {
            let (kind, offset) = (self.number(at, 4)?, self.number(at + 8, 8)?);
            let (address, size) = (self.number(at + 16, 8)?, self.number(at + 32, 8)?);
            match kind {
                PT_LOAD => loads.push((address, offset, size)),
                PT_DYNAMIC => dynamic = Some((offset, size)),
                PT_INTERP => needs.loader = Some(self.text(offset)?),
                _ => {}
            }
        }
        let Some((start, size)) = dynamic else { return Ok(needs) };
        let (mut names, mut texts) = (Vec::new(), None);
        for at in (start..start + size).step_by(16) {
            let (tag, value) =
                (self.number(usize::try_from(at)?, 8)?, self.number(usize::try_from(at)? + 8, 8)?);
            match tag {
                0 => break,
                DT_NEEDED => names.push(value),
                DT_STRTAB => texts = Some(value),
                _ => {}
            }
        }
        if names.is_empty() {
            return Ok(needs);
        }
        let address = texts.context("the file has no names of libraries")?;
        // The table of names is told by its address in memory.
        let load = loads.iter().find(|(start, _, size)| (*start..start + size).contains(&address));
        let (start, offset, _) = load.context("the names of libraries lie outside the file")?;
        for name in names {
            needs.libraries.push(self.text(address - start + offset + name)?);
        }
        Ok(needs)
    }

    fn loads(&self) -> Result<Vec<String>> {
        // Some files are stripped of the names of their sections.
        let has_sections = self.number(60, 2)? > 0;
        match has_sections.then(|| self.section(LOADS.0)).transpose()?.flatten() {
            Some(notes) => Elf { bytes: notes }.loads_of_notes(),
            None => Ok(Vec::new()),
        }
    }

    /// Reads a section of notes in the place of a file.
    fn loads_of_notes(&self) -> Result<Vec<String>> {
        let (mut at, mut names) = (0, Vec::new());
        while at < self.bytes.len() {
            let (owner, text) =
                (usize::try_from(self.number(at, 4)?)?, usize::try_from(self.number(at + 4, 4)?)?);
            let (kind, start) = (self.number(at + 8, 4)?, at + 12 + owner.next_multiple_of(4));
            let said = self.slice(start, text)?;
            at = start + text.next_multiple_of(4);
            if kind == LOADS.1 {
                let said = said.split(|byte| *byte == 0).next().unwrap_or_default();
                let loads: Vec<Loads> = serde_json::from_slice(said).context("a note does not parse")?;
                names.extend(loads.into_iter().filter_map(|loads| loads.soname.into_iter().next()));
            }
        }
        Ok(names)
    }

    /// Reads a section by its name; none when the file has no such section.
    ///
    /// # Errors
    ///
    /// When a table lies outside the file.
    pub(crate) fn section(&self, name: &str) -> Result<Option<&'a [u8]>> {
        let sections = self.table(40, 58, 60)?;
        let names = usize::try_from(self.number(62, 2)?)?;
        let names =
            self.number(*sections.get(names).context("the file has no names of sections")? + 24, 8)?;
        for at in sections {
            if self.text(names + self.number(at, 4)?)? == name {
                let (offset, size) = (self.number(at + 24, 8)?, self.number(at + 32, 8)?);
                return self.slice(usize::try_from(offset)?, usize::try_from(size)?).map(Some);
            }
        }
        Ok(None)
    }

    /// Offsets of the entries of a table, whose place, entry size and length stand at these places in the header.
    fn table(&self, place: usize, size: usize, count: usize) -> Result<Vec<usize>> {
        let (place, size, count) = (self.number(place, 8)?, self.number(size, 2)?, self.number(count, 2)?);
        (0..count).map(|index| Ok(usize::try_from(place + index * size)?)).collect()
    }

    fn number(&self, at: usize, len: usize) -> Result<u64> {
        Ok(self.slice(at, len)?.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
    }

    fn text(&self, at: u64) -> Result<String> {
        let rest = self.bytes.get(usize::try_from(at)?..).context("a text lies outside the file")?;
        let end = rest.iter().position(|byte| *byte == 0).context("a text has no end")?;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn slice(&self, at: usize, len: usize) -> Result<&'a [u8]> {
        match at.checked_add(len).and_then(|end| self.bytes.get(at..end)) {
            Some(slice) => Ok(slice),
            None => bail!("the file is cut off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_names_its_loader_and_libraries() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = Elf::parse(&bytes).unwrap().needs().unwrap();
        assert!(needs.loader.as_deref().is_some_and(|loader| loader.contains("ld-")), "{needs:?}");
        assert!(needs.libraries.iter().any(|name| name.starts_with("libc.so")), "{needs:?}");
    }

    #[test]
    fn a_section_is_found_by_its_name() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&bytes).unwrap();
        let interp = elf.section(".interp").unwrap().unwrap();
        assert_eq!(interp.strip_suffix(b"\0").unwrap(), elf.needs().unwrap().loader.unwrap().as_bytes());
        assert_eq!(elf.section(".no-such-section").unwrap(), None);
    }

    #[test]
    fn notes_name_the_libraries_that_are_loaded_later() {
        let note = |kind: u32, text: &str| {
            let mut note = [4, text.len() as u32, kind].map(u32::to_le_bytes).concat();
            note.extend([b"FDO\0", text.as_bytes()].concat());
            note.resize(note.len().next_multiple_of(4), 0);
            note
        };
        let kind = u32::try_from(LOADS.1).unwrap();
        let one = note(kind, "[{\"soname\":[\"liba.so.2\",\"liba.so.1\"],\"priority\":\"recommended\"}]\0");
        let notes = [note(1, "other"), one, note(kind, "[{\"soname\":[\"libb.so.0\"]}]\0")].concat();
        assert_eq!(Elf { bytes: &notes }.loads_of_notes().unwrap(), ["liba.so.2", "libb.so.0"]);
        for wrong in [&notes[..notes.len() - 8], &note(kind, "no list\0")] {
            assert!(Elf { bytes: wrong }.loads_of_notes().is_err());
        }
    }

    #[test]
    fn other_files_and_cut_ones_are_errors() {
        assert!(Elf::parse(b"#!/bin/sh\n").is_err());
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let cut = Elf::parse(&bytes[..60]).unwrap();
        assert!(cut.needs().is_err() && cut.section(".interp").is_err());
    }
}

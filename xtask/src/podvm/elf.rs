//! Reads from ELF files what an image needs to know: the libraries of programs, and what kernel modules say of
//! themselves.

use anyhow::{Context as _, Result, bail, ensure};

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

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
        let mut needs = Needs::default();
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
    fn other_files_and_cut_ones_are_errors() {
        assert!(Elf::parse(b"#!/bin/sh\n").is_err());
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let cut = Elf::parse(&bytes[..60]).unwrap();
        assert!(cut.needs().is_err() && cut.section(".interp").is_err());
    }
}

//! Reads one file from the root folder of an ISO 9660 image.
//!
//! A file has up to three names: the plain one in capitals with a version (`USER_DAT.;1`, as tools without extensions
//! write it), the Rock Ridge one and the Joliet one. An exact name wins; else the plain one, folded as tools fold it.

use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail, ensure};

const SECTOR: u64 = 2048;
const FIRST_DESCRIPTOR: u64 = 16;
/// Volumes have three or four descriptors; a list without an end is damage.
const MAX_DESCRIPTORS: u64 = 64;
const MAX_FOLDER: u64 = 1 << 20;
/// A Rock Ridge name may go on elsewhere; a loop of such links is damage.
const MAX_CONTINUATIONS: usize = 8;

const FLAG_FOLDER: u8 = 0x02;
const FLAG_MORE_EXTENTS: u8 = 0x80;

/// A run of bytes on the disk.
#[derive(Clone, Copy)]
struct Extent {
    block: u32,
    length: u32,
}

struct Volume {
    label: String,
    root: Extent,
    joliet_root: Option<Extent>,
    block_size: u64,
}

struct Entry {
    plain: String,
    rock_ridge: Option<String>,
    joliet: String,
    extent: Extent,
    flags: u8,
}

/// Volume label, or `None` when this is no ISO 9660 image.
pub(super) fn label<D: Read + Seek>(disk: &mut D) -> Result<Option<String>> {
    Ok(volume(disk)?.map(|volume| volume.label))
}

/// Content of the file `name` in the root folder.
///
/// # Errors
///
/// No such file, more than `limit` bytes, or a damaged image.
pub(super) fn read_root_file<D: Read + Seek>(disk: &mut D, name: &str, limit: u64) -> Result<Vec<u8>> {
    let volume = volume(disk)?.context("not an ISO 9660 image")?;
    let plain = entries(disk, &volume, volume.root)?;
    let joliet = match volume.joliet_root {
        Some(root) => entries(disk, &volume, root)?,
        None => Vec::new(),
    };
    let entry = None
        .or_else(|| plain.iter().find(|e| e.rock_ridge.as_deref() == Some(name)))
        .or_else(|| joliet.iter().find(|e| strip_version(&e.joliet) == name))
        .or_else(|| plain.iter().find(|e| strip_version(&e.plain) == name))
        .or_else(|| {
            plain.iter().find(|e| fold(strip_version(&e.plain), usize::MAX) == fold(name, usize::MAX))
        })
        .or_else(|| plain.iter().find(|e| strip_version(&e.plain).to_ascii_uppercase() == fold(name, 8)))
        .with_context(|| format!("no file {name} in the root folder of the ISO image"))?;
    ensure!(entry.flags & FLAG_FOLDER == 0, "{name} is a folder");
    ensure!(entry.flags & FLAG_MORE_EXTENTS == 0, "{name} is spread over several extents");
    ensure!(u64::from(entry.extent.length) <= limit, "{name} is larger than {limit} bytes");
    read(disk, &volume, entry.extent)
}

fn volume<D: Read + Seek>(disk: &mut D) -> Result<Option<Volume>> {
    let mut primary = None;
    let mut joliet_root = None;
    for index in 0..MAX_DESCRIPTORS {
        let mut sector = [0; SECTOR as usize];
        disk.seek(SeekFrom::Start((FIRST_DESCRIPTOR + index) * SECTOR))?;
        if disk.read_exact(&mut sector).is_err() || &sector[1..6] != b"CD001" {
            break;
        }
        match sector[0] {
            1 if primary.is_none() => {
                let block_size = u64::from(u16::from_le_bytes([sector[128], sector[129]]));
                ensure!(
                    [512, 1024, 2048].contains(&block_size),
                    "the ISO image has blocks of {block_size} bytes"
                );
                let label = String::from_utf8_lossy(&sector[40..72]);
                // Blanks are the rule, some tools fill with zeros.
                let label = label.trim_end_matches('\0').trim().to_owned();
                primary = Some((label, extent(&sector[156..190]), block_size));
            }
            // The three levels of Joliet are told by an escape sequence.
            2 if matches!(&sector[88..91], b"%/@" | b"%/C" | b"%/E") => {
                joliet_root = Some(extent(&sector[156..190]));
            }
            255 => break,
            _ => {}
        }
    }
    Ok(primary.map(|(label, root, block_size)| Volume { label, root, joliet_root, block_size }))
}

fn extent(record: &[u8]) -> Extent {
    Extent { block: le32(&record[2..6]), length: le32(&record[10..14]) }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn read<D: Read + Seek>(disk: &mut D, volume: &Volume, extent: Extent) -> Result<Vec<u8>> {
    disk.seek(SeekFrom::Start(u64::from(extent.block) * volume.block_size))?;
    let mut bytes = Vec::new();
    disk.take(u64::from(extent.length)).read_to_end(&mut bytes)?;
    ensure!(bytes.len() == extent.length as usize, "the ISO image is cut short");
    Ok(bytes)
}

fn entries<D: Read + Seek>(disk: &mut D, volume: &Volume, folder: Extent) -> Result<Vec<Entry>> {
    ensure!(u64::from(folder.length) <= MAX_FOLDER, "the root folder of the ISO image is too large");
    let bytes = read(disk, volume, folder)?;
    let mut found = Vec::new();
    let mut skip = 0;
    // Records never cross a sector; the rest of a sector is zero.
    for sector in bytes.chunks(SECTOR as usize) {
        let mut rest = sector;
        while let [length, ..] = *rest {
            let length = usize::from(length);
            if length == 0 {
                break;
            }
            let Some((record, after)) = rest.split_at_checked(length) else {
                bail!("a folder record of the ISO image is cut short");
            };
            rest = after;
            ensure!(length >= 34, "a folder record of the ISO image is too short");
            let name_end = 33 + usize::from(record[32]);
            let Some(name) = record.get(33..name_end) else {
                bail!("a name in the ISO image is cut short");
            };
            // Names of even length are followed by a padding byte.
            let system_use = record.get(name_end + usize::from(name.len() % 2 == 0)..).unwrap_or(&[]);
            if name == [0] {
                // The folder's own entry says how many bytes of each system use area are somebody else's.
                skip = sharing_skip(system_use);
                continue;
            }
            if name == [1] {
                continue;
            }
            found.push(Entry {
                plain: String::from_utf8_lossy(name).into_owned(),
                rock_ridge: rock_ridge_name(disk, volume, system_use.get(skip..).unwrap_or(&[]))?,
                joliet: utf16(name),
                extent: extent(record),
                flags: record[25],
            });
        }
    }
    Ok(found)
}

fn sharing_skip(system_use: &[u8]) -> usize {
    match system_use {
        [b'S', b'P', 7, 1, 0xbe, 0xef, skip, ..] => usize::from(*skip),
        _ => 0,
    }
}

fn rock_ridge_name<D: Read + Seek>(disk: &mut D, volume: &Volume, area: &[u8]) -> Result<Option<String>> {
    let mut name: Option<Vec<u8>> = None;
    let mut area = area.to_vec();
    for _ in 0..MAX_CONTINUATIONS {
        let mut next = None;
        let mut rest = area.as_slice();
        while let [a, b, length, _, ..] = *rest {
            let Some((field, after)) = rest.split_at_checked(usize::from(length)) else { break };
            if field.len() < 4 {
                break;
            }
            rest = after;
            match [a, b] {
                // Flags 2 and 4 mean "." and "..".
                [b'N', b'M'] if field.len() > 4 && field[4] & 6 == 0 => {
                    name.get_or_insert_default().extend_from_slice(&field[5..]);
                }
                [b'C', b'E'] if field.len() >= 28 => {
                    next = Some((le32(&field[4..8]), le32(&field[12..16]), le32(&field[20..24])));
                }
                [b'S', b'T'] => break,
                _ => {}
            }
        }
        let Some((block, offset, length)) = next else { break };
        ensure!(offset <= 2048 && length <= 2048, "a continuation area of the ISO image is too large");
        let whole = read(disk, volume, Extent { block, length: offset + length })?;
        area = whole[offset as usize..].to_vec();
    }
    Ok(name.map(|name| String::from_utf8_lossy(&name).into_owned()))
}

fn utf16(name: &[u8]) -> String {
    let units: Vec<u16> = name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    String::from_utf16_lossy(&units)
}

/// Takes off `;1` and the dot of an empty extension.
fn strip_version(name: &str) -> &str {
    let name = name.split_once(';').map_or(name, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name)
}

/// Capitals, with an underscore for what plain names may not hold.
fn fold(name: &str, length: usize) -> String {
    name.chars()
        .take(length)
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_uppercase() } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_are_folded_as_tools_fold_them() {
        assert_eq!(strip_version("USER_DAT.;1"), "USER_DAT");
        assert_eq!(strip_version("USER-DATA;1"), "USER-DATA");
        assert_eq!(fold("user-data", 8), "USER_DAT");
        assert_eq!(fold("USER-DATA", usize::MAX), fold("user-data", usize::MAX));
    }

    #[test]
    fn something_else_is_no_image() {
        assert!(label(&mut Cursor::new(vec![0; 40_000])).unwrap().is_none());
        assert!(label(&mut Cursor::new(Vec::new())).unwrap().is_none());
    }

    proptest! {
        /// The host writes the disk, so any bytes may come.
        #[test]
        fn damage_is_an_error_and_never_a_panic(changes in prop::collection::vec((0usize..8 * 2048, any::<u8>()), 0..64)) {
            let mut image = vec![0; 24 * 2048];
            image[16 * 2048..][..6].copy_from_slice(b"\x01CD001");
            image[16 * 2048 + 128] = 0;
            image[16 * 2048 + 129] = 8;
            // Root folder: block 18, one sector, with one record that has a Rock Ridge area.
            image[16 * 2048 + 158] = 18;
            image[16 * 2048 + 156 + 11] = 8;
            image[17 * 2048..][..6].copy_from_slice(b"\xffCD001");
            let record = &mut image[18 * 2048..];
            record[0] = 80;
            record[32] = 1;
            record[33] = b'A';
            record[34..40].copy_from_slice(b"NM\x06\x01\x00a");
            for (at, byte) in changes {
                image[16 * 2048 + at] = byte;
            }
            let mut disk = Cursor::new(image);
            let _ = label(&mut disk);
            let _ = read_root_file(&mut disk, "user-data", 1 << 20);
        }
    }
}

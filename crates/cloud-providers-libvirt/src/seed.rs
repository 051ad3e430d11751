//! The disk that carries user data into a machine: an ISO 9660 image labelled `cidata`, as NoCloud has it.
//!
//! Names are in the image twice. The plain ones are in small letters with a version, as the existing programs write
//! them, so guests that knew those find the same. The Rock Ridge ones are exact and come with permissions: mounted in a
//! guest, only root reads the files. There is one folder and each file is in one piece, so the image is written by hand;
//! libraries that write such images keep copies of what they write, and this holds keys.

use uuid::Uuid;
use zeroize::Zeroizing;

const SECTOR: usize = 2048;
const LABEL: &str = "cidata";
const FIRST_DESCRIPTOR: u32 = 16;
const PATHS_LITTLE: u32 = 18;
const PATHS_BIG: u32 = 19;
const ROOT: u32 = 20;
/// Bytes of a folder record before its name.
const RECORD: usize = 33;
/// A fixed date, 2000-01-01: equal data give equal images.
const DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
/// Folder, readable by its owner.
const FOLDER_MODE: u32 = 0o040_500;
/// File, readable by its owner.
const FILE_MODE: u32 = 0o100_400;

/// Returns the image for an instance.
pub(crate) fn for_instance(name: &str, id: Uuid, user_data: &[u8]) -> Zeroizing<Vec<u8>> {
    // cloud-init does its work once for each instance id. Without one it would take every machine for the same, and do
    // nothing on an image that booted elsewhere before.
    let meta_data = format!("instance-id: {id}\nlocal-hostname: {name}\n");
    iso(&[("meta-data", meta_data.as_bytes()), ("user-data", user_data), ("vendor-data", b"")])
}

/// Returns an image with these files in its root folder. Names are plain: small letters, digits, dashes, dots.
pub(crate) fn iso(files: &[(&str, &[u8])]) -> Zeroizing<Vec<u8>> {
    let mut files = files.to_vec();
    // Readers may count on the order.
    files.sort_by_key(|(name, _)| *name);
    let folder_sectors = folder(&files, ROOT, 1).len() / SECTOR;
    let data_start = ROOT + number(folder_sectors);
    let data_sectors: u32 = files.iter().map(|(_, data)| sectors(data.len())).sum();
    let total = data_start + data_sectors;

    // As large as it gets from the start: a buffer that grows leaves its content behind.
    let mut image = Zeroizing::new(vec![0; total as usize * SECTOR]);
    let mut put = |sector: u32, bytes: &[u8]| {
        let at = sector as usize * SECTOR;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let folder = folder(&files, data_start, folder_sectors);
    put(FIRST_DESCRIPTOR, &primary_descriptor(total, folder.len()));
    put(FIRST_DESCRIPTOR + 1, b"\xffCD001\x01");
    put(PATHS_LITTLE, &path_table(ROOT.to_le_bytes(), 1u16.to_le_bytes()));
    put(PATHS_BIG, &path_table(ROOT.to_be_bytes(), 1u16.to_be_bytes()));
    put(ROOT, &folder);
    let mut at = data_start;
    for (_, data) in &files {
        put(at, data);
        at += sectors(data.len());
    }
    image
}

fn sectors(bytes: usize) -> u32 {
    number(bytes.div_ceil(SECTOR))
}

/// User data are limited to megabytes, so that every number of an image fits.
fn number(value: usize) -> u32 {
    u32::try_from(value).expect("images are far below 4 GiB")
}

fn primary_descriptor(total: u32, folder_length: usize) -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    sector[..7].copy_from_slice(b"\x01CD001\x01");
    // Texts that say nothing are blanks.
    sector[8..72].fill(b' ');
    sector[190..813].fill(b' ');
    sector[40..40 + LABEL.len()].copy_from_slice(LABEL.as_bytes());
    sector[80..88].copy_from_slice(&both32(total));
    sector[120..124].copy_from_slice(&both16(1));
    sector[124..128].copy_from_slice(&both16(1));
    sector[128..132].copy_from_slice(&both16(2048));
    sector[132..140].copy_from_slice(&both32(10));
    sector[140..144].copy_from_slice(&PATHS_LITTLE.to_le_bytes());
    sector[148..152].copy_from_slice(&PATHS_BIG.to_be_bytes());
    let root = record(&[0], ROOT, folder_length, true, &[]);
    sector[156..156 + root.len()].copy_from_slice(&root);
    for date in [813, 830, 847, 864] {
        // Sixteen zeros: not specified.
        sector[date..date + 16].fill(b'0');
    }
    sector[881] = 1;
    sector
}

/// The only entry: the root folder.
fn path_table(extent: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0][..], &extent, &parent, &[0, 0]].concat()
}

/// The root folder, in whole sectors. `length` is what its own entries say, in sectors.
fn folder(files: &[(&str, &[u8])], data_start: u32, length: usize) -> Vec<u8> {
    let bytes = length * SECTOR;
    let own = [&b"SP\x07\x01\xbe\xef\x00"[..], &permissions(FOLDER_MODE, 2), &extension()].concat();
    let mut records = vec![
        record(&[0], ROOT, bytes, true, &own),
        record(&[1], ROOT, bytes, true, &permissions(FOLDER_MODE, 2)),
    ];
    let mut at = data_start;
    for (name, data) in files {
        let fields = [permissions(FILE_MODE, 1), exact_name(name)].concat();
        records.push(record(format!("{name};1").as_bytes(), at, data.len(), false, &fields));
        at += sectors(data.len());
    }
    let mut folder = Vec::new();
    for record in records {
        // A record never crosses a sector.
        if folder.len() % SECTOR + record.len() > SECTOR {
            folder.resize(folder.len().next_multiple_of(SECTOR), 0);
        }
        folder.extend(record);
    }
    folder.resize(folder.len().next_multiple_of(SECTOR), 0);
    folder
}

fn record(name: &[u8], extent: u32, length: usize, is_folder: bool, fields: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both32(extent));
    record.extend(both32(number(length)));
    record.extend(DATE);
    record.extend([if is_folder { 2 } else { 0 }, 0, 0]);
    record.extend(both16(1));
    record.push(u8::try_from(name.len()).expect("names are short"));
    debug_assert_eq!(record.len(), RECORD);
    record.extend(name);
    if name.len().is_multiple_of(2) {
        record.push(0);
    }
    record.extend(fields);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record[0] = u8::try_from(record.len()).expect("records are short");
    record
}

/// Rock Ridge: mode, links, owner and group.
fn permissions(mode: u32, links: u32) -> Vec<u8> {
    [&b"PX\x24\x01"[..], &both32(mode), &both32(links), &both32(0), &both32(0)].concat()
}

/// Rock Ridge: the name as it is.
fn exact_name(name: &str) -> Vec<u8> {
    let length = u8::try_from(5 + name.len()).expect("names are short");
    [&[b'N', b'M', length, 1, 0][..], name.as_bytes()].concat()
}

/// Says which extension the fields above belong to.
fn extension() -> Vec<u8> {
    let id = b"RRIP_1991A";
    let length = u8::try_from(8 + id.len()).expect("the id is short");
    [&[b'E', b'R', length, 1, 10, 0, 0, 1][..], id].concat()
}

fn both32(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn both16(value: u16) -> [u8; 4] {
    let mut bytes = [0; 4];
    bytes[..2].copy_from_slice(&value.to_le_bytes());
    bytes[2..].copy_from_slice(&value.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use proptest::prelude::*;

    use super::*;

    fn isoinfo(image: &[u8], args: &[&str]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.iso");
        fs::write(&path, image).unwrap();
        let output = Command::new("isoinfo")
            .args(args)
            .arg("-i")
            .arg(&path)
            .output()
            .expect("isoinfo is there (package genisoimage)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn le32(bytes: &[u8]) -> usize {
        bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
    }

    /// Reads as a kernel without Rock Ridge does: plain names, version taken off.
    fn read_plain(image: &[u8]) -> Vec<(String, Vec<u8>)> {
        let primary = &image[16 * SECTOR..][..SECTOR];
        assert_eq!(&primary[..6], b"\x01CD001");
        assert_eq!(le32(&primary[80..84]) * SECTOR, image.len());
        let (root, length) = (le32(&primary[158..162]), le32(&primary[166..170]));
        let mut files = Vec::new();
        for sector in image[root * SECTOR..][..length].chunks(SECTOR) {
            let mut rest = sector;
            while rest.first().is_some_and(|length| *length > 0) {
                let (record, after) = rest.split_at(usize::from(rest[0]));
                rest = after;
                let name = &record[RECORD..RECORD + usize::from(record[32])];
                if name != [0] && name != [1] {
                    let (at, length) = (le32(&record[2..6]), le32(&record[10..14]));
                    let name = String::from_utf8(name.to_vec()).unwrap();
                    let name = name.strip_suffix(";1").unwrap().to_owned();
                    files.push((name, image[at * SECTOR..][..length].to_vec()));
                }
            }
        }
        files
    }

    #[test]
    fn tools_find_label_names_and_content() {
        let id = Uuid::from_u128(7);
        let image = for_instance("podvm-web-1", id, b"#cloud-config\n");
        let text = |args: &[&str]| String::from_utf8(isoinfo(&image, args)).unwrap();
        let descriptor = text(&["-d"]);
        assert!(descriptor.contains("Volume id: cidata"), "{descriptor}");
        assert!(descriptor.contains("Rock Ridge signatures version 1 found"), "{descriptor}");
        let list = text(&["-l", "-R"]);
        for name in ["meta-data", "user-data", "vendor-data"] {
            let line =
                list.lines().find(|l| l.trim_end().ends_with(name)).unwrap_or_else(|| panic!("{list}"));
            assert!(line.starts_with("-r--------"), "{line}");
        }
        assert_eq!(text(&["-R", "-x", "/user-data"]), "#cloud-config\n");
        assert_eq!(
            text(&["-R", "-x", "/meta-data"]),
            format!("instance-id: {id}\nlocal-hostname: podvm-web-1\n")
        );
        assert_eq!(text(&["-R", "-x", "/vendor-data"]), "");
        // As programs without extensions name it.
        assert_eq!(text(&["-x", "/user-data;1"]), "#cloud-config\n");
    }

    #[test]
    fn equal_data_give_equal_images_of_whole_sectors() {
        let image = || for_instance("a", Uuid::nil(), &[7; 5000]);
        assert_eq!(image(), image());
        assert_eq!(image().len() % SECTOR, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn whatever_goes_in_is_read_back(
            files in prop::collection::btree_map("[a-z][a-z0-9.-]{0,40}", prop::collection::vec(any::<u8>(), 0..5000), 0..60)
        ) {
            let input: Vec<(&str, &[u8])> = files.iter().map(|(n, d)| (n.as_str(), d.as_slice())).collect();
            let expected: Vec<(String, Vec<u8>)> = files.clone().into_iter().collect();
            prop_assert_eq!(read_plain(&iso(&input)), expected);
        }
    }
}

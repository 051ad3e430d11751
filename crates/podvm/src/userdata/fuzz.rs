//! Hostile user data, and hostile disks that carry it.

use std::io::{Cursor, Write};
use std::path::PathBuf;

use fuzz_support::{Seen, Target, fixture, fixtures};

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn user_data() {
    let golden = fixtures("go-golden/cloud-config");
    let packed = golden.clone().into_iter().map(|(name, bytes)| (format!("{name}.gz"), gzip(&bytes)));
    // A few kilobytes that unpack to a gigabyte are cut off at the limit.
    let bomb = gzip(&gzip(&vec![b'#'; 32 << 20]));
    Target::new("user-data")
        .seeds(golden.clone())
        .seeds(packed)
        .case("bomb", gzip(&vec![b'#'; MAX_USER_DATA as usize + 1]))
        .case("bomb in a bomb", bomb)
        .words(&[
            "write_files:",
            "- path: ",
            "content: |\n",
            paths::APF_CONFIG,
            paths::INITDATA,
            "{}",
            "&a",
            "*a",
            "<<: ",
        ])
        .lines()
        .packed(|input| cloud_config::plain(input).ok().map(Cow::into_owned), gzip)
        // What is unpacked, and the texts of the files.
        .memory(5 * MAX_USER_DATA, 256)
        .run(|input| {
            let config = match cloud_config::parse(input) {
                Ok(config) => config,
                Err(error) => {
                    let text = format!("{error:#}");
                    assert!(text.len() < 2048, "an error of {} bytes", text.len());
                    return Seen::refused(&text);
                }
            };
            if let Ok(text) = config.to_text() {
                assert_eq!(cloud_config::parse(text.as_bytes()).unwrap(), config, "written and read again");
                assert_eq!(cloud_config::parse(&gzip(text.as_bytes())).unwrap(), config);
            }
            let complete = cloud_config::check_complete(&config);
            let files = config.write_files.len().min(4);
            match complete {
                Ok(()) => {
                    let apf = config.write_files.iter().rfind(|file| file.path == paths::APF_CONFIG);
                    let first = serde_json::Deserializer::from_slice(&apf.expect("it is complete").content)
                        .into_iter::<serde_json::Value>()
                        .next();
                    assert!(first.unwrap().unwrap().is_object());
                    Seen::accepted(files)
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    assert!(text.contains("/run/peerpod/"), "{text} names no file");
                    Seen::refused(&text).and(files)
                }
            }
        });
}

/// A disk with a label and user data: the two file systems that a seed may have.
fn fat() -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; 64 << 10]);
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"cidata     ").bytes_per_cluster(512);
    fatfs::format_volume(&mut disk, options).unwrap();
    {
        let system = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
        let mut file = system.root_dir().create_file("user-data").unwrap();
        file.write_all(&fixture("go-golden/cloud-config/full.yaml")).unwrap();
        file.flush().unwrap();
        let mut meta = system.root_dir().create_file("meta-data").unwrap();
        meta.write_all(b"local-hostname: pod\n").unwrap();
    }
    disk.into_inner()
}

/// An ISO image of a root folder with one file.
fn iso() -> Vec<u8> {
    let mut disk = vec![0; 20 * 2048];
    let record = |name: &[u8], block: u32, length: u32, flags: u8, more: &[u8]| {
        let size = 33 + name.len() + usize::from(name.len().is_multiple_of(2)) + more.len();
        let mut record = vec![0; size];
        record[0] = size as u8;
        record[2..6].copy_from_slice(&block.to_le_bytes());
        record[10..14].copy_from_slice(&length.to_le_bytes());
        record[25] = flags;
        record[32] = name.len() as u8;
        record[33..33 + name.len()].copy_from_slice(name);
        let start = size - more.len();
        record[start..].copy_from_slice(more);
        record
    };
    let volume = 16 * 2048;
    disk[volume] = 1;
    disk[volume + 1..volume + 6].copy_from_slice(b"CD001");
    disk[volume + 40..volume + 72].fill(b' ');
    disk[volume + 40..volume + 46].copy_from_slice(b"cidata");
    disk[volume + 128..volume + 130].copy_from_slice(&2048u16.to_le_bytes());
    let root = record(&[0], 18, 2048, 2, b"SP\x07\x01\xbe\xef\0");
    disk[volume + 156..volume + 190].copy_from_slice(&root[..34]);
    disk[17 * 2048] = 255;
    disk[17 * 2048 + 1..17 * 2048 + 6].copy_from_slice(b"CD001");
    let text = b"write_files: []\n";
    let more = [
        &b"NM\x0e\x01\0user-data"[..],
        b"CE\x1c\x01\x13\0\0\0\0\0\0\x13\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x10",
    ]
    .concat();
    let folder =
        [root, record(&[1], 18, 2048, 2, b""), record(b"USER_DAT.;1", 19, text.len() as u32, 0, &more)]
            .concat();
    disk[18 * 2048..18 * 2048 + folder.len()].copy_from_slice(&folder);
    disk[19 * 2048..19 * 2048 + text.len()].copy_from_slice(text);
    disk
}

#[test]
fn seed_disk() {
    let folder = tempfile::tempdir().unwrap();
    let device: PathBuf = folder.path().join("disk");
    let [fat, iso] = [fat(), iso()];
    for disk in [&fat, &iso] {
        std::fs::write(&device, disk).unwrap();
        assert!(is_user_data_disk(&device), "the seeds are disks of user data");
        assert!(!nocloud::read_user_data(&device).unwrap().is_empty());
    }
    Target::new("seed-disk")
        .seed("fat", fat)
        .seed("iso", iso)
        .words(&["CD001", "NM", "CE", "user-data", "USER_DAT;1", "cidata"])
        // A change in the first sectors of a file system, or in the descriptors of the other, says more than others.
        .mutator(|dice, input| {
            let mut disk = input.to_vec();
            let part = dice.one(&[0..512, 512..4096, 16 * 2048..17 * 2048, 18 * 2048..19 * 2048]).clone();
            for _ in 0..=dice.below(4) {
                let at = part.start + dice.below(part.len());
                if at + 4 <= disk.len() {
                    let number = *dice.one(&[0u32, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff]);
                    let width = *dice.one(&[1, 2, 4]);
                    disk[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
                }
            }
            Some(disk)
        })
        .memory(3 * MAX_USER_DATA, 16)
        .run(|input| {
            std::fs::write(&device, input).unwrap();
            let found = is_user_data_disk(&device);
            let read = [nocloud::read_user_data(&device), nocloud::read_meta_data(&device)];
            let mut seen = Seen::accepted(found);
            for result in read {
                seen = match result {
                    Ok(bytes) => {
                        assert!(bytes.len() as u64 <= MAX_USER_DATA);
                        seen.and(bytes.is_empty())
                    }
                    Err(error) => {
                        seen.and(Seen::refused(&format!("{error:#}").replace(&*device.to_string_lossy(), "")))
                    }
                };
            }
            seen
        });
}

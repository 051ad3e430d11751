//! Archives in the form the kernel unpacks as its first file system: cpio, "newc".

/// What an entry of an archive is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Node {
    /// A folder.
    Folder,
    /// A file with its bytes and whether it can be run.
    File(Vec<u8>, bool),
    /// A link to a path.
    Link(String),
    /// A character device with its numbers.
    Device(u32, u32),
}

/// Writes an archive.
///
/// Owners are root and times are zero, so the bytes depend on the entries alone.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    inode: u32,
}

impl Writer {
    /// Adds an entry under a path without a leading slash. Folders come before what lies in them.
    pub(crate) fn add(&mut self, path: &str, node: &Node) {
        let (mode, content, device) = match node {
            Node::Folder => (0o040_755, &[][..], (0, 0)),
            Node::File(bytes, true) => (0o100_755, &bytes[..], (0, 0)),
            Node::File(bytes, false) => (0o100_644, &bytes[..], (0, 0)),
            Node::Link(target) => (0o120_777, target.as_bytes(), (0, 0)),
            Node::Device(major, minor) => (0o020_600, &[][..], (*major, *minor)),
        };
        self.inode += 1;
        self.entry(path, self.inode, mode, content, device);
    }

    /// Ends the archive and returns its bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, path: &str, inode: u32, mode: u32, content: &[u8], device: (u32, u32)) {
        let size = u32::try_from(content.len()).expect("no file of an image has four gigabytes");
        let name = u32::try_from(path.len() + 1).expect("no path has four gigabytes");
        // Inode, mode, owner, group, links, time, size, device of the file system, device, length of the name, sum.
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
    use std::process::{Command, Stdio};

    use super::*;

    fn archive() -> Vec<u8> {
        let mut writer = Writer::default();
        writer.add("bin", &Node::Folder);
        writer.add("bin/tool", &Node::File(b"#!/bin/sh\n".to_vec(), true));
        writer.add("bin/tool2", &Node::Link("tool".to_owned()));
        writer.add("console", &Node::Device(5, 1));
        writer.add("text", &Node::File(b"odd".to_vec(), false));
        writer.finish()
    }

    #[test]
    fn the_same_entries_give_the_same_bytes_in_blocks_of_four() {
        assert_eq!(archive(), archive());
        assert_eq!(archive().len() % 4, 0);
        assert!(archive().starts_with(b"07070100000001000041ed"));
    }

    #[test]
    fn another_reader_unpacks_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        // Part of the image itself, so it is there wherever images are built.
        let mut unpack = Command::new("busybox")
            .args(["cpio", "-i", "-d"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("busybox is installed (cargo xtask setup)");
        unpack.stdin.take().unwrap().write_all(&archive()).unwrap();
        assert!(unpack.wait().unwrap().success());
        let at = |path: &str| dir.path().join(path);
        assert_eq!(std::fs::read(at("bin/tool2")).unwrap(), b"#!/bin/sh\n");
        assert_eq!(std::fs::metadata(at("bin/tool")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read(at("text")).unwrap(), b"odd");
        let console = std::fs::metadata(at("console")).unwrap();
        assert!(console.file_type().is_char_device());
        assert_eq!(console.rdev(), nix::sys::stat::makedev(5, 1));
    }
}

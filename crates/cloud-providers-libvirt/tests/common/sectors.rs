//! Boot sectors that take the place of a guest system, since a whole one needs ten seconds and more under emulation.
//!
//! Each is the first sector of a raw disk. It writes a line to the serial port and then does one thing.

use std::{fs, io, os::unix::fs::FileExt, path::Path};

/// Size of the disk; smaller ones have no geometry that a BIOS could boot from.
const DISK: u64 = 1 << 20;

/// What the machine does after its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Lets the network card's own program ask for an address by DHCP, and stops the processor when it returns.
    AskForAddress,
    /// Stops the processor: the machine stays up and never gets an address.
    Halt,
    /// Switches the machine off.
    PowerOff,
}

/// Writes a raw disk image whose machine writes `line` to its console.
pub(crate) fn write_disk(path: &Path, line: &str, then: Then) -> io::Result<()> {
    let disk = fs::File::create(path)?;
    disk.set_len(DISK)?;
    disk.write_all_at(&sector(line, then), 0)
}

/// Sets up, then writes the text whose address follows the opcode at [`TEXT`].
const START: &[u8] = &[
    0xfa, // cli
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0x8e, 0xd0, // mov ss, ax
    0xbc, 0x00, 0x7c, // mov sp, 0x7c00
    0xea, 0x0f, 0x7c, 0x00, 0x00, // jmp 0:0x7c0f, the next instruction
    0xfb, // sti
    0xfc, // cld
    0xbe, 0x00, 0x00, // mov si, <text>
    // next character:
    0xac, // lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x06, // jz <what follows>
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xeb, 0xf5, // jmp <next character>
];
const TEXT: usize = 0x12;

/// Calls the boot entry of every option ROM that has one.
const ASK: &[u8] = &[
    0xbb, 0x00, 0xc0, // mov bx, 0xc000
    // next ROM:
    0x8e, 0xc3, // mov es, bx
    0x26, 0x81, 0x3e, 0x00, 0x00, 0x55, 0xaa, // cmp word [es:0], 0xaa55
    0x75, 0x26, // jne <no ROM>
    0x26, 0x8b, 0x36, 0x1a, 0x00, // mov si, [es:0x1a], the header of Plug and Play
    0x26, 0x66, 0x81, 0x3c, 0x24, 0x50, 0x6e, 0x50, // cmp dword [es:si], "$PnP"
    0x75, 0x17, // jne <no ROM>
    0x26, 0x8b, 0x44, 0x1a, // mov ax, [es:si+0x1a], the boot entry
    0x85, 0xc0, // test ax, ax
    0x74, 0x0f, // jz <no ROM>
    0x53, // push bx
    0x0e, // push cs
    0x68, 0x4c, 0x7c, // push 0x7c4c, <back>
    0x53, // push bx
    0x50, // push ax
    0xcb, // retf, a far call
    // back:
    0xfa, // cli
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xfb, // sti
    0x5b, // pop bx
    // no ROM:
    0x81, 0xc3, 0x80, 0x00, // add bx, 0x80, 2 KiB further
    0x81, 0xfb, 0x00, 0xf0, // cmp bx, 0xf000
    0x72, 0xc5, // jb <next ROM>
];

const POWER_OFF: &[u8] = &[
    0xba, 0x04, 0x06, // mov dx, 0x604, where the BIOS puts the power control of both PC machines
    0xb8, 0x00, 0x20, // mov ax, 0x2000, to sleep in state S5
    0xef, // out dx, ax
];

const HALT: &[u8] = &[
    0xf4, // hlt
    0xeb, 0xfd, // jmp <hlt>
];

fn sector(line: &str, then: Then) -> [u8; 512] {
    let work = match then {
        Then::AskForAddress => ASK,
        Then::Halt => &[],
        Then::PowerOff => POWER_OFF,
    };
    let mut code = [START, work, HALT].concat();
    let text = u16::try_from(0x7c00 + code.len()).expect("sectors are short");
    code[TEXT..TEXT + 2].copy_from_slice(&text.to_le_bytes());
    code.extend(line.bytes());
    code.extend(b"\r\n\0");
    let mut sector = [0; 512];
    assert!(code.len() <= 510, "the line is too long");
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

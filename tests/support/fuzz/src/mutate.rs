//! Mutators of bytes, which know nothing of what the bytes mean.

use crate::Dice;

const BYTES: &[u8] = b"\x00\x01\x7f\x80\xff\n\r\t \"'\\/{}[]:,;=-+.%&*!|>#@0a";
const NUMBERS: &[u64] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x3f_ffff,
    0x40_0000,
    0x40_0001,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];
const DECIMALS: &[&str] = &[
    "-1",
    "0",
    "00",
    "1",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "1e400",
    "1.5",
    "0x10",
    "NaN",
];

/// Changes some bytes. `others` are inputs to take parts from, `words` what stands in the format.
pub fn bytes(dice: &mut Dice, input: &mut Vec<u8>, others: &[&[u8]], words: &[Vec<u8>]) {
    let times = 1 << dice.below(4);
    for _ in 0..times {
        once(dice, input, others, words);
    }
}

fn once(dice: &mut Dice, input: &mut Vec<u8>, others: &[&[u8]], words: &[Vec<u8>]) {
    let at = dice.below(input.len() + 1);
    match dice.below(14) {
        0 if at < input.len() => input[at] ^= 1 << dice.below(8),
        1 if at < input.len() => input[at] = dice.any() as u8,
        2 if at < input.len() => input[at] = *dice.one(BYTES),
        3 => {
            input.drain(dice.range(input.len()));
        }
        4 => {
            let part = input[dice.range(input.len())].to_vec();
            insert(input, at, &part);
        }
        5 => {
            let fresh: Vec<u8> = (0..=dice.below(8)).map(|_| dice.any() as u8).collect();
            insert(input, at, &fresh);
        }
        6 if !words.is_empty() => insert(input, at, dice.one(words).as_slice()),
        7 => number(dice, input, at),
        8 if !others.is_empty() => {
            let other = *dice.one(others);
            let part = &other[dice.range(other.len())];
            insert(input, at, part);
        }
        9 if !others.is_empty() => {
            // The beginning of this one, and the end of another one.
            let other = *dice.one(others);
            let from = dice.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        10 if dice.once_in(8) => {
            let part = input[dice.range(input.len())].to_vec();
            let times = 1 << dice.below(14);
            insert(input, at, &part.repeat(times.min((1 << 16) / part.len().max(1))));
        }
        11 if dice.once_in(4) => input.truncate(at),
        12 => decimal(dice, input),
        _ => insert(input, at, dice.one(&["ä", "\u{2028}", "\u{feff}", "😀", "\u{85}", "\0"]).as_bytes()),
    }
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    input.splice(at..at, part.iter().copied());
}

/// Overwrites some bytes by a number at a border, in either order of bytes.
fn number(dice: &mut Dice, input: &mut [u8], at: usize) {
    let (number, width) = (*dice.one(NUMBERS), *dice.one(&[1, 2, 4, 8]));
    let big = number.to_be_bytes();
    let mut bytes = big[8 - width..].to_vec();
    if dice.once_in(2) {
        bytes.reverse();
    }
    for (place, byte) in input.iter_mut().skip(at).zip(bytes) {
        *place = byte;
    }
}

/// Replaces a number written in digits.
fn decimal(dice: &mut Dice, input: &mut Vec<u8>) {
    let starts: Vec<usize> = (0..input.len())
        .filter(|at| input[*at].is_ascii_digit() && (*at == 0 || !input[at - 1].is_ascii_digit()))
        .collect();
    if starts.is_empty() {
        return;
    }
    let start = *dice.one(&starts);
    let length = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    input.splice(start..start + length, dice.one(DECIMALS).bytes());
}

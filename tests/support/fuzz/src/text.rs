//! Mutators of lines.

use crate::Dice;

/// Moves, repeats, removes and indents lines.
pub fn lines(dice: &mut Dice, input: &[u8]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = input.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let at = dice.below(lines.len());
    match dice.below(7) {
        0 => {
            lines.remove(at);
        }
        1 => lines.insert(at, lines[dice.below(lines.len())].clone()),
        2 => {
            let other = dice.below(lines.len());
            lines.swap(at, other);
        }
        3 => {
            let blanks = dice.below(6);
            lines[at].splice(0..0, std::iter::repeat_n(b' ', blanks));
        }
        4 => {
            let blanks = lines[at].iter().take_while(|byte| **byte == b' ').count();
            lines[at].drain(..dice.below(blanks + 1));
        }
        5 => {
            let end = (at + 1 + dice.below(4)).min(lines.len());
            let block: Vec<Vec<u8>> = lines[at..end].to_vec();
            let times = 1 << dice.below(8);
            let more = block.iter().cycle().take(block.len() * times).cloned();
            lines.splice(at..at, more.collect::<Vec<_>>());
        }
        _ => lines[at]
            .extend_from_slice(dice.one(&["\r", " ", "\t", ":", " #", "\\", "|", "'", "\""]).as_bytes()),
    }
    lines.join(&b'\n')
}

//! New inputs from old ones.

use crate::dice::Dice;

/// No input gets longer.
pub const MOST_BYTES: usize = 20 << 10;

/// Numbers at which something may change.
const EDGES: [u32; 16] =
    [0, 1, 2, 7, 8, 125, 126, 127, 0x7fff, 0xffff, 0x4000, 0x4001, 0x00ff_ffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

/// A few changes to `input`; `words` are what the format is made of, `other` is another input.
pub fn mutate(input: &mut Vec<u8>, words: &[Vec<u8>], other: &[u8], dice: &mut Dice) {
    for _ in 0..1 + dice.below(6) {
        change(input, words, other, dice);
    }
    input.truncate(MOST_BYTES);
}

fn change(input: &mut Vec<u8>, words: &[Vec<u8>], other: &[u8], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    match dice.below(11) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = dice.byte();
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(at) {
                let step = u8::try_from(dice.below(9)).unwrap_or_default();
                *byte = byte.wrapping_add(step).wrapping_sub(4);
            }
        }
        // A length, a count or a number of some width.
        3 | 4 => {
            let bytes = dice.one(&EDGES).to_be_bytes();
            let bytes = &bytes[dice.below(4)..];
            for (place, byte) in input.iter_mut().skip(at).zip(bytes) {
                *place = *byte;
            }
        }
        5 => {
            let part = dice.part(input.len());
            input.drain(part);
        }
        6 => {
            let part = input[dice.part(input.len())].to_vec();
            insert(input, at, &part);
        }
        7 => {
            let part = dice.part(other.len());
            insert(input, at, &other[part]);
        }
        8 | 9 => insert(input, at, dice.one::<Vec<u8>>(words)),
        _ => {
            let noise: Vec<u8> = (0..dice.below(40)).map(|_| dice.byte()).collect();
            insert(input, at, &noise);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

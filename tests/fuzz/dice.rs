//! Numbers that look random, and are the same for the same beginning.

use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

/// SplitMix64.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Of an input: whatever is decided while it is run is decided again when it is run again.
    pub fn of(input: &[u8]) -> Self {
        Self(hash(input))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 0 if `end` is.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end as u64).max(1)).unwrap_or_default()
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub fn one<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len())]
    }

    /// A part of something of this length, more often a short one.
    pub fn part(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length + 1);
        let most = 1 << self.below(14);
        start..start + self.below((length - start).min(most) + 1)
    }

    /// Cuts into pieces, of one byte or of thousands.
    pub fn cut<'i>(&mut self, mut input: &'i [u8]) -> impl Iterator<Item = &'i [u8]> + use<'i> {
        let (most, mut dice) = (1 << self.below(13), Self(self.next()));
        std::iter::from_fn(move || {
            let (piece, rest) = input.split_at((1 + dice.below(most)).min(input.len()));
            input = rest;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// The same in every run.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

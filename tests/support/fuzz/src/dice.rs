//! Random choices.

use std::ops::Range;

use proptest::prelude::Rng as _;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Makes random choices, the same ones for the same seed.
#[derive(Debug)]
pub struct Dice(TestRunner);

impl Dice {
    /// Begins at a seed.
    pub fn new(seed: u64) -> Self {
        let mut bytes = [0x5a; 16];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::XorShift, &bytes);
        Self(TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, random))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0.rng().next_u64()
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        // The numbers are far smaller than 64 bits, so that none is noticeably more likely.
        if end == 0 { 0 } else { (self.any() % end as u64) as usize }
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of some things.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A range within `0..len`, short ones more often than long ones.
    pub fn range(&mut self, len: usize) -> Range<usize> {
        let start = self.below(len);
        let longest = len - start;
        let length = if self.once_in(4) { self.below(longest + 1) } else { self.below(longest.min(8) + 1) };
        start..start + length
    }

    /// A value of a strategy of proptest.
    ///
    /// # Panics
    ///
    /// When the strategy refuses to give one.
    pub fn draw<S: Strategy>(&mut self, strategy: &S) -> S::Value {
        strategy.new_tree(&mut self.0).expect("the strategy gives a value").current()
    }
}

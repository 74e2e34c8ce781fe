//! Random operations, compared with a plain vector of bytes.

use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::conformance::{check_extent, pattern};
use crate::{BlockDevice, Result, Zero};

/// The most bytes that one step reads or writes.
const STEP_MAX: u64 = 200_000;

/// Bytes of a [`Step`] in the input of a fuzz target.
const STEP_BYTES: usize = 8;

/// One operation on a device of any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// Where: see [`Step::range`].
    pub place: u32,
    /// How many bytes: see [`Step::range`].
    pub extent: u16,
    /// Of what pattern the bytes are.
    pub seed: u8,
}

/// What a [`Step`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Reads and compares.
    Read,
    /// Writes.
    Write,
    /// Writes zeroes.
    WriteZeroes(Zero),
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
    /// Asks for an extent and compares what it says.
    Extent,
    /// Flushes, drops the device and opens it again.
    Reopen,
}

const ACTIONS: [Action; 10] = [
    Action::Read,
    Action::Write,
    Action::Flush,
    Action::Extent,
    Action::WriteZeroes(Zero::Deallocate),
    Action::Discard,
    Action::WriteZeroes(Zero::Allocate),
    Action::Reopen,
    // More often than the others.
    Action::Write,
    Action::Write,
];

impl Step {
    /// Offset and length in bytes on a device of `size` bytes.
    ///
    /// A quarter of the places lie at multiples of 4096, a quarter at those of 512, lengths likewise: random bytes
    /// alone would hardly ever meet a whole block.
    pub fn range(self, size: u64) -> (u64, u64) {
        let align = |value: u64, choice: u64| match choice % 4 {
            0 => value / 4096 * 4096,
            1 => value / 512 * 512,
            _ => value,
        };
        let offset = align(u64::from(self.place >> 2) % (size + 1), u64::from(self.place));
        // Small ones more often than large ones.
        let long = u64::from(self.extent >> 4);
        let len = if self.extent & 8 == 0 { long * 50 } else { long };
        let len = align(len, u64::from(self.extent)).min(STEP_MAX).min(size - offset);
        (offset, len)
    }

    /// The steps that bytes from a fuzzer mean: eight bytes each.
    pub fn from_bytes(bytes: &[u8]) -> Vec<Self> {
        let (steps, _) = bytes.as_chunks::<STEP_BYTES>();
        steps
            .iter()
            .map(|[action, a, b, c, d, e, f, seed]| Self {
                action: ACTIONS[usize::from(*action) % ACTIONS.len()],
                place: u32::from_le_bytes([*a, *b, *c, *d]),
                extent: u16::from_le_bytes([*e, *f]),
                seed: *seed,
            })
            .collect()
    }

    /// The bytes that it writes, none of them zero.
    pub fn data(self, len: u64) -> Vec<u8> {
        pattern(u64::from(self.seed), len)
    }

    /// Does to `device` what changes bytes; nothing for the rest.
    ///
    /// # Errors
    /// That of the device.
    pub fn apply(self, device: &dyn BlockDevice) -> Result<()> {
        let (offset, len) = self.range(device.size());
        match self.action {
            Action::Write => device.write_at(&self.data(len), offset),
            Action::WriteZeroes(mode) => device.write_zeroes(offset, len, mode),
            Action::Discard => device.discard(offset, len),
            Action::Flush | Action::Reopen => device.flush(),
            Action::Read | Action::Extent => Ok(()),
        }
    }
}

/// Any steps, up to `most` of them; they shrink to fewer, at smaller offsets, of fewer bytes.
pub fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (0..ACTIONS.len(), any::<u32>(), any::<u16>(), any::<u8>());
    let step = step.prop_map(|(action, place, extent, seed)| Step { action: ACTIONS[action], place, extent, seed });
    prop::collection::vec(step, 1..=most)
}

/// Steps that look random and are the same for the same `seed`.
pub fn steps_of(seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    let bytes: Vec<u8> = (0..count * STEP_BYTES).map(|_| random.next() as u8).collect();
    Step::from_bytes(&bytes)
}

/// Numbers that look random (splitmix64); not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// What a device must read as.
#[derive(Debug, Clone)]
pub struct Model {
    bytes: Vec<u8>,
    /// Discarded since it was written: may also be zero.
    loose: Vec<bool>,
}

impl Model {
    /// Of a device that reads as `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        let loose = vec![false; bytes.len()];
        Self { bytes, loose }
    }

    /// Does what `step` does.
    pub fn apply(&mut self, step: Step) {
        let (offset, len) = step.range(self.bytes.len() as u64);
        let range = offset as usize..(offset + len) as usize;
        match step.action {
            Action::Write => self.bytes[range.clone()].copy_from_slice(&step.data(len)),
            Action::WriteZeroes(_) => self.bytes[range.clone()].fill(0),
            Action::Discard => return self.loose[range].fill(true),
            _ => return,
        }
        self.loose[range].fill(false);
    }

    /// Panics unless `device` reads right in `len` bytes at `offset`.
    pub fn check(&self, device: &dyn BlockDevice, offset: u64, len: u64) {
        let mut read = vec![0xA5; len as usize];
        device.read_at(&mut read, offset).unwrap();
        if read == self.bytes[offset as usize..][..read.len()] {
            return;
        }
        for (at, byte) in (offset as usize..).zip(&read) {
            let expected = self.bytes[at];
            assert!(*byte == expected || *byte == 0 && self.loose[at], "byte {at} reads {byte}, was {expected}");
        }
    }
}

/// Runs `steps` on the device that `open` opens, which reads as `initial` at first, and panics where it differs.
///
/// A step that reopens drops the device and calls `open` again.
pub fn run<D: BlockDevice>(open: impl Fn() -> D, initial: &[u8], steps: &[Step]) {
    let mut device = Some(open());
    let mut model = Model::new(initial.to_vec());
    for step in steps {
        let open_now = device.get_or_insert_with(&open);
        assert_eq!(open_now.size(), initial.len() as u64);
        let (offset, len) = step.range(open_now.size());
        step.apply(open_now).unwrap();
        model.apply(*step);
        match step.action {
            Action::Extent if offset < open_now.size() => {
                let mut whole = vec![0; initial.len()];
                open_now.read_at(&mut whole, 0).unwrap();
                check_extent(open_now, offset, &whole);
            }
            Action::Reopen => device = None,
            Action::Flush => {}
            _ => model.check(open_now, offset, len),
        }
    }
    let device = device.unwrap_or_else(&open);
    model.check(&device, 0, device.size());
}

/// Runs `cases` random sequences of up to `most` steps, each on a store of its own that `make` makes: what it returns
/// opens the device, and opens it again.
pub fn check<D: BlockDevice, O: Fn() -> D>(cases: u32, most: usize, initial: &[u8], make: impl Fn() -> O) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let result = TestRunner::new(config).run(&steps(most), |steps| {
        run(make(), initial, &steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

//! An image in the making.

use std::fmt::Debug;

use crate::Result;

/// An image that is filled once, from front to back, with blocks in the order of their numbers.
///
/// Packing and writing go on side by side, on any threads; only [`Sequential::place`] is called in order, so that the
/// same disk becomes the same file. What is not written reads as zero.
pub trait Sequential: Send + Sync + Debug {
    /// Bytes of a block, a power of two.
    fn block(&self) -> u64;

    /// Whether blocks are packed, each as a whole.
    fn packs(&self) -> bool;

    /// A block, the last one filled up with zeroes, as it is stored; `None` where that is as it is.
    ///
    /// # Errors
    /// That it cannot be packed.
    fn pack(&self, number: u64, block: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Where in the file a block goes, `packed` bytes of it where it is packed. Numbers go up; what is all zeroes is
    /// left out; the number of before once more is the same place.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] where the format can hold no more; the failure of the file.
    fn place(&self, number: u64, packed: Option<u64>) -> Result<u64>;

    /// Writes bytes of a block to where they go in the file.
    ///
    /// # Errors
    /// The failure of the file.
    fn write(&self, bytes: &[u8], at: u64) -> Result<()>;
}

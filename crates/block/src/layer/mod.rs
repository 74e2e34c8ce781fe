//! Devices made of devices.
//!
//! | layer | what it changes | `File` extents of below |
//! |---|---|---|
//! | [`Window`] | a part of a device, as a device | passed on |
//! | [`ReadOnly`] | takes no writes | passed on |
//! | [`Overlay`] | copy on write | those of the overlay passed on, those of the base said as `Data` |
//! | [`Fixed`] | a device as storage that cannot grow | passed on |
//! | [`Unflushed`] | storage whose flushes do nothing | passed on |
//! | [`Fault`] | fails when it is told to | said as `Data` |
//! | [`Stats`] | counts | said as `Data` |
//!
//! A layer is generic over what it stands on, so that a stack known at compile time costs no calls through a table;
//! `Arc<dyn BlockDevice>` is a [`BlockDevice`](crate::BlockDevice) too, for stacks built from what a user typed.

mod fault;
mod fixed;
pub mod overlay;
mod read_only;
mod stats;
mod unflushed;
mod window;

pub use fault::Fault;
pub use fixed::Fixed;
pub use overlay::Overlay;
pub use read_only::ReadOnly;
pub use stats::{BUCKETS, Counted, Stats};
pub use unflushed::Unflushed;
pub use window::Window;

use crate::{Extent, Source};

/// What is done to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`ReadAt::read_at`](crate::ReadAt::read_at).
    Read,
    /// [`ReadAt::extent_at`](crate::ReadAt::extent_at).
    Extent,
    /// [`BlockDevice::write_at`](crate::BlockDevice::write_at).
    Write,
    /// [`BlockDevice::write_zeroes`](crate::BlockDevice::write_zeroes).
    WriteZeroes,
    /// [`BlockDevice::discard`](crate::BlockDevice::discard).
    Discard,
    /// [`BlockDevice::flush`](crate::BlockDevice::flush).
    Flush,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Read, Self::Extent, Self::Write, Self::WriteZeroes, Self::Discard, Self::Flush];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Extent => "question for an extent",
            Self::Write => "write",
            Self::WriteZeroes => "write of zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
        }
    }
}

/// An extent of a layer that has to see every byte that passes: what lies in a file is only to be read through it.
fn seen(extent: Extent<'_>) -> Extent<'_> {
    let source = match extent.source {
        Source::File { .. } => Source::Data,
        other => other,
    };
    Extent { len: extent.len, source }
}

//! Numbers in bytes, and bytes of a device, each checked before it is touched: for readers of formats.

use std::fmt;

use crate::{Extent, Limits, ReadAt, Result, Source, check_range};

/// The `N` bytes at `at`, or `None` where `bytes` ends before.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The byte at `at`, or `None` where `bytes` ends before.
pub fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

macro_rules! number {
    ($($name:ident $type:ty, $from:ident, $words:literal;)*) => {$(
        #[doc = concat!("The ", $words, " at byte `at`, or `None` where `bytes` ends before.")]
        pub fn $name(bytes: &[u8], at: usize) -> Option<$type> {
            array(bytes, at).map(<$type>::$from)
        }
    )*};
}
number! {
    le_u16 u16, from_le_bytes, "16-bit little-endian number";
    le_u32 u32, from_le_bytes, "32-bit little-endian number";
    le_u64 u64, from_le_bytes, "64-bit little-endian number";
    be_u16 u16, from_be_bytes, "16-bit big-endian number";
    be_u32 u32, from_be_bytes, "32-bit big-endian number";
    be_u64 u64, from_be_bytes, "64-bit big-endian number";
}

/// Whether `magic` stands at byte `at`.
pub fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// `len` bytes of a device at `offset`, which are inside of it before room is made for them.
///
/// # Errors
/// As [`ReadAt::read_at`].
pub fn read_vec(device: &dyn ReadAt, offset: u64, len: usize) -> Result<Vec<u8>> {
    check_range(device.size(), offset, len as u64)?;
    let mut bytes = vec![0; len];
    device.read_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The bytes of a device at `offset`, `len` of them, or fewer (or none) where it ends before.
///
/// # Errors
/// As [`ReadAt::read_at`].
pub fn read_up_to(device: &dyn ReadAt, offset: u64, len: usize) -> Result<Vec<u8>> {
    let there = device.size().saturating_sub(offset).min(len as u64);
    if there == 0 {
        return Ok(Vec::new());
    }
    // Not more than `len`, which was a usize.
    read_vec(device, offset, there as usize)
}

/// Bytes, borrowed or owned, as a device that is only read: for what is in memory already, such as the input of a fuzz
/// target.
#[derive(Clone, Copy)]
pub struct Bytes<B>(pub B);

impl<B: AsRef<[u8]>> fmt::Debug for Bytes<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.0.as_ref().len())
    }
}

impl<B: AsRef<[u8]> + Send + Sync> ReadAt for Bytes<B> {
    fn size(&self) -> u64 {
        self.0.as_ref().len() as u64
    }

    fn limits(&self) -> Limits {
        Limits { read_only: true, ..Limits::PLAIN }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size(), offset, buf.len() as u64)?;
        // Inside the slice, so inside a usize.
        if let Some(there) = self.0.as_ref().get(offset as usize..).and_then(|rest| rest.get(..buf.len())) {
            buf.copy_from_slice(there);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size(), offset, 1)?;
        Ok(Extent { len: self.size().saturating_sub(offset), source: Source::Data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn numbers_end_with_the_bytes() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(le_u16(&bytes, 0), Some(0x0201));
        assert_eq!(be_u32(&bytes, 4), Some(0x0506_0708));
        assert_eq!(le_u64(&bytes, 0), Some(0x0807_0605_0403_0201));
        assert_eq!(be_u16(&bytes, 7), None);
        assert_eq!(le_u64(&bytes, usize::MAX), None);
        assert!(has(&bytes, 6, &[7, 8]) && !has(&bytes, 7, &[8, 9]) && !has(&bytes, 9, &[]));
    }

    #[test]
    fn reads_end_with_the_device() {
        let device = Bytes(&[1, 2, 3]);
        assert_eq!(read_vec(&device, 1, 2).unwrap(), [2, 3]);
        assert_eq!(read_vec(&device, 1, usize::MAX).unwrap_err().kind(), Kind::OutOfRange);
        assert_eq!(read_up_to(&device, 2, usize::MAX).unwrap(), [3]);
        assert_eq!(read_up_to(&device, u64::MAX, 5).unwrap(), []);
        assert_eq!(device.extent_at(3).unwrap_err().kind(), Kind::OutOfRange);
    }
}

//! Fields of on-disk structures, read without a panic: what is not there is [`Corrupt::Field`].

use block::bytes::{be_u16, be_u32, be_u64, le_u16, le_u32};

use super::Corrupt;
use super::corrupt::Parsed;

fn missing(bytes: &[u8], at: usize) -> Corrupt {
    Corrupt::Field { at: at as u64, bytes: bytes.len() as u64 }
}

/// `len` bytes at `at`.
pub(super) fn part(bytes: &[u8], at: usize, len: usize) -> Parsed<&[u8]> {
    at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or_else(|| missing(bytes, at))
}

/// The bytes from `at` on.
pub(super) fn tail(bytes: &[u8], at: usize) -> Parsed<&[u8]> {
    bytes.get(at..).ok_or_else(|| missing(bytes, at))
}

/// `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Parsed<[u8; N]> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| missing(bytes, at))
}

/// The byte at `at`.
pub(super) fn byte(bytes: &[u8], at: usize) -> Parsed<u8> {
    bytes.get(at).copied().ok_or_else(|| missing(bytes, at))
}

/// A little-endian number of 16 bits at `at`.
pub(super) fn le16(bytes: &[u8], at: usize) -> Parsed<u16> {
    le_u16(bytes, at).ok_or_else(|| missing(bytes, at))
}

/// A little-endian number of 32 bits at `at`.
pub(super) fn le32(bytes: &[u8], at: usize) -> Parsed<u32> {
    le_u32(bytes, at).ok_or_else(|| missing(bytes, at))
}

/// A big-endian number of 16 bits at `at`.
pub(super) fn be16(bytes: &[u8], at: usize) -> Parsed<u16> {
    be_u16(bytes, at).ok_or_else(|| missing(bytes, at))
}

/// A big-endian number of 32 bits at `at`.
pub(super) fn be32(bytes: &[u8], at: usize) -> Parsed<u32> {
    be_u32(bytes, at).ok_or_else(|| missing(bytes, at))
}

/// A big-endian number of 64 bits at `at`.
pub(super) fn be64(bytes: &[u8], at: usize) -> Parsed<u64> {
    be_u64(bytes, at).ok_or_else(|| missing(bytes, at))
}

/// A number of 64 bits of its halves.
pub(super) fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

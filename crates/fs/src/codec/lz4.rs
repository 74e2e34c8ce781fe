//! A block of lz4 (lz4_Block_format.md).
//!
//! ```text
//! token, 1 │ literal bytes − 15, 255 each │ literals │ offset, 2 │ match bytes − 19, 255 each
//!   bits 4 to 7: literals; bits 0 to 3: bytes of the match less 4; 15: goes on in the next bytes
//! ```
//! The last sequence ends with its literals.

use super::End;

/// Decompresses one.
pub(crate) fn lz4(packed: &[u8], out: &mut [u8], end: End) -> Option<usize> {
    match end {
        End::Whole => lz4_flex::block::decompress_into(packed, out).ok(),
        End::Cut => cut(packed, out),
    }
}

/// Fills `out` from the beginning of a block, whose end is not known: what stands behind it may be anything.
fn cut(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut input = packed;
    let mut at = 0_usize;
    while at < out.len() {
        let token = take(&mut input)?;
        let literals = length(&mut input, token >> 4)?;
        let room = out.get_mut(at..)?;
        let count = literals.min(room.len());
        let (now, rest) = input.split_at_checked(count)?;
        room.get_mut(..count)?.copy_from_slice(now);
        input = rest;
        at = at.checked_add(count)?;
        if at == out.len() || input.is_empty() {
            break;
        }
        let low = take(&mut input)?;
        let back = low | (take(&mut input)? << 8);
        let len = length(&mut input, token & 15)?.checked_add(4)?.min(out.len().checked_sub(at)?);
        let from = at.checked_sub(back).filter(|_| back > 0)?;
        let end = at.checked_add(len)?;
        // What is copied may be part of what it gives: then it repeats, and each round doubles what there is.
        while at < end {
            let part = at.checked_sub(from)?.min(end.checked_sub(at)?);
            out.copy_within(from..from.checked_add(part)?, at);
            at = at.checked_add(part)?;
        }
    }
    Some(at)
}

fn take(input: &mut &[u8]) -> Option<usize> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(usize::from(*first))
}

/// A length of which 4 bits stand in the token.
fn length(input: &mut &[u8], bits: usize) -> Option<usize> {
    let mut len = bits;
    if bits == 15 {
        loop {
            let more = take(input)?;
            len = len.checked_add(more)?;
            if more != 255 {
                break;
            }
        }
    }
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block by hand: 3 literals, a match of 20 bytes that repeats them, 4 literals.
    const BLOCK: &[u8] = &[0x3F, b'a', b'b', b'c', 3, 0, 1, 0x40, b'w', b'x', b'y', b'z'];
    const TEXT: &[u8] = b"abcabcabcabcabcabcabcabwxyz";

    #[test]
    fn cut_at_any_place_it_gives_what_the_whole_gives() {
        let mut whole = [0; 27];
        assert_eq!(lz4(BLOCK, &mut whole, End::Whole), Some(27));
        assert_eq!(whole, *TEXT);
        for len in 0..=27 {
            let mut out = vec![0; len];
            assert_eq!(lz4(BLOCK, &mut out, End::Cut), Some(len));
            assert_eq!(out, TEXT[..len]);
        }
        let behind = [BLOCK, &[9; 50]].concat();
        let mut out = [0; 27];
        assert_eq!((lz4(&behind, &mut out, End::Cut), out), (Some(27), whole));
    }

    #[test]
    fn a_block_that_ends_early_or_points_before_its_beginning_is_broken() {
        for len in 0..BLOCK.len() {
            assert_ne!(lz4(&BLOCK[..len], &mut [0; 27], End::Cut), Some(27), "{len}");
        }
        let mut far = BLOCK.to_vec();
        far[4] = 4;
        assert_eq!(lz4(&far, &mut [0; 27], End::Cut), None);
        far[4] = 0;
        assert_eq!(lz4(&far, &mut [0; 27], End::Cut), None);
    }
}

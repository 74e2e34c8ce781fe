//! LZO1X, the byte code of lzo (Documentation/staging/lzo.rst of the kernel), decompressed.
//!
//! ```text
//! first byte > 17     that less 17 literals
//! 0000LLLL            after a match: 3 + L literals (0: L goes on in the next bytes)
//! 0000DDSS HHHHHHHH   after 1 to 3 literals: 2 bytes from H*4 + D + 1 back
//! 0000DDSS HHHHHHHH   after a run of literals: 3 bytes from H*4 + D + 2049 back
//! 0001HLLL DDDDDDDD DDDDDDSS   2 + L bytes from H*16384 + D + 16384 back; D = H = 0 ends the stream
//! 001LLLLL DDDDDDDD DDDDDDSS   2 + L bytes from D + 1 back
//! LLLDDDSS HHHHHHHH   1 + L bytes (L from 2) from H*8 + D + 1 back
//! ```
//! S literals follow each match.

/// What stood last: decides what a byte below 16 means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Match,
    FewLiterals,
    Run,
}

struct Input<'a>(std::slice::Iter<'a, u8>);

impl Input<'_> {
    fn byte(&mut self) -> Option<usize> {
        self.0.next().map(|byte| usize::from(*byte))
    }

    fn half(&mut self) -> Option<usize> {
        let low = self.byte()?;
        Some(low | (self.byte()? << 8))
    }

    /// A length whose bits in the instruction are `bits`, all ones of them being `mask`.
    fn len(&mut self, bits: usize, mask: usize) -> Option<usize> {
        if bits != 0 {
            return Some(bits);
        }
        let mut len = mask;
        loop {
            match self.byte()? {
                0 => len = len.checked_add(255)?,
                last => return len.checked_add(last),
            }
        }
    }

    fn literals(&mut self, len: usize, out: &mut [u8], at: &mut usize) -> Option<()> {
        let (now, rest) = self.0.as_slice().split_at_checked(len)?;
        let end = at.checked_add(len)?;
        out.get_mut(*at..end)?.copy_from_slice(now);
        self.0 = rest.iter();
        *at = end;
        Some(())
    }
}

/// Repeats `len` bytes from `distance` back, which may be their own beginning.
pub(super) fn repeat(distance: usize, len: usize, out: &mut [u8], at: &mut usize) -> Option<()> {
    let from = at.checked_sub(distance)?;
    let end = at.checked_add(len)?;
    let window = out.get_mut(from..end)?;
    let mut done = distance;
    while done < window.len() {
        let (before, after) = window.split_at_mut(done);
        let part = before.len().min(after.len());
        after.get_mut(..part)?.copy_from_slice(before.get(..part)?);
        done = done.saturating_add(part);
    }
    *at = end;
    Some(())
}

/// Decompresses a whole stream into the beginning of `out`, and says how many bytes it gave; `None` where it is broken
/// or does not fit.
pub(crate) fn decompress(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut input = Input(packed.iter());
    let mut at = 0_usize;
    let mut last = Last::Match;
    if let Some(len) = packed.first().and_then(|first| usize::from(*first).checked_sub(17)).filter(|len| *len > 0) {
        input.byte()?;
        input.literals(len, out, &mut at)?;
        last = if len < 4 { Last::FewLiterals } else { Last::Run };
    }
    loop {
        let code = input.byte()?;
        let (distance, len, literals) = match code {
            0..16 if last == Last::Match => {
                let len = input.len(code, 15)?.checked_add(3)?;
                input.literals(len, out, &mut at)?;
                last = Last::Run;
                continue;
            }
            0..16 => {
                let near = (code >> 2) | (input.byte()? << 2);
                if last == Last::Run { (near.checked_add(2049)?, 3, code) } else { (near.checked_add(1)?, 2, code) }
            }
            16..32 => {
                let len = input.len(code & 7, 7)?.checked_add(2)?;
                let half = input.half()?;
                let distance = ((code & 8) << 11) | (half >> 2);
                if distance == 0 {
                    return input.0.as_slice().is_empty().then_some(at);
                }
                (distance.checked_add(0x4000)?, len, half)
            }
            32..64 => {
                let len = input.len(code & 31, 31)?.checked_add(2)?;
                let half = input.half()?;
                ((half >> 2).checked_add(1)?, len, half)
            }
            _ => {
                let far = ((code >> 2) & 7) | (input.byte()? << 3);
                (far.checked_add(1)?, (code >> 5).checked_add(1)?, code)
            }
        };
        repeat(distance, len, out, &mut at)?;
        let literals = literals & 3;
        input.literals(literals, out, &mut at)?;
        last = if literals == 0 { Last::Match } else { Last::FewLiterals };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four literals, a match that repeats itself, and the end.
    const STREAM: [u8; 11] = [17 + 4, b'a', b'b', b'c', b'd', 32 | 10, 3 << 2, 0, 17, 0, 0];

    #[test]
    fn literals_matches_and_the_end() {
        let mut out = [0; 20];
        assert_eq!(decompress(&STREAM, &mut out), Some(16));
        assert_eq!(&out[..16], b"abcdabcdabcdabcd");
    }

    #[test]
    fn what_is_cut_or_does_not_fit_is_broken() {
        for len in 0..STREAM.len() {
            assert_eq!(decompress(&STREAM[..len], &mut [0; 20]), None, "{len}");
        }
        for len in 0..16 {
            assert_eq!(decompress(&STREAM, &mut vec![0; len]), None, "{len}");
        }
        assert_eq!(decompress(&[18, b'a', 0x40, 9, 17, 0, 0], &mut [0; 20]), None, "before the beginning");
    }
}

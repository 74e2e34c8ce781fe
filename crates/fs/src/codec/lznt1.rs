//! LZNT1, the byte code of compressed NTFS (MS-XCA, 2.5), decompressed.
//!
//! ```text
//! chunk    bytes less 1, 12 bits │ 3 bits │ 1: packed │ those bytes, which give up to 4096        0: no chunk follows
//! packed   eight bits, the lowest first, each for what follows: 0, a literal; 1, two bytes that repeat
//! repeat   length less 3, and above it distance less 1, which has as many bits as the place in the chunk needs, from 4
//! ```

use block::bytes::le_u16;

use super::lzo::repeat;

/// What a chunk gives, bytes.
const CHUNK_BYTES: usize = 4096;
const PACKED: u16 = 1 << 15;

/// Fills `out` from chunks; what they do not give is zeros. `None` where they are broken or do not fit.
pub(crate) fn lznt1(packed: &[u8], out: &mut [u8]) -> Option<()> {
    let mut rest = packed;
    for chunk in out.chunks_mut(CHUNK_BYTES) {
        let Some(header) = le_u16(rest, 0).filter(|header| *header != 0) else {
            rest = &[];
            chunk.fill(0);
            continue;
        };
        let len = usize::from(header & 0xfff).checked_add(1)?;
        let (body, after) = rest.get(2..)?.split_at_checked(len)?;
        rest = after;
        let given = if header & PACKED == 0 {
            chunk.get_mut(..len)?.copy_from_slice(body);
            len
        } else {
            unpack(body, chunk)?
        };
        chunk.get_mut(given..)?.fill(0);
    }
    Some(())
}

/// Unpacks one chunk, and says how many bytes it gave.
fn unpack(mut packed: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut at = 0_usize;
    while let Some((flags, after)) = packed.split_first() {
        packed = after;
        for bit in 0..8_u32 {
            let Some((literal, after)) = packed.split_first() else { return Some(at) };
            if flags & 1_u8.checked_shl(bit)? == 0 {
                *out.get_mut(at)? = *literal;
                at = at.checked_add(1)?;
                packed = after;
                continue;
            }
            let token = le_u16(packed, 0)?;
            packed = packed.get(2..)?;
            let distance_bits = usize::BITS.checked_sub(at.checked_sub(1)?.leading_zeros())?.max(4);
            let len_bits = 16_u32.checked_sub(distance_bits)?;
            let distance = usize::from(token.checked_shr(len_bits)?).checked_add(1)?;
            let len = usize::from(token & 1_u16.checked_shl(len_bits)?.checked_sub(1)?).checked_add(3)?;
            repeat(distance, len, out, &mut at)?;
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_what_repeats() {
        // Four literals, twice from four back: six bytes with four bits of distance, then 22 with five.
        let near = ((3_u16 << 12) | 3).to_le_bytes();
        let far = ((7_u16 << 12) | 19).to_le_bytes();
        let body = [&[0b11_0000][..], b"abcd", &near, &far].concat();
        let packed = [&((body.len() as u16 - 1) | 0xb000).to_le_bytes()[..], &body].concat();
        let mut out = [0xaa; 40];
        assert_eq!(lznt1(&packed, &mut out), Some(()));
        assert_eq!(&out[..33], b"abcdabcdabcdabcdabcdabcdabcdabcd\0");
        // Behind the seventeenth byte the distance has a bit more.
        let mut body = vec![0];
        body.extend_from_slice(b"abcdefgh\0ijklmnop");
        body.extend_from_slice(&[0b10, b'q']);
        body.extend_from_slice(&((16_u16 << 11) | 14).to_le_bytes());
        let packed = [&((body.len() as u16 - 1) | 0xb000).to_le_bytes()[..], &body].concat();
        assert_eq!(lznt1(&packed, &mut out), Some(()));
        assert_eq!(&out[..34], b"abcdefghijklmnopqabcdefghijklmnopq");
    }

    #[test]
    fn what_is_not_packed_and_what_is_not_there() {
        let mut out = [0xaa; 5000];
        assert_eq!(lznt1(b"\x02\x30abc", &mut out), Some(()));
        assert!(out.starts_with(b"abc\0") && out[3..].iter().all(|byte| *byte == 0));
        assert_eq!(lznt1(b"\x05\x30abc", &mut out), None, "it ends early");
        assert_eq!(lznt1(b"\x02\xb0\x01\x00\x00", &mut out), None, "before the beginning");
        assert_eq!(lznt1(b"\x02\x30abc", &mut [0; 2]), None, "it does not fit");
    }
}

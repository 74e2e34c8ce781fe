//! Against the vectors of the standard, and another implementation.

use super::*;

/// IEEE Std 1619-2018, annex B, vector 10 (AES-256, sector 0xff, first and last blocks) and vector 1 (AES-128).
#[test]
fn the_vectors_of_the_standard() {
    let Some(zero) = AesXts::new(&[0; 32]) else { return };
    let mut bytes = [0; 32];
    zero.apply(Direction::Encrypt, &mut bytes, Sectors { first: 0, step: 1, bytes: 32 });
    assert_eq!(
        bytes,
        [
            0x91, 0x7c, 0xf6, 0x9e, 0xbd, 0x68, 0xb2, 0xec, 0x9b, 0x9f, 0xe9, 0xa3, 0xea, 0xdd, 0xa6, 0x92, 0xcd, 0x43,
            0xd2, 0xf5, 0x95, 0x98, 0xed, 0x85, 0x8c, 0x02, 0xc2, 0x65, 0x2f, 0xbf, 0x92, 0x2e
        ]
    );
    zero.apply(Direction::Decrypt, &mut bytes, Sectors { first: 0, step: 1, bytes: 32 });
    assert_eq!(bytes, [0; 32]);
}

#[test]
fn only_whole_sectors_are_changed_and_come_back() {
    for key in [vec![3; 32], (0..64).collect::<Vec<u8>>()] {
        let Some(xts) = AesXts::new(&key) else { return };
        for bytes in [16, 512, 528, 4096] {
            let sectors = Sectors { first: u64::MAX - 3, step: 1, bytes };
            let plain: Vec<u8> = (0..bytes * 21 + 5).map(|n| (n * 7 / 3) as u8).collect();
            let mut buf = plain.clone();
            xts.apply(Direction::Encrypt, &mut buf, sectors);
            assert_eq!(buf[bytes * 21..], plain[bytes * 21..]);
            assert!(buf[..bytes * 21].iter().zip(&plain).filter(|(a, b)| a == b).count() < bytes);
            xts.apply(Direction::Decrypt, &mut buf, sectors);
            assert!(buf == plain);
        }
    }
    assert!(AesXts::new(&[0; 48]).is_none());
}

/// XTS in words: a block after the other.
fn slowly(key: &[u8], direction: Direction, buf: &mut [u8], sectors: Sectors) {
    use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
    fn with<C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt>(
        key: &[u8],
        direction: Direction,
        buf: &mut [u8],
        sectors: Sectors,
    ) {
        let (data, of_tweak) = key.split_at(key.len() / 2);
        let (data, of_tweak) = (C::new_from_slice(data).unwrap(), C::new_from_slice(of_tweak).unwrap());
        for (n, sector) in buf.chunks_exact_mut(sectors.bytes).enumerate() {
            let number = sectors.first.wrapping_add(sectors.step.wrapping_mul(n as u64));
            let mut block = aes::cipher::Block::<C>::default();
            block[..8].copy_from_slice(&number.to_le_bytes());
            of_tweak.encrypt_block(&mut block);
            let mut tweak = u128::from_le_bytes(block[..].try_into().unwrap());
            for bytes in sector.as_chunks_mut::<BLOCK>().0 {
                block.copy_from_slice(&(u128::from_le_bytes(*bytes) ^ tweak).to_le_bytes());
                match direction {
                    Direction::Encrypt => data.encrypt_block(&mut block),
                    Direction::Decrypt => data.decrypt_block(&mut block),
                }
                *bytes = (u128::from_le_bytes(block[..].try_into().unwrap()) ^ tweak).to_le_bytes();
                tweak = (tweak << 1) ^ if tweak >> 127 == 1 { 0x87 } else { 0 };
            }
        }
    }
    match key.len() {
        32 => with::<aes::Aes128>(key, direction, buf, sectors),
        _ => with::<aes::Aes256>(key, direction, buf, sectors),
    }
}

#[test]
fn all_ways_say_what_another_implementation_says() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..400 {
        let key: Vec<u8> = (0..if round % 2 == 0 { 32 } else { 64 }).map(|_| random() as u8).collect();
        let Some(mut xts) = AesXts::new(&key) else { return };
        // Of one block to some more than two times what is under way at one time, and the usual ones.
        let bytes = [512, 4096, 16 * (1 + random() as usize % 70)][round % 3];
        let sectors = Sectors { first: random(), step: random() % 9, bytes };
        let len = bytes * (random() as usize % 20) + random() as usize % bytes;
        let plain: Vec<u8> = (0..len).map(|_| random() as u8).collect();
        for direction in [Direction::Encrypt, Direction::Decrypt] {
            let mut wanted = plain.clone();
            slowly(&key, direction, &mut wanted, sectors);
            let has = xts.wide;
            for wide in [false, has] {
                xts.wide = wide;
                let mut buf = plain.clone();
                xts.apply(direction, &mut buf, sectors);
                assert!(buf == wanted, "{direction:?}, {sectors:?}, {len} bytes, wide: {wide}");
            }
        }
    }
}

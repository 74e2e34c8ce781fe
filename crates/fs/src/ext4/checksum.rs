//! The checksums of metadata.
//!
//! crc32c (`metadata_csum`) as ext4 runs it: the register as it is, neither inverted before nor after. Each kind of
//! metadata starts from a seed that ties it to its place: the file system's UUID, then an inode's number and generation.
//! crc16 (`uninit_bg`, group descriptors alone) and the big-endian crc32 of the oldest journal checksum are small
//! tables of their own.
//!
//! Specification: Documentation/filesystems/ext4/checksums.rst of the kernel.

/// crc32c from the register `seed` on.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

const CRC16: [u16; 256] = table16();
const CRC32_BE: [u32; 256] = table32();

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "run by the compiler, on 0 to 255")]
const fn table16() -> [u16; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut register = index as u16;
        let mut bit = 0;
        while bit < 8 {
            register = if register & 1 == 1 { (register >> 1) ^ 0xA001 } else { register >> 1 };
            bit += 1;
        }
        table[index] = register;
        index += 1;
    }
    table
}

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "run by the compiler, on 0 to 255")]
const fn table32() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut register = (index as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            register = if register >> 31 == 1 { (register << 1) ^ 0x04C1_1DB7 } else { register << 1 };
            bit += 1;
        }
        table[index] = register;
        index += 1;
    }
    table
}

/// crc16 (polynomial 0x8005, reflected) from the register `seed` on.
pub(super) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |register, byte| {
        let [low, high] = register.to_le_bytes();
        u16::from(high) ^ CRC16.get(usize::from(low ^ byte)).copied().unwrap_or(0)
    })
}

/// crc32, most significant bit first, from the register `seed` on.
pub(super) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |register, byte| {
        let [high, ..] = register.to_be_bytes();
        (register << 8) ^ CRC32_BE.get(usize::from(high ^ byte)).copied().unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_catalogue() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283); // CRC-32C
        assert_eq!(crc16(0, b"123456789"), 0xBB3D); // CRC-16/ARC
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_E6E7); // CRC-32/MPEG-2
    }
}

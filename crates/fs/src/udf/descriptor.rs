//! What all descriptors begin with, and the small parts that they are made of.
//!
//! ```text
//! tag        kind, 2 │ version, 2 │ sum, 1 │ 0 │ serial, 2 │ CRC, 2 │ CRC bytes, 2 │ location, 4          (ECMA-167 3/7.2)
//! timestamp  type and zone, 2 │ year, 2 │ month │ day │ hour │ minute │ second │ 1/100 │ 1/10,000 │ 1/1,000,000 (1/7.3)
//! ```

use block::bytes::{byte, le_u16, le_u32};

use super::allocation::Address;
use crate::Time;

pub(super) const TAG_BYTES: usize = 16;

pub(super) mod tag {
    pub const ANCHOR: u16 = 2;
    pub const POINTER: u16 = 3;
    pub const PARTITION: u16 = 5;
    pub const LOGICAL_VOLUME: u16 = 6;
    pub const TERMINATOR: u16 = 8;
    pub const FILE_SET: u16 = 256;
    pub const FILE_IDENTIFIER: u16 = 257;
    pub const ALLOCATION_EXTENT: u16 = 258;
    pub const INDIRECT: u16 = 259;
    pub const FILE_ENTRY: u16 = 261;
    pub const ATTRIBUTES: u16 = 262;
    pub const EXTENDED_FILE_ENTRY: u16 = 266;
}

/// The kind of the descriptor that `bytes` begin with, where its sums are right.
pub(super) fn kind(bytes: &[u8]) -> Option<u16> {
    let head = bytes.get(..TAG_BYTES)?;
    let all = head.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let sum = byte(head, 4)?;
    if all.wrapping_sub(sum) != sum {
        return None;
    }
    let len = usize::from(le_u16(head, 10)?);
    // What is longer than a block is not there as a whole to be summed.
    if let Some(body) = bytes.get(TAG_BYTES..).and_then(|rest| rest.get(..len))
        && len > 0
        && crc(body) != le_u16(head, 8)?
    {
        return None;
    }
    le_u16(head, 0)
}

/// CRC-16 of ECMA-167 3/7.2.6: polynomial x¹⁶ + x¹² + x⁵ + 1, beginning with 0.
pub(super) fn crc(bytes: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for byte in bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
        }
    }
    crc
}

/// Seconds and nanoseconds of a timestamp; 1970 where it says nothing.
pub(super) fn time(bytes: &[u8]) -> Time {
    parse_time(bytes).unwrap_or_default()
}

fn parse_time(bytes: &[u8]) -> Option<Time> {
    let zone = le_u16(bytes, 0)?;
    let year = i64::from(le_u16(bytes, 2)?.cast_signed());
    let part = |at| byte(bytes, at).map(i64::from);
    let (month, day, hour, minute, second) = (part(4)?, part(5)?, part(6)?, part(7)?, part(8)?);
    let sound = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if !sound {
        return None;
    }
    // Days since 1970-01-01 of a date of the Gregorian calendar, years beginning in March.
    let (years, months) =
        if month > 2 { (year, month.checked_sub(3)?) } else { (year.checked_sub(1)?, month.checked_add(9)?) };
    let leap = years.div_euclid(4).checked_sub(years.div_euclid(100))?.checked_add(years.div_euclid(400))?;
    let in_year = months.checked_mul(153)?.checked_add(2)?.div_euclid(5).checked_add(day)?;
    let days = years.checked_mul(365)?.checked_add(leap)?.checked_add(in_year)?.checked_sub(719_469)?;
    let mut seconds = days.checked_mul(86_400)?;
    seconds =
        seconds.checked_add(hour.checked_mul(3600)?)?.checked_add(minute.checked_mul(60)?)?.checked_add(second)?;
    // Minutes from UTC in the lower twelve bits, a signed number, if the type is local time and the zone is known.
    let minutes = i64::from((zone << 4).cast_signed() >> 4);
    if zone >> 12 == 1 && (-1440..=1440).contains(&minutes) {
        seconds = seconds.checked_sub(minutes.checked_mul(60)?)?;
    }
    let fraction = part(9)?.checked_mul(10_000)?.checked_add(part(10)?.checked_mul(100)?)?.checked_add(part(11)?)?;
    let nanoseconds = u32::try_from(fraction).ok().filter(|micros| *micros < 1_000_000)?.checked_mul(1000)?;
    Some(Time { seconds, nanoseconds })
}

/// A long allocation descriptor: bytes and type, and where.
///
/// ```text
/// bytes, bits 0 to 29; type, bits 30 and 31 │ block, 4 │ partition, 2 │ for the implementation, 6        (4/14.14.2)
/// ```
pub(super) fn long(bytes: &[u8], at: usize) -> Option<(u32, Address)> {
    let word = le_u32(bytes, at)?;
    let block = le_u32(bytes, at.checked_add(4)?)?;
    let partition = le_u16(bytes, at.checked_add(8)?)?;
    Some((word, Address { partition, block }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_that_of_the_specification() {
        // UDF 2.60, 6.6 names this example.
        assert_eq!(crc(&[0x70, 0x6A, 0x77]), 0x3299);
    }

    #[test]
    fn times_with_zones_and_without() {
        let stamp =
            |zone: u16, year: u16, rest: [u8; 8]| [&zone.to_le_bytes(), &year.to_le_bytes(), &rest[..]].concat();
        let rest = [2, 29, 12, 30, 15, 99, 99, 99];
        let wanted = Time { seconds: 951_827_415, nanoseconds: 999_999_000 };
        assert_eq!(time(&stamp(0x1000, 2000, rest)), wanted);
        let hour = Time { seconds: wanted.seconds - 3600, ..wanted };
        assert_eq!(time(&stamp(0x1000 | 60, 2000, rest)), hour);
        let west = Time { seconds: wanted.seconds + 5400, ..wanted };
        assert_eq!(time(&stamp(0x1000 | (0x1000 - 90), 2000, rest)), west);
        // Not known.
        assert_eq!(time(&stamp(0x1000 | (0x1000 - 2047), 2000, rest)), wanted);
        assert_eq!(time(&[0; 12]), Time::default());
        assert_eq!(time(&stamp(0x1000, 1969, [12, 31, 23, 59, 59, 0, 0, 0])).seconds, -1);
    }
}
